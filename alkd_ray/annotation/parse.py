"""From an LLM's answer to a ranking: distinct candidates, whatever the answer looks like.

Answers are repaired here, for nothing, before anything is asked again. What had to be repaired is
recorded by name, so that a report can say how far the rankings are the LLM's own words:

==================================== ==============================================================
``thinking before the answer``       text up to the last ``</think>`` was left out
``too long to read: cut to N``       only the beginning and the end of a huge answer were read
``code fence``                       the list stood between three backticks
``prose around the answer``          other text stood around it
``truncated JSON``                   the list's end is missing; a last number that may be cut is
                                     left out
``missing bracket``                  the list's own bracket is missing, though the object's is not
``no object around the list``        a bare list
``an object instead of a list``      ``{"1": 12, "2": 5, ...}``
``a list in lines``                  no brackets; one entry a line
``numbers in running text``          no list; numbers in a row
``numbered list: N``                 N numbers had their place in the ranking before them
``numbers as text: N``               N numbers stood in quotes
``numbers with text: N``             N numbers with a title or a remark
``objects instead of numbers: N``    ``{"number": 12, "title": ...}``
``titles instead of numbers: N``     N titles, exact but for case and punctuation
``near titles: N``                   N titles, not quite exact
``equal titles: N``                  N titles that several candidates have: the first one not named
                                     yet was taken
``zeros, numbers read as given``     a 0 was among the numbers: they may have been counted from 0,
                                     but none was changed
``strangers dropped: N``             entries that name no candidate
``duplicates dropped: N``            candidates named before
``too long: cut to N``               more than was wanted
``short: N of M``                    fewer than was wanted
==================================== ==============================================================

An answer with fewer than a fifth of what was wanted is a failure: ``empty answer``, ``refusal``,
``cut off while thinking``, ``no candidate numbers or titles found`` or ``too few candidates: N of
M``. Reading never raises, and takes time linear in the answer's length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from alkd_ray.annotation._answer_brackets import Bracketed, bracketed, numbered_fields
from alkd_ray.annotation._answer_entries import MAX_ENTRIES, Reading, read_entries
from alkd_ray.annotation._answer_lines import FENCE, best_lines
from alkd_ray.annotation._titles import TitleIndex
from alkd_ray.types import IntArray

PARSER_VERSION = "1"  # a higher one re-parses the stored answers

MAX_CHARACTERS = 32_768  # of an answer; one of 25 numbers has about 100
MAX_HINTS_CHARACTERS = 3_000
ACCEPTED_SHARE = 0.2  # of what was wanted; with less there is no ranking
ENOUGH_SHARE = 0.8  # with less, asking again is worth its price

# What most answers are: the object that was asked for and nothing else, with JSON's own blanks.
_PLAIN = re.compile(
    r'B{B"ranking"B:B\[B([1-9][0-9]{0,5}(?:B,B[1-9][0-9]{0,5})*)B\]B}B'.replace("B", r"[ \t\r\n]*")
)
_LAST_NUMBER = re.compile(r'(?:"?\w+"?\s*:\s*)?"?([0-9]{1,6})')
_REFUSAL = re.compile(
    r"\b(?:i(?: a|['’])m sorry|i (?:can ?not|can['’]t|am unable|will not|won['’]t|must decline)"
    r"|i['’]m (?:unable|not able)|unable to (?:help|assist|comply|provide)|as an ai\b)",
    re.IGNORECASE,
)
_REFUSAL_REACH = 400


@dataclass(frozen=True, slots=True, eq=False)
class ParsedRanking:
    """A ranking that was accepted, or the reason why there is none.

    Attributes:
        ranking: ``[<= wanted]`` int64 distinct items, best first; empty when failed.
        repairs: what had to be repaired, by name, in the order of the repairs.
        failure: "" or the reason.
    """

    ranking: IntArray
    repairs: tuple[str, ...]
    failure: str = ""


def parse_ranking(
    text: str, candidates: IntArray, titles: Sequence[str], wanted: int
) -> ParsedRanking:
    """Reads the ranking out of an answer to :func:`~alkd_ray.annotation.prompts.rank_messages`.

    The list under ``"ranking"`` is preferred to other lists in brackets, these to lists in lines,
    and these to numbers in running text, unless what is preferred is short and the other is not as
    short. Titles in running prose are not read: a title such as "It" or "Heat" stands there for
    many reasons.

    Args:
        text: the answer.
        candidates: ``[C]`` distinct items, in the order in which the prompt numbered them.
        titles: ``[C]`` their titles, "" for none.
        wanted: how many were asked for.
    """
    plain = _plain_ranking(text, candidates, wanted)
    return _repaired_ranking(text, candidates, titles, wanted) if plain is None else plain


def _plain_ranking(text: str, candidates: IntArray, wanted: int) -> ParsedRanking | None:
    """The ranking of a faultless answer, for a tenth of the time; None for any other answer.

    It is what :func:`_repaired_ranking` would make of it.
    """
    if len(text) > MAX_CHARACTERS or wanted > MAX_ENTRIES:
        return None
    found = _PLAIN.fullmatch(text)
    if found is None:
        return None
    numbers = [int(number) for number in found[1].split(",")]
    if not len(numbers) == wanted == len(set(numbers)) or max(numbers) > len(candidates):
        return None
    return ParsedRanking(candidates[np.array(numbers) - 1].astype(np.int64), ())


def _repaired_ranking(
    text: str, candidates: IntArray, titles: Sequence[str], wanted: int
) -> ParsedRanking:
    notes: list[str] = []
    text = _answer_part(text, notes)
    if not text:
        reason = "cut off while thinking" if "thinking before the answer" in notes else ""
        return _failed(reason or "empty answer", notes)
    index = TitleIndex(titles)
    reading, form = _read(text, index, len(candidates), wanted)
    if reading.distinct == 0:
        refused = _REFUSAL.search(text[:_REFUSAL_REACH])
        return _failed("refusal" if refused else "no candidate numbers or titles found", notes)
    for how, number in reading.how.items():
        form.append("zeros, numbers read as given" if how == "zeros" else f"{how}: {number}")
    picks = [-1 if pick is None else int(candidates[pick]) for pick in reading.picks]
    return _accepted(picks, [*notes, *form], wanted)


def parse_recorded(items: IntArray, num_items: int, wanted: int) -> ParsedRanking:
    """Repairs a recorded ranking in the same way: strangers, duplicates, length.

    Args:
        items: item indices as recorded, best first.
        num_items: N; anything outside ``[0, N)`` is a stranger.
        wanted: how many are used.
    """
    if len(items) == 0:
        return _failed("empty answer", [])
    picks = [int(item) if 0 <= item < num_items else -1 for item in items]
    if max(picks) < 0:
        return _failed("no item of the catalogue found", [])
    return _accepted(picks, [], wanted)


def is_short(parsed: ParsedRanking, wanted: int) -> bool:
    """Whether asking again is worth it: less than 80% of what was wanted, or a failure."""
    return len(parsed.ranking) < ENOUGH_SHARE * wanted


def parse_hints(text: str) -> str:
    """The hints as they go into the ranking prompt; "" where the answer holds none.

    Thinking, code fences, blank lines and blanks around a line are left out; whole lines are kept
    up to 3,000 characters, since every ranking request pays for them again.
    """
    text = _answer_part(text, [])
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not FENCE.fullmatch(line)]
    kept, used = [], 0
    for line in lines:
        used += len(line) + 1
        if used > MAX_HINTS_CHARACTERS:
            break
        kept.append(line)
    return "\n".join(kept) or "".join(lines[:1])[:MAX_HINTS_CHARACTERS].rstrip()


def _answer_part(text: str, notes: list[str]) -> str:
    """What follows the thoughts, bounded in length; "" where nothing follows."""
    text = text.strip().lstrip("\ufeff")
    _, end_mark, after = text.rpartition("</think>")
    if end_mark:
        notes.append("thinking before the answer")
        text = after.strip()
    elif text.startswith("<think>"):
        notes.append("thinking before the answer")
        return ""
    if len(text) > MAX_CHARACTERS:
        notes.append(f"too long to read: cut to {MAX_CHARACTERS}")
        text = text[: MAX_CHARACTERS // 2] + "\n" + text[-MAX_CHARACTERS // 2 :]
    return text


def _read(text: str, titles: TitleIndex, count: int, wanted: int) -> tuple[Reading, list[str]]:
    """The best reading of the text, and the names of the form that it was found in."""
    parts = bracketed(text)
    part, reading = _best_list(parts, titles, count)
    if part is not None and reading.distinct >= ENOUGH_SHARE * wanted:
        return reading, _form_of(text, part)
    # A short list may be an aside; the rest of the text is read for a longer one.
    rest = text
    if part is not None and reading.distinct >= ACCEPTED_SHARE * wanted:
        rest = text[: part.outer.start] + "\n" + text[part.outer.end :]
    elif parts and not parts[-1].closed:
        rest = text.rstrip().removesuffix(_cut_number(text, parts, count))
    other, form = best_lines(rest, titles, count)
    if part is None or other.distinct > reading.distinct:
        return other, form
    return reading, _form_of(text, part)


def _cut_number(text: str, parts: Sequence[Bracketed], count: int) -> str:
    """The end of a text that broke off in a number, which may have been meant to go on."""
    innermost = next(part for part in parts if not part.closed and part.end == len(text))
    number = _LAST_NUMBER.fullmatch(innermost.broken_off)
    return number[0] if number and not _is_whole(number[1], count) else ""


def _is_whole(digits: str, count: int) -> bool:
    """Whether no candidate's number begins with these digits and goes on."""
    return int(digits) * 10 > count


