"""Reads sessions to recommend for from a JSON Lines or CSV file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from alkd_ray.errors import InputError

CSV_COLUMNS = ("session_id", "item_id")


def read_sessions(file: Path) -> dict[str, list[str]]:
    """Sessions by name, in file order; each the source ids of its items, oldest first.

    ``.jsonl``: a line is a list of item ids, named by its line number, or an object with
    ``session`` (the list) and optionally ``session_id`` (its name). ``.csv``: the columns
    ``session_id`` and ``item_id``, a line an item; a session's lines stand in order of time.

    Raises:
        InputError: another kind of file, or a line that cannot be read, with its number.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if file.suffix.lower() not in readers:
        raise InputError(f"{file}: sessions are read from {' or '.join(readers)} files")
    try:
        sessions = readers[file.suffix.lower()](file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    if not sessions:
        raise InputError(f"{file}: holds no sessions")
    return sessions


def _read_jsonl(file: Path) -> dict[str, list[str]]:
    sessions: dict[str, list[str]] = {}
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise InputError(f"{file}, line {number}: is not JSON ({error})") from error
            name = str(number)
            if isinstance(value, dict):
                name, value = str(value.get("session_id", number)), value.get("session")
            if not isinstance(value, list) or not all(isinstance(i, str | int) for i in value):
                raise InputError(
                    f"{file}, line {number}: is not a list of item ids, nor an object whose "
                    "`session` is one"
                )
            if name in sessions:
                raise InputError(f"{file}, line {number}: session_id {name!r} is there twice")
            sessions[name] = [str(source) for source in value]
    return sessions


def _read_csv(file: Path) -> dict[str, list[str]]:
    sessions: dict[str, list[str]] = {}
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = csv.DictReader(opened)
        missing = [name for name in CSV_COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise InputError(f"{file}: lacks the column {', '.join(missing)}")
        for row in rows:
            if not all(row[name] for name in CSV_COLUMNS):
                raise InputError(f"{file}, line {rows.line_num}: a field is empty")
            sessions.setdefault(row["session_id"], []).append(row["item_id"])
    return sessions
