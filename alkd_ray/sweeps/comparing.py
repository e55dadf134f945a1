"""What the trials of a sweep say about its settings: means, tests over seeds, test metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from alkd_ray.evaluation.comparison import Comparison
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.metrics import names as names_of
from alkd_ray.evaluation.statistics import LEVEL, Estimate, bootstrap, holm, paired_t_test
from alkd_ray.sweeps.records import TrialRecord
from alkd_ray.sweeps.shared import Prepared, Shared
from alkd_ray.sweeps.standings import Standing
from alkd_ray.types import Ranks, RunStatus

ROLES = ("distilled", "student", "teacher")
_EXACT = 1e-12  # differences that vary less are the same in every seed
_BATCH_ROWS = 1_500  # series of seeds that are resampled at a time


@dataclass(frozen=True, slots=True)
class SweepReportData:
    """All that a sweep's report shows.

    Attributes:
        title: name of the sweep.
        generated: what made it (program, version, sweep).
        config: the sweep's file.
        metric: that ranks the settings, on the validation sessions.
        axes: dotted fields that vary.
        seeds: of every setting.
        cutoffs: k of recall and ndcg.
        resamples: bootstrap resamples.
        standings: the settings, best first.
        records: trial -> what became of it.
        shared: what was prepared and bought.
        tested: trial of a finalist -> role -> key in ``ranks``.
        ranks: key -> ranks of the test sessions.
        microusd: setting -> what its rankings and hints cost, those of all seeds.
        bought: setting -> what was made and bought for it.
        unit: of the money, ``USD`` or ``simulated USD``.
        status: how the sweep ended.
        reason: why, when it is not complete.
    """

    title: str
    generated: str
    config: Mapping[str, Any]
    metric: str
    axes: tuple[str, ...]
    seeds: tuple[int, ...]
    cutoffs: tuple[int, ...]
    resamples: int
    standings: tuple[Standing, ...]
    records: Mapping[str, TrialRecord]
    shared: Shared
    tested: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    microusd: Mapping[str, int] = field(default_factory=dict)
    bought: Mapping[str, Prepared] = field(default_factory=dict)
    unit: str = "USD"
    status: RunStatus = "complete"
    reason: str = ""

    @property
    def metrics(self) -> list[str]:
        """Those of the cutoffs, and the sweep's own."""
        return list(dict.fromkeys([*names_of(self.cutoffs), self.metric]))


@dataclass(frozen=True, slots=True)
class SeedTest:
    """A paired difference over seeds, best setting - another one.

    Attributes:
        mean: of the differences.
        half_width: of its 95% t-interval; None with one seed, or without spread.
        p_value: of the paired t-test, two-sided, not corrected; None where it says nothing.
        seeds: number of pairs.
    """

    mean: float
    half_width: float | None
    p_value: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class Tested:
    """A finalist's model on the test sessions.

    Attributes:
        role: ``distilled``, ``student`` or ``teacher``.
        keys: of its ranks, by seed; equal ones are the same models.
        estimates: metric -> mean and interval.
        by_seed: seed -> the sweep's metric.
    """

    role: str
    keys: tuple[str, ...]
    estimates: dict[str, Estimate]
    by_seed: dict[int, float]


@dataclass(slots=True)
class SettingRow:
    """A setting in the report.

    Attributes:
        standing: by the sweep's metric.
        label: for people.
        valid: metric -> standing.
        against: difference from the best setting; None for that itself, and without every seed.
        p_holm: of that difference, corrected for all settings that are compared.
        tested: role -> on the test sessions; {} unless a finalist.
        gain: distilled - student on the test sessions, corrected for all finalists.
    """

    standing: Standing
    label: str
    valid: dict[str, Standing]
    against: SeedTest | None = None
    p_holm: float | None = None
    tested: dict[str, Tested] = field(default_factory=dict)
    gain: Comparison | None = None


