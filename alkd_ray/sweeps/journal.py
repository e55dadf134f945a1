"""The journal of a sweep: what happened, one JSON object a line, on disk before it counts.

It is the truth of a sweep; the table, the report and MLflow are views of it. One process writes it
at a time. A line that was cut off by a crash is dropped when the next process opens the file.
"""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from alkd_ray import artifacts
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.sweeps.config import Sweep
from alkd_ray.sweeps.records import TrialRecord

FILE = "journal.jsonl"


class Journal:
    """Open for writing. Use as a context manager; the lock ends with the process."""

    def __init__(self, folder: Path) -> None:
        """Opens or begins the journal in ``folder``.

        Raises:
            AlkdError: another process writes it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock: IO[str] = (folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise AlkdError(
                f"{folder}: another process is running this sweep; wait for it, or end it"
            ) from None
        _cut_off_torn_line(folder / FILE)
        self._file = (folder / FILE).open("a", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.close()

    def add(self, event: str, **facts: Any) -> None:
        """Writes a line, durably."""
        self._write(event, [facts])

    def add_trials(self, records: list[TrialRecord]) -> None:
        """Writes what became of trials, durably, all at once."""
        self._write("trial", [record.as_json() for record in records])

    def _write(self, event: str, lines: list[dict[str, Any]]) -> None:
        head = {"event": event, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        self._file.writelines(
            json.dumps({**head, **facts}, ensure_ascii=False, default=str) + "\n" for facts in lines
        )
        self._file.flush()
        os.fsync(self._file.fileno())


def folder_of(sweep: Sweep) -> Path:
    """Where a sweep's journal lies."""
    return artifacts.run_root() / "sweeps" / sweep.sweep_id


def read(folder: Path) -> list[dict[str, Any]]:
    """All events, oldest first; [] without a journal.

    Raises:
        InputError: a line in the middle is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return []
    events = []
    lines = file.read_text("utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line feed is torn
        try:
            events.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{file}, line {number}: is damaged ({error}); mend it") from error
    return events


def trials(events: list[dict[str, Any]]) -> dict[str, TrialRecord]:
    """Trial -> its record, the latest one that :func:`hides` the earlier ones."""
    found: dict[str, TrialRecord] = {}
    for event in events:
        if event["event"] != "trial":
            continue
        facts = {name: value for name, value in event.items() if name not in ("event", "at")}
        record = TrialRecord.from_json(facts)
        if hides(record, found.get(record.trial)):
            found[record.trial] = record
    return found


def hides(record: TrialRecord, earlier: TrialRecord | None) -> bool:
    """Whether a trial's record takes the place of an earlier one, if there is one.

    A failure does not, of what was done before with the same inputs: that is still true.
    """
    return earlier is None or record.status != "failed" or record.inputs != earlier.inputs


def last(events: list[dict[str, Any]], event: str) -> dict[str, Any] | None:
    """The latest event of a kind."""
    return next((found for found in reversed(events) if found["event"] == event), None)


def _cut_off_torn_line(file: Path) -> None:
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as opened:
            opened.truncate(whole)
