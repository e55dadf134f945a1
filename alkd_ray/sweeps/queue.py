"""What is left of a sweep: which trials go into the next pack, and what their results decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from alkd_ray.sweeps.records import Setting, Trial, TrialRecord
from alkd_ray.sweeps.search import Search

# A pack's work is to take at least so many times what it costs to start one.
WORK_OVER_OVERHEAD = 10.0
LONGEST_PACK_SECONDS = 60.0
MOST_IN_PACK = 256


@dataclass(slots=True)
class PackSizes:
    """How many trials a pack takes, from what packs took so far.

    Attributes:
        fixed: a size that was asked for; None = measured.
        trial_seconds: mean of the trials so far.
        overhead_seconds: mean of what a pack took beside its trials.
    """

    fixed: int | None = None
    trial_seconds: float = 0.0
    overhead_seconds: float = 1.0
    _trials: int = 0
    _packs: int = 0

    def add(self, trial_seconds: Sequence[float], pack_seconds: float) -> None:
        """Learns from a pack that is over."""
        if not trial_seconds:
            return
        work = sum(trial_seconds)
        before = self.trial_seconds * self._trials
        self._trials += len(trial_seconds)
        self.trial_seconds = (before + work) / self._trials
        overhead = max(pack_seconds - work, 0.0)
        self._packs += 1
        self.overhead_seconds += (overhead - self.overhead_seconds) / self._packs

    def next(self, left: int, actors: int) -> int:
        """Trials for the next pack, of ``left``, where ``actors`` work at once.

        Large enough to pay its start, small enough that all have work until the end.
        """
        if self.fixed is not None:
            return self.fixed
        if not self._trials:
            return 1  # a first look
        seconds = max(self.trial_seconds, 1e-3)
        wanted = math.ceil(WORK_OVER_OVERHEAD * self.overhead_seconds / seconds)
        most = max(1, math.floor(LONGEST_PACK_SECONDS / seconds))
        share = max(1, math.ceil(left / (2 * max(actors, 1))))
        return max(1, min(wanted, most, share, MOST_IN_PACK))


def still_true(
    records: Mapping[str, TrialRecord], trials_of: Callable[[Setting], Sequence[Trial]]
) -> dict[str, TrialRecord]:
    """Those of ``records`` whose inputs are what they were: more may have been bought since.

    Args:
        records: trial -> what became of it, earlier.
        trials_of: the trials of a setting as they are now.
    """
    settings = {record.setting.id: record.setting for record in records.values()}
    inputs = {t.id: t.inputs for setting in settings.values() for t in trials_of(setting)}
    return {name: one for name, one in records.items() if inputs.get(name) == one.inputs}


@dataclass(slots=True)
class _Open:
    """A setting under way."""

    setting: Setting
    left: set[str]
    values: list[float] = field(default_factory=list)


class TrialQueue:
    """Trials to be done; settings come from the search, in packs of one backbone.

    Attributes:
        records: trial -> what became of it.
        running: trials that were given out.
    """

    def __init__(
        self,
        search: Search,
        trials_of: Callable[[Setting], Sequence[Trial]],
        backbone_of: Callable[[Setting], str],
        metric: str,
        seeds: int,
        records: Mapping[str, TrialRecord],
    ) -> None:
        """Takes over where an earlier process ended.

        Args:
            search: where settings come from.
            trials_of: the trials of a setting, one for each seed.
            backbone_of: what trials of one pack must share.
            metric: that the search is told.
            seeds: trials of a setting.
            records: of trials that are over, and :func:`still_true`.
        """
        self.search = search
        self.records = dict(records)
        self._ahead = set(records)  # those whose settings the search has not come to again
        self.running: dict[str, Trial] = {}
        self._trials_of = trials_of
        self._backbone_of = backbone_of
        self._metric = metric
        self._per_setting = seeds
        self._waiting: dict[str, list[Trial]] = {}  # backbone -> trials, in order
        self._open: dict[str, _Open] = {}

    @property
    def waiting(self) -> int:
        """Trials that wait for an actor."""
        return sum(map(len, self._waiting.values()))

    @property
    def left(self) -> int:
        """Trials that are neither over nor given out, as far as they are known."""
        to_come = self.search.left * self._per_setting - len(self._ahead)
        return max(to_come, 0) + self.waiting

    @property
    def is_over(self) -> bool:
        """Nothing is left to give out, and nothing under way can bring more."""
        self._fill(1)
        return not self.waiting and not self.running

    def take(self, most: int) -> list[Trial]:
        """Up to ``most`` trials of one backbone; [] = none at present."""
        self._fill(most)
        if not self.waiting:
            return []
        backbone = max(self._waiting, key=lambda name: len(self._waiting[name]))
        trials = self._waiting[backbone][:most]
        del self._waiting[backbone][:most]
        self.running |= {trial.id: trial for trial in trials}
        return trials

    def give_back(self, trials: Sequence[Trial]) -> None:
        """Trials whose actor was lost wait again."""
        for trial in trials:
            if self.running.pop(trial.id, None) is not None:
                self._waiting.setdefault(self._backbone_of(trial.setting), []).insert(0, trial)

    def knows(self, record: TrialRecord) -> bool:
        """Whether the trial was told of before: an actor that took over from a dead one repeats."""
        known = self.records.get(record.trial)
        return known is not None and known.inputs == record.inputs

    def tell(self, record: TrialRecord) -> None:
        """Takes note of a trial that is over."""
        self.running.pop(record.trial, None)
        if not self.knows(record):
            self.records[record.trial] = record
            self._close(record)

    def _fill(self, wanted: int) -> None:
        while self.waiting < wanted:
            setting = self.search.next()
            if setting is None:
                return
            trials = self._trials_of(setting)
            self._open[setting.id] = _Open(setting, {trial.id for trial in trials})
            for trial in trials:
                self._ahead.discard(trial.id)
                known = self.records.get(trial.id)
                if known is None:
                    backbone = self._backbone_of(setting)
                    self._waiting.setdefault(backbone, []).append(trial)
                else:
                    self._close(known)

    def _close(self, record: TrialRecord) -> None:
        """Tells the search once the last trial of a setting is over."""
        found = self._open.get(record.setting.id)
        if found is None or record.trial not in found.left:
            return
        found.left.discard(record.trial)
        if record.status == "complete":
            found.values.append(record.metrics[self._metric])
        if not found.left:
            del self._open[record.setting.id]
            value = float(np.mean(found.values)) if found.values else None
            self.search.tell(found.setting, value)
