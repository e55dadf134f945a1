"""How the settings of a sweep compare: means over the seeds, best first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from alkd_ray.evaluation.statistics import LEVEL
from alkd_ray.sweeps.records import Setting, TrialRecord


@dataclass(frozen=True, slots=True)
class Standing:
    """A setting and what its trials reached on the validation sessions.

    Attributes:
        setting: the setting.
        by_seed: seed -> metric's value, of complete trials.
        wanted: seeds in all.
        dropped: trials that the scheduler ended.
        failed: trials that failed.
    """

    setting: Setting
    by_seed: dict[int, float]
    wanted: int
    dropped: int
    failed: int

    @property
    def is_whole(self) -> bool:
        """Every seed has a value; only then it is compared with others."""
        return len(self.by_seed) == self.wanted

    @property
    def mean(self) -> float:
        """Over the seeds that have a value; nan without any."""
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else math.nan

    @property
    def half_width(self) -> float | None:
        """Of the 95% t-interval of the mean over seeds; None with one seed."""
        values = list(self.by_seed.values())
        if len(values) < 2:
            return None
        spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return spread * float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1))

    @property
    def shown(self) -> str:
        """``.0123 ± .0004``."""
        if not self.by_seed:
            return "-"
        width = self.half_width
        return f"{self.mean:.4f}" if width is None else f"{self.mean:.4f} ± {width:.4f}"

    @property
    def state(self) -> str:
        """``whole``, or what is missing."""
        missing = self.wanted - len(self.by_seed) - self.dropped - self.failed
        parts = [(self.dropped, "dropped"), (self.failed, "failed"), (missing, "not run")]
        return ", ".join(f"{count} {what}" for count, what in parts if count) or "whole"


def standings(records: Iterable[TrialRecord], metric: str, seeds: Sequence[int]) -> list[Standing]:
    """One for each setting, best mean first, those with a missing seed after all others."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(record.setting.id, []).append(record)
    found = [
        Standing(
            group[0].setting,
            {
                record.seed: record.metrics[metric]
                for record in sorted(group, key=lambda record: record.seed)
                if record.status == "complete"
            },
            len(seeds),
            sum(record.status == "dropped" for record in group),
            sum(record.status == "failed" for record in group),
        )
        for group in groups.values()
    ]
    return sorted(
        found,
        key=lambda s: (not s.is_whole, -s.mean if s.by_seed else math.inf, s.setting.id),
    )


def finalists(found: Sequence[Standing], wanted: int | str) -> list[Standing]:
    """The best settings with a value for every seed; ``all`` = all of those."""
    whole = [standing for standing in found if standing.is_whole]
    return whole if wanted == "all" else whole[: int(wanted)]