def _best_list(
    parts: Sequence[Bracketed], titles: TitleIndex, count: int
) -> tuple[Bracketed | None, Reading]:
    """The list in brackets that names most candidates; under "ranking" before any other."""
    best, best_worth = None, (False, 0, 0)
    for part in parts:
        entries = _entries_of(part, count)
        if not entries:
            continue
        found = read_entries(entries, titles, count, near=False).distinct
        worth = (part.key == "ranking" and found > 0, found, len(entries))
        if worth >= best_worth:  # of equal ones the last: a correction follows what it corrects
            best, best_worth = part, worth
    if best is None:
        return None, Reading()
    return best, read_entries(_entries_of(best, count), titles, count, near=True)


def _entries_of(part: Bracketed, count: int) -> list[str]:
    if part.opening == "{":
        return numbered_fields(part)[:MAX_ENTRIES]
    entries = part.elements[:MAX_ENTRIES]
    last = _LAST_NUMBER.fullmatch(part.broken_off)
    return [*entries, last[1]] if last and _is_whole(last[1], count) else entries


def _form_of(text: str, part: Bracketed) -> list[str]:
    form = []
    around = text[: part.outer.start] + text[part.outer.end :]
    bare = FENCE.sub("", around)
    if bare != around:
        form.append("code fence")
    if bare.strip():
        form.append("prose around the answer")
    if not part.outer.closed:
        form.append("truncated JSON")
    elif not part.closed:
        form.append("missing bracket")
    if part.opening == "{":
        form.append("an object instead of a list")
    elif part.outer.opening == "[":
        form.append("no object around the list")
    return form


def _accepted(picks: Sequence[int], notes: list[str], wanted: int) -> ParsedRanking:
    """The distinct picks, cut to ``wanted``; -1 is a stranger."""
    known = [pick for pick in picks if pick >= 0]
    distinct = list(dict.fromkeys(known))
    if len(known) < len(picks):
        notes.append(f"strangers dropped: {len(picks) - len(known)}")
    if len(distinct) < len(known):
        notes.append(f"duplicates dropped: {len(known) - len(distinct)}")
    if len(distinct) > wanted:
        notes.append(f"too long: cut to {wanted}")
    elif len(distinct) < wanted:
        notes.append(f"short: {len(distinct)} of {wanted}")
    if len(distinct) < max(1, ceil(ACCEPTED_SHARE * wanted)):
        return _failed(f"too few candidates: {len(distinct)} of {wanted}", notes[:-1])
    return ParsedRanking(np.array(distinct[:wanted], np.int64), tuple(notes))


def _failed(reason: str, notes: list[str]) -> ParsedRanking:
    return ParsedRanking(np.zeros(0, np.int64), tuple(notes), reason)
