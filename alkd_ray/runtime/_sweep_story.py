"""What a sweep's journal tells, taken in line by line while it is being written."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from alkd_ray.config import canonical_hash
from alkd_ray.errors import InputError
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps.records import TrialRecord

LAYOUT = 1  # of a setting's run; raised, all settings are written anew


class Story:
    """What a sweep's journal has told so far; read on from where it was left.

    Attributes:
        records: trial -> its record, as :func:`alkd_ray.sweeps.journal.trials` has it.
        by_setting: setting -> its trials.
        since: setting -> when its first trial began, in milliseconds.
        until: setting -> when its last trial was over, in milliseconds.
        at: setting -> when the latest of it was written, its test perhaps, in milliseconds.
        tested: trial -> role -> key of its evaluation, while its student is the one tested.
        plain: finalist -> plain count -> key of its evaluation, as last tested.
        plain_at: when it became that, in milliseconds; tested again, it is the same.
        shared: figures of the shared stages; requests sent are those of all times.
        best: points of the best mean so far, with ``step`` = trials over.
        ended: the latest event of the end; None = it was begun again since, or never ended.
        began: when the sweep was first begun, in milliseconds.
        now: when the last event was written, in milliseconds.
        trials: trials that were over, those of a second time too.
        changed: settings with something new.
    """

    def __init__(self, file: Path, metric: str, seeds: int) -> None:
        self.records: dict[str, TrialRecord] = {}
        self.by_setting: dict[str, dict[str, None]] = {}
        self.since: dict[str, int] = {}
        self.until: dict[str, int] = {}
        self.at: dict[str, int] = {}
        self.tested: dict[str, dict[str, str]] = {}
        self.plain: dict[str, dict[str, str]] = {}
        self.shared: dict[str, Any] = {}
        self.best: list[dict[str, float]] = []
        self.ended: dict[str, Any] | None = None
        self.began = self.now = self.trials = self.plain_at = 0
        self.changed: set[str] = set()
        self._file, self._metric, self._seeds = file, metric, seeds
        self._offset = 0

    def read_on(self) -> None:
        """Takes in the lines that were written since; the last one may still be in the making.

        Raises:
            InputError: a line is damaged.
        """
        with self._file.open("rb") as opened:
            opened.seek(self._offset)
            content = opened.read()
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        for line in content[:whole].splitlines():
            try:
                event = json.loads(line)
            except ValueError as error:
                raise InputError(f"{self._file}: a line is damaged ({error}); mend it") from error
            self.now = int(1000 * datetime.fromisoformat(event["at"]).timestamp())
            self.began = self.began or self.now
            kind = event["event"]
            if kind == "trial":
                self._trial(event)
            elif kind == "shared":
                sent = self.shared.get("sent", 0) + event["sent"]
                self.shared = {**event, "sent": sent}
            elif kind == "tested":
                for trial, keys in event["keys"].items():
                    self.tested[trial] = keys
                    self._changed(self.records[trial].setting.id)
                plain = event.get("baselines", {})  # earlier versions wrote none
                if plain != self.plain:
                    self.plain, self.plain_at = plain, self.now
            self.ended = event if kind == "ended" else None

    def new(self, only_over: bool) -> list[str]:
        """Settings with something new, in the order of the journal."""
        return [
            setting
            for setting, trials in self.by_setting.items()
            if setting in self.changed and (len(trials) >= self._seeds or not only_over)
        ]

    def content_of(self, setting: str) -> str:
        """Hash of all that is known of a setting; outputs are kept by content, so of those too."""
        trials = self.by_setting[setting]
        facts = [(self.records[name].as_json(), self.tested.get(name)) for name in trials]
        return canonical_hash([LAYOUT, facts])

    def _changed(self, setting: str) -> None:
        self.at[setting] = self.now
        self.changed.add(setting)

    def _trial(self, event: dict[str, Any]) -> None:
        self.trials += 1
        [(trial, record)] = journals.trials([event]).items()
        known = self.records.get(trial)
        if not journals.hides(record, known):
            return
        if known is not None and known.distilled != record.distilled:
            self.tested.pop(trial, None)
        self.records[trial] = record
        setting = record.setting.id
        self.by_setting.setdefault(setting, {})[trial] = None
        self.since.setdefault(setting, self.now - int(1000 * record.seconds))
        self.until[setting] = self.now
        self._changed(setting)
        records = [self.records[name] for name in self.by_setting[setting]]
        values = [r.metrics[self._metric] for r in records if r.status == "complete"]
        mean = float(np.mean(values)) if len(values) == self._seeds else -np.inf
        if mean > (self.best[-1]["mean"] if self.best else -np.inf):
            seconds = (self.now - self.began) / 1000
            self.best.append({"step": self.trials, "seconds": seconds, "mean": mean})
