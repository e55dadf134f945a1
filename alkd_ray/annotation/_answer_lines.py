"""Rankings without brackets: one entry a line, or numbers or titles in a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from alkd_ray.annotation._answer_entries import (
    MAX_ENTRIES,
    Reading,
    is_marked,
    read_entries,
    undecorated,
)
from alkd_ray.annotation._titles import TitleIndex

FENCE = re.compile(r"```\w*")

_NUMBER_RUN = re.compile(
    r"(?<![\w.#])#?[0-9]{1,6}(?:(?:\s*+(?:,|;|>|→|->)\s*+(?:and\s++)?|\s++(?:and\s++)?)#?[0-9]{1,6}"
    r"(?![\w]))+"
)
_LABEL = re.compile(r"[^0-9,;>→:]{0,80}:\s*+")
_SEPARATOR = re.compile(r"[,;>→]")


def best_lines(text: str, titles: TitleIndex, count: int) -> tuple[Reading, list[str]]:
    """The best of: all lines that are entries, taken together; each row of numbers; of titles."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not FENCE.fullmatch(line)][:MAX_ENTRIES]
    choices = [(_list_in_lines(lines, titles, count), "a list in lines")]
    runs = [_number_run(line) for line in lines]
    for is_run, group in groupby(runs, key=bool):
        if is_run:
            entries = [number for run in group for number in run][:MAX_ENTRIES]
            reading = read_entries(entries, titles, count, near=False)
            choices.append((reading, "numbers in running text"))
    for line in lines:
        row = _title_row(line, titles, count)
        if row is not None:
            choices.append((row, "a list in lines"))
    best, name = max(choices, key=lambda choice: choice[0].distinct)
    return best, [name]


def _list_in_lines(lines: Sequence[str], titles: TitleIndex, count: int) -> Reading:
    """Lines that are entries; others are prose, unless a mark says that they should be entries."""
    likely = [line for line in lines if is_marked(line) or not _number_run(line)]
    likely = [line for line in likely if not line.startswith("|")]
    reading = read_entries(likely, titles, count, near=True)
    kept = [
        pick
        for pick, line in zip(reading.picks, likely, strict=True)
        if pick is not None or is_marked(line)
    ]
    return Reading(kept, reading.how)


def _number_run(line: str) -> list[str]:
    """The longest row of numbers in a line, as texts; empty where there is none."""
    rows = [found[0] for found in _NUMBER_RUN.finditer(line)]
    return re.findall("[0-9]+", max(rows, key=len)) if rows else []


def _title_row(line: str, titles: TitleIndex, count: int) -> Reading | None:
    """Titles in one line, with commas between them; None unless half the parts are titles."""
    if line.startswith("|") or not _SEPARATOR.search(line):
        return None
    label = _LABEL.match(line)
    readings = []
    for start in {0, label.end() if label else 0}:  # what stands before a colon may be a title
        parts = _SEPARATOR.split(undecorated(line[start:]))[:MAX_ENTRIES]
        reading = read_entries(parts, titles, count, near=True)
        if 2 * reading.distinct >= len(parts):
            readings.append(reading)
    return max(readings, key=lambda reading: reading.distinct, default=None)
