"""Which candidate does one entry of an answer name, by number, by title, or by both?"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from alkd_ray.annotation._titles import TitleIndex

MAX_ENTRIES = 4_000  # of one list; what follows is not read
MAX_ENTRY_CHARACTERS = 2_000

_NUMBER = re.compile(r"#?([0-9]{1,6})(?:\.0*)?")
_INTEGER = re.compile(r"[-+]?[0-9]+(?:\.0*)?")
# "12. Heat", "12: Heat", "#12) Heat", "[12] Heat", "Candidate 12 - Heat", "12 Heat".
_LEADING_NUMBER = re.compile(
    r"(?P<word>(?:candidate|item|option|number|no\.?)\s*+)?[#(\[]?([0-9]{1,6})(?![0-9])"
    r"(?P<mark>\s*+[.):\]>–—-]+(?![0-9]))?\s*+(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_TRAILING_NUMBER = re.compile(
    r"[(\[]\s*+(?:candidate|item|option|number|no\.?)?\s*+#?([0-9]{1,6})\s*+[)\]]$", re.IGNORECASE
)
_QUOTED_START = re.compile(r'["“]([^"“”]{1,300})["”]')
_BREAK = re.compile(r"\s[-–—]\s|:\s|\s\(")
_FIELD = re.compile(r'"?(\w{1,40})"?\s*+:\s*+("(?:[^"\\\n]|\\[^\n])*+"?|[^,{}\[\]\s]+)')
_NUMBER_FIELDS = ("number", "candidate", "candidate_number", "no", "id", "item", "index")
_TITLE_FIELDS = ("title", "name", "item", "candidate")
_DECORATION = "*_`\"'“”‘’«» \t\r\n,;"
_BULLET = re.compile(r"[-*•·–—+]\s+")
_MAX_BREAKS = 6


@dataclass(slots=True)
class Reading:
    """What the entries of one list mean.

    Attributes:
        picks: 0-based candidate of each entry, None for one that names none.
        how: count of the ways in which entries had to be understood.
    """

    picks: list[int | None] = field(default_factory=list)
    how: Counter[str] = field(default_factory=Counter)

    @property
    def distinct(self) -> int:
        """How many different candidates were named."""
        return len(set(self.picks) - {None})


def read_entries(entries: Sequence[str], titles: TitleIndex, count: int, *, near: bool) -> Reading:
    """Reads all entries of one list.

    A number that leads a text may be the candidate's or the place in the ranking; so titles come
    first, and where the numbers run 1, 2, 3, ... through a list of texts they are taken for places.
    Likewise, a list that consists mostly of titles may hold titles that are numbers ("21").

    Args:
        entries: their texts, best first.
        titles: of the candidates.
        count: C, the number of candidates.
        near: look for near titles as well.
    """
    reader = _Reader(titles, count, near, *_nature(entries))
    for entry in entries:
        reader.reading.picks.append(reader.pick(entry))
    return reader.reading


def is_marked(line: str) -> bool:
    """Whether a line looks like an entry of a list: a bullet or a number leads it."""
    leading = _LEADING_NUMBER.match(line)
    return bool(_BULLET.match(line)) or bool(leading and (leading["mark"] or leading["word"]))


def undecorated(text: str) -> str:
    """The text without emphasis, and without quotes, a bullet and commas around it."""
    text = text.replace("**", "").replace("__", "").strip()
    bullet = _BULLET.match(text)
    return text[bullet.end() if bullet else 0 :].strip(_DECORATION)


def _nature(entries: Sequence[str]) -> tuple[bool, bool]:
    """Whether texts prevail over bare numbers, and whether leading numbers are places."""
    plain = [undecorated(entry[:MAX_ENTRY_CHARACTERS]) for entry in entries]
    texts = [text for text in plain if not _INTEGER.fullmatch(text)]
    leading = [found for found in map(_LEADING_NUMBER.match, texts) if found and found["mark"]]
    places = [int(found[2]) for found in leading]
    return len(texts) * 2 > len(plain), places == list(range(1, len(places) + 1))


class _Reader:
    def __init__(
        self, titles: TitleIndex, count: int, near: bool, texts_prevail: bool, places: bool
    ) -> None:
        self.reading = Reading()
        self._titles = titles
        self._count = count
        self._near = near
        self._texts_prevail = texts_prevail
        self._places = places
        self._taken: set[int] = set()

    def pick(self, entry: str) -> int | None:
        if len(entry) > MAX_ENTRY_CHARACTERS:
            return None
        entry = entry.strip()
        if entry.startswith("{"):
            return self._object(entry)
        if _INTEGER.fullmatch(entry) and not self._texts_prevail:
            return self._bare_number(entry)
        quoted = entry.startswith('"')
        text = undecorated(_decoded(entry) if quoted else entry)
        if _NUMBER.fullmatch(text) and not (self._texts_prevail and self._titles.exact(text)):
            return self._bare_number(text, "numbers as text" if quoted else "")
        return self._text(text)

    def _bare_number(self, text: str, how: str = "") -> int | None:
        number = _NUMBER.fullmatch(text)
        if number is None:
            return None
        if int(number[1]) == 0:
            self._note("zeros")
        found = self._in_range(number[1])
        if found is None:  # "1984" is no candidate's number, but may be its title
            return self._by_title(text)
        return self._noted(found, how)

    def _object(self, entry: str) -> int | None:
        fields = {name.casefold(): value for name, value in _FIELD.findall(entry)}
        how = "objects instead of numbers"
        titles = [fields[name] for name in _TITLE_FIELDS if fields.get(name, "").startswith('"')]
        for title in titles:
            found = self._choose(self._titles.exact(_decoded(title)), how)
            if found is not None:
                return found
        for name in _NUMBER_FIELDS:
            number = _NUMBER.fullmatch(fields.get(name, "").strip('"'))
            if number:
                return self._noted(self._in_range(number[1]), how)
        return self._nearly(_decoded(titles[0])) if titles else None

    def _text(self, text: str) -> int | None:
        found = self._by_title(text)
        if found is not None:
            return found
        leading = _LEADING_NUMBER.fullmatch(text)
        behind = _TRAILING_NUMBER.search(text)
        beside = [found[group] for found, group in ((leading, 2), (behind, 1)) if found]
        marked = leading is not None and bool(leading["mark"] or leading["word"])
        rest = undecorated(leading["rest"]) if leading is not None else text
        found = self._by_part(rest, [self._in_range(digits) for digits in beside])
        if found is None and (marked or leading is None):
            number = leading[2] if leading is not None and not self._places else None
            found = self._by_number(rest, number)
        return self._nearly(rest if marked else text) if found is None else found

    def _by_title(self, text: str, beside: Sequence[int | None] = ()) -> int | None:
        """The candidate with that title; of several, the one whose number stands beside it."""
        positions = self._titles.exact(text)
        own = [position for position in positions if position in beside]
        if own:
            return self._noted(own[0], "numbers with text")
        return self._choose(positions, "titles instead of numbers")

    def _by_part(self, text: str, beside: Sequence[int | None]) -> int | None:
        """A title with a remark behind it: ``"Heat" - a thriller``, ``Heat (1995)``."""
        quoted = _QUOTED_START.match(text)
        heads = [text, quoted[1] if quoted else ""]
        breaks = [found.start() for found in _BREAK.finditer(text)]
        heads += [text[:at] for at in reversed(breaks[:_MAX_BREAKS])]
        for head in heads:
            found = self._by_title(undecorated(head), beside)
            if found is not None:
                return found
        return None

    def _by_number(self, text: str, leading: str | None = None) -> int | None:
        """A number in a text that is no title: ``12`` in ``1. 12 - why``, ``Heet (12)``."""
        whole, inner = _NUMBER.fullmatch(text), _LEADING_NUMBER.fullmatch(text)
        behind = _TRAILING_NUMBER.search(text)
        if whole:
            return self._noted(self._in_range(whole[1]), "numbered list")
        if inner and (inner["mark"] or inner["word"]):
            return self._noted(self._in_range(inner[2]), "numbered list")
        if behind:
            return self._noted(self._in_range(behind[1]), "numbers with text")
        if leading is not None:
            return self._noted(self._in_range(leading), "numbers with text")
        return None

    def _nearly(self, text: str) -> int | None:
        if not self._near:
            return None
        quoted = _QUOTED_START.match(text)
        return self._choose(self._titles.near(quoted[1] if quoted else text), "near titles")

    def _choose(self, positions: list[int], how: str) -> int | None:
        """Of several candidates with one title the first that is not named yet."""
        if not positions:
            return None
        if len(positions) > 1:
            self._note("equal titles")
        free = [position for position in positions if position not in self._taken]
        return self._noted(free[0] if free else positions[0], how)

    def _in_range(self, digits: str) -> int | None:
        number = int(digits)
        return number - 1 if 1 <= number <= self._count else None

    def _noted(self, found: int | None, how: str) -> int | None:
        if found is not None:
            self._taken.add(found)
            self._note(how)
        return found

    def _note(self, how: str) -> None:
        if how:
            self.reading.how[how] += 1


def _decoded(element: str) -> str:
    """A JSON string's text; the element as it is where it is none."""
    if not element.startswith('"'):
        return element
    try:
        value = json.loads(element)
    except ValueError:
        return element
    return value if isinstance(value, str) else element
