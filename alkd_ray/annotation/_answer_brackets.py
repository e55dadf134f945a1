"""Lists and objects in brackets, found in any text: whole, broken off, or with prose around them.

One pass over the text, no recursion, so that no answer, however nested or damaged, costs more than
time linear in its length.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

MAX_DEPTH = 8  # lists nested deeper hold no ranking; it bounds how often a character is looked at

# A string ends at its quote or, where that is missing, at the end of its line.
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\[^\n])*+"?|[\[\]{},]')
_KEY_BEFORE = re.compile(r"""(\w+)["']?\s*[:=]\s*$""")
_NUMBERED_FIELD = re.compile(r'\s*"?([0-9]{1,6})"?\s*:(.+)', re.DOTALL)
_KEY_REACH = 60


@dataclass(slots=True)
class Bracketed:
    """A list ``[...]`` or an object ``{...}`` in a text.

    Attributes:
        opening: ``[`` or ``{``.
        depth: how many bracketed parts it stands in.
        start, end: where it stands, ``end`` behind its closing bracket.
        closed: False where its closing bracket is missing.
        key: the key that it is the value of, "" for none.
        elements: the text of each element, between the commas, blanks stripped.
        broken_off: the last element where the text ended in it, or may have.
        outermost: the outermost bracketed part around this one, None where there is none.
        element_start: where the element that is being read starts.
    """

    opening: str
    start: int
    depth: int
    key: str
    end: int = -1
    closed: bool = False
    elements: list[str] = field(default_factory=list)
    broken_off: str = ""
    outermost: Bracketed | None = None
    element_start: int = 0

    @property
    def outer(self) -> Bracketed:
        """The outermost bracketed part around this one, or itself."""
        return self.outermost or self


def bracketed(text: str) -> list[Bracketed]:
    """All bracketed parts of ``text`` down to depth :data:`MAX_DEPTH`, inner ones first."""
    found: list[Bracketed] = []
    stack: list[Bracketed] = []
    open_now: Counter[str] = Counter()
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in ("[", "{"):
            stack.append(_opened(text, token.start(), mark, stack))
            open_now[mark] += 1
        elif mark == "," and stack:
            _end_element(text, stack[-1], token.start())
        elif mark in ("]", "}"):
            opening = "[" if mark == "]" else "{"
            # A bracket that closes nothing is skipped; one that closes an outer part, closes the
            # forgotten inner ones as well.
            while open_now[opening]:
                inner = stack.pop()
                open_now[inner.opening] -= 1
                _close(text, inner, token.start(), token.end(), inner.opening == opening)
                found.append(inner)
                if inner.opening == opening:
                    break
    while stack:
        part = stack.pop()
        _break_off(text, part)
        found.append(part)
    return [part for part in found if part.depth < MAX_DEPTH]


def numbered_fields(part: Bracketed) -> list[str]:
    """The values of an object ``{"1": ..., "2": ...}`` in that order; empty for any other."""
    if part.opening != "{":
        return []
    fields = [_NUMBERED_FIELD.fullmatch(element) for element in part.elements]
    if [int(f[1]) for f in fields if f] != list(range(1, len(fields) + 1)):
        return []
    return [f[2].strip() for f in fields if f]


def _opened(text: str, start: int, mark: str, stack: list[Bracketed]) -> Bracketed:
    before = text[max(0, start - _KEY_REACH) : start].rstrip()
    key = _KEY_BEFORE.search(before) if before.endswith((":", "=")) else None
    return Bracketed(
        opening=mark,
        start=start,
        depth=len(stack),
        key=key[1].casefold() if key else "",
        outermost=stack[0] if stack else None,
        element_start=start + 1,
    )


def _end_element(text: str, part: Bracketed, end: int) -> None:
    if part.depth < MAX_DEPTH:
        element = text[part.element_start : end].strip()
        if element:
            part.elements.append(element)
    part.element_start = end + 1


def _close(text: str, part: Bracketed, at: int, end: int, closed: bool) -> None:
    _end_element(text, part, at)
    part.end, part.closed = end, closed


def _break_off(text: str, part: Bracketed) -> None:
    """Ends a part that the text ended in."""
    if part.depth < MAX_DEPTH:
        last = text[part.element_start :].strip()
        if _is_whole(last):
            _end_element(text, part, len(text))
        else:
            part.broken_off = last
    part.end = len(text)


def _is_whole(element: str) -> bool:
    """Whether an element that no comma follows has its closing mark."""
    return len(element) > 1 and element[-1] in '"}]' and element[-2] != "\\"
