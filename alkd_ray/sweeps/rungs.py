"""Which trials are trained to their end: asynchronous successive halving (Li et al., MLSys 2020).

At each rung, a number of training steps, a trial goes on if it is among the best ``1/reduction`` of
those that reached the rung so far with the same seed. Nobody waits for anybody: the first ones at
a rung go on, and what is let on depends on who came first. So a sweep with this scheduler need not
decide the same way twice; one without it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from alkd_ray.sweeps.config import AshaConfig
from alkd_ray.sweeps.records import TrialRecord


class DroppedError(Exception):
    """The scheduler ends a trial."""


def next_rung(config: AshaConfig, step: int) -> int:
    """The first rung above ``step``."""
    rung = config.first_step
    while rung <= step:
        rung = max(rung + 1, round(rung * config.reduction))
    return rung


class Rungs:
    """The values at each rung, by seed; a setting is dropped as soon as one of its trials is."""

    def __init__(self, config: AshaConfig, records: Iterable[TrialRecord] = ()) -> None:
        """Begins with what the trials of an earlier process reached."""
        self.config = config
        self._values: dict[tuple[int, int], dict[str, float]] = {}  # (seed, rung) -> trial -> value
        self._dropped: set[str] = set()
        for record in records:
            for step, value in record.rungs.items():
                self._values.setdefault((record.seed, step), {})[record.trial] = value
            if record.status == "dropped":
                self._dropped.add(record.setting.id)

    def is_dropped(self, setting: str) -> bool:
        """Whether another trial of the setting was ended."""
        return setting in self._dropped

    def goes_on(self, trial: str, setting: str, seed: int, rung: int, value: float) -> bool:
        """Takes note of a trial's value at a rung, and says whether it goes on."""
        if setting in self._dropped:
            return False
        values = self._values.setdefault((seed, rung), {})
        values[trial] = value
        better = sum(other > value for other in values.values())
        if better >= math.ceil(len(values) / self.config.reduction):
            self._dropped.add(setting)
            return False
        return True