def analyse(data: SweepReportData) -> list[SettingRow]:
    """The settings with their tests, best first."""
    rows = []
    for standing in data.standings:
        trials = [data.records.get(f"{standing.setting.id}-{seed}") for seed in standing.by_seed]
        complete = [record for record in trials if record is not None]
        valid = {
            name: replace(
                standing,
                by_seed={r.seed: r.metrics[name] for r in complete if name in r.metrics},
            )
            for name in data.metrics
        }
        rows.append(SettingRow(standing, standing.setting.label, valid))
    whole = [row for row in rows if row.standing.is_whole]
    for row in whole[1:]:
        row.against = over_seeds(whole[0].standing, row.standing)
    known = [row for row in whole[1:] if row.against and row.against.p_value is not None]
    p_values = [row.against.p_value or 0.0 for row in known if row.against]
    for row, corrected in zip(known, holm(p_values), strict=True):
        row.p_holm = float(corrected)
    _measure(data, rows)
    return rows


def over_seeds(best: Standing, other: Standing) -> SeedTest:
    """The paired t-test over the seeds that both have."""
    seeds = [seed for seed in best.by_seed if seed in other.by_seed]
    first, second = (
        np.array([one.by_seed[seed] for seed in seeds])[None, :] for one in (best, other)
    )
    difference = (first - second)[0]
    mean = float(difference.mean())
    if len(seeds) < 2 or np.ptp(difference) < _EXACT:
        return SeedTest(mean if abs(mean) > _EXACT else 0.0, None, None, len(seeds))
    error = float(difference.std(ddof=1)) / len(seeds) ** 0.5
    width = error * float(stats.t.ppf(0.5 + LEVEL / 2, len(seeds) - 1))
    return SeedTest(mean, width, paired_t_test(first, second).p_value, len(seeds))


def _measure(data: SweepReportData, rows: Sequence[SettingRow]) -> None:
    """Fills in what finalists have: intervals over seeds and sessions, and the gains."""
    groups: dict[tuple[int, int], list[tuple[SettingRow, dict[str, tuple[str, ...]]]]] = {}
    for row in rows:
        trials = [data.tested.get(f"{row.standing.setting.id}-{seed}") for seed in data.seeds]
        if all(trials):
            keys = {role: tuple(t[role] for t in trials if t and role in t) for role in ROLES}
            shape = (len(trials), len(data.ranks[keys["distilled"][0]].ranks))
            groups.setdefault(shape, []).append((row, keys))
    for (seeds, _), group in groups.items():
        size = max(1, _BATCH_ROWS // (seeds * len(data.metrics) * len(ROLES)))
        for start in range(0, len(group), size):
            _measure_batch(data, group[start : start + size])
    gains = [row.gain for row in rows if row.gain]
    corrected = holm([gain.p_bootstrap for gain in gains])
    corrected_t = holm([gain.p_t_test for gain in gains])
    for row, p, p_t in zip(filter(lambda r: r.gain, rows), corrected, corrected_t, strict=True):
        assert row.gain is not None
        row.gain = replace(row.gain, p_bootstrap=float(p), p_t_test=float(p_t))


def _measure_batch(
    data: SweepReportData, batch: Sequence[tuple[SettingRow, dict[str, tuple[str, ...]]]]
) -> None:
    series = {
        (keys, name): np.stack([metric_values(data.ranks[key], name) for key in keys])  # [R, S]
        for _, by_role in batch
        for keys in by_role.values()
        for name in data.metrics
    }
    place = {cell: number for number, cell in enumerate(series)}
    resampled = bootstrap(list(series.values()), data.resamples, data.seeds[0])
    for row, by_role in batch:
        for role, keys in by_role.items():
            means = series[keys, data.metric].mean(1)
            row.tested[role] = Tested(
                role,
                keys,
                {name: resampled.estimate(place[keys, name]) for name in data.metrics},
                dict(zip(data.seeds, map(float, means), strict=True)),
            )
        first, second = ((by_role[role], data.metric) for role in ("distilled", "student"))
        difference = resampled.difference(place[first], place[second])
        t_test = paired_t_test(series[first], series[second])
        row.gain = Comparison(
            row.label, "student", data.metric, difference, difference.p_value, t_test.p_value
        )
