"""Which candidate does a written title mean?"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from alkd_ray.annotation.prompts import shown_title

NEAR_RATIO = 0.85  # difflib's similarity that a near title must reach
NEAR_MARGIN = 0.05  # by which it must be ahead of the second nearest title
MAX_NEAR_LOOKUPS = 200  # each takes about a millisecond; an answer has far fewer titles

_MIN_NEAR_CHARACTERS = 4
_MIN_BEGINNING_CHARACTERS = 12
_MAX_CHARACTERS = 300
_NOT_WORD = re.compile(r"[\W_]+")
_YEAR = re.compile(r" (?:19|20)[0-9]{2}$")
_ARTICLES = frozenset(("the", "a", "an"))
_ROMAN = dict(
    ii="2", iii="3", iv="4", v="5", vi="6", vii="7", viii="8", ix="9", x="10", xi="11", xii="12"
)


class TitleIndex:
    """The candidates' titles, looked up exactly or nearly.

    Two titles are equal when their words are: case, punctuation, accents' encoding and HTML
    entities do not count. A title is near when it is equal but for articles, a year at its end or
    Roman numerals; when it is the beginning (12 characters or more) of one title alone; or when
    difflib finds it at least 0.85 similar to one title, 0.05 ahead of the next, and their numbers
    agree: "Part 2" is not nearly "Part 3", however similar the letters.

    Args:
        titles: ``[C]`` the candidates' titles; those without one are never found.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = titles
        self._near_lookups_left = MAX_NEAR_LOOKUPS

    @cached_property
    def _exact(self) -> dict[str, list[int]]:
        """Positions by a title's words."""
        # Not before a title is looked up: most answers are numbers alone.
        found: dict[str, list[int]] = defaultdict(list)
        for position, title in enumerate(self._titles):
            if title.strip():
                for key in {_words(form) for form in {title, shown_title(title)}}:
                    found[key].append(position)
        return dict(found)

    @cached_property
    def _by_reduced(self) -> dict[str, set[str]]:
        """Words by their reduced form."""
        found: dict[str, set[str]] = defaultdict(set)
        for key in self._exact:
            found[_reduced(key)].add(key)
        return dict(found)

    @cached_property
    def _trigrams(self) -> dict[str, frozenset[str]]:
        return {key: _trigrams(key) for key in self._exact}

    def exact(self, text: str) -> list[int]:
        """Positions of the candidates with that title; several where titles are equal."""
        return self._exact.get(_words(text), []) if len(text) <= _MAX_CHARACTERS else []

    def near(self, text: str) -> list[int]:
        """Positions of the candidates with the one title that is near; empty for none."""
        if len(text) > _MAX_CHARACTERS or self._near_lookups_left == 0:
            return []
        key = _words(text)
        if len(key) < _MIN_NEAR_CHARACTERS:
            return []
        self._near_lookups_left -= 1
        found = self._alike(key)
        return self._exact[found] if found else []

    def _alike(self, key: str) -> str:
        reduced = self._by_reduced.get(_reduced(key), ())
        if len(reduced) == 1:
            return next(iter(reduced))
        if len(key) >= _MIN_BEGINNING_CHARACTERS:
            longer = [title for title in self._exact if title.startswith(key + " ")]
            if len(longer) == 1:
                return longer[0]
        return self._similar(key)

    def _similar(self, key: str) -> str:
        # The trigrams' overlap, cheap to count, picks the few titles that difflib compares.
        mine = _trigrams(key)
        overlap = {
            title: 2 * len(mine & theirs) / (len(mine) + len(theirs))
            for title, theirs in self._trigrams.items()
        }
        nearest = sorted(overlap, key=lambda title: (-overlap[title], title))[:3]
        ratios = sorted(
            (
                (difflib.SequenceMatcher(None, key, title, autojunk=False).ratio(), title)
                for title in nearest
                if overlap[title] > 0.3
            ),
            reverse=True,
        )
        if not ratios or ratios[0][0] < NEAR_RATIO:
            return ""
        if len(ratios) > 1 and ratios[0][0] - ratios[1][0] < NEAR_MARGIN:
            return ""
        best = ratios[0][1]
        return best if _numbers(best) == _numbers(key) else ""


def _words(text: str) -> str:
    """The words of a title, lower case, one space between them."""
    plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold().replace("&", " and ")
    # A title may be made of signs alone.
    return _NOT_WORD.sub(" ", plain).strip() or plain.strip()


def _reduced(key: str) -> str:
    words = [_ROMAN.get(word, word) for word in _YEAR.sub("", key).split()]
    return " ".join(word for word in words if word not in _ARTICLES) or key


def _numbers(key: str) -> list[str]:
    """The words with a digit in them, Roman numerals as digits."""
    words = (_ROMAN.get(word, word) for word in key.split())
    return [word for word in words if any(character.isdigit() for character in word)]


def _trigrams(key: str) -> frozenset[str]:
    padded = f"  {key} "
    return frozenset(padded[start : start + 3] for start in range(len(padded) - 2))
