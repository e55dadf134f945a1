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
BASELINE = "baseline"
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
        baselines: finalist -> plain count -> key in ``ranks``.
        ranks: key -> ranks of the test sessions.
        microusd: setting -> what its rankings and hints cost, those of all seeds.
        bought: setting -> what was made and bought for it.
        unit: of the money, ``USD`` or ``simulated USD``.
        replayed: all rankings came from a recording, and nothing was paid.
        selecting: the axis that varies the strategy of selection; "" = none does.
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
    baselines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    microusd: Mapping[str, int] = field(default_factory=dict)
    bought: Mapping[str, Prepared] = field(default_factory=dict)
    unit: str = "USD"
    replayed: bool = False
    selecting: str = ""
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
    """A finalist's model, or a plain count beside it, on the test sessions.

    Attributes:
        role: ``distilled``, ``student``, ``teacher`` or ``baseline``.
        name: the role, or the plain count's name.
        keys: of its ranks, by seed; equal ones are the same models. A plain count has one.
        estimates: metric -> mean and interval.
        by_seed: seed -> the sweep's metric; {} of a plain count, which draws nothing.
    """

    role: str
    name: str
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
        plain: name -> a plain count on the same sessions.
        gain: distilled - student on the test sessions, corrected for all finalists.
        against_plain: the same for distilled - best plain count. That is chosen by the sweep's
            metric on the test sessions themselves, which can only favour it.
    """

    standing: Standing
    label: str
    valid: dict[str, Standing]
    against: SeedTest | None = None
    p_holm: float | None = None
    tested: dict[str, Tested] = field(default_factory=dict)
    plain: dict[str, Tested] = field(default_factory=dict)
    gain: Comparison | None = None
    against_plain: Comparison | None = None


@dataclass(frozen=True, slots=True)
class _Finalist:
    """A row to be measured: role -> keys by seed, plain count -> its key alone."""

    row: SettingRow
    keys: dict[str, tuple[str, ...]]
    plain: dict[str, tuple[str, ...]]


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
    """Fills in what finalists have: intervals over seeds and sessions, and the differences."""
    groups: dict[tuple[int, int], list[_Finalist]] = {}
    for row in rows:
        setting = row.standing.setting.id
        trials = [data.tested.get(f"{setting}-{seed}") for seed in data.seeds]
        if all(trials):
            keys = {role: tuple(t[role] for t in trials if t and role in t) for role in ROLES}
            plain = {name: (key,) for name, key in data.baselines.get(setting, {}).items()}
            shape = (len(trials), len(data.ranks[keys["distilled"][0]].ranks))
            groups.setdefault(shape, []).append(_Finalist(row, keys, plain))
    for (seeds, _), group in groups.items():
        size = max(1, _BATCH_ROWS // (seeds * len(data.metrics) * len(ROLES)))
        for start in range(0, len(group), size):
            _measure_batch(data, group[start : start + size])
    gained = [row for row in rows if row.gain]
    for row, gain in zip(gained, _corrected([r.gain for r in gained if r.gain]), strict=True):
        row.gain = gain
    beside = [row for row in rows if row.against_plain]
    found = _corrected([row.against_plain for row in beside if row.against_plain])
    for row, against in zip(beside, found, strict=True):
        row.against_plain = against


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """The same with p-values for being so many (Holm)."""
    corrected = holm([one.p_bootstrap for one in found])
    corrected_t = holm([one.p_t_test for one in found])
    return [
        replace(one, p_bootstrap=float(p), p_t_test=float(p_t))
        for one, p, p_t in zip(found, corrected, corrected_t, strict=True)
    ]


def _measure_batch(data: SweepReportData, batch: Sequence[_Finalist]) -> None:
    series = {
        (keys, name): np.stack([metric_values(data.ranks[key], name) for key in keys])  # [R, S]
        for one in batch
        for keys in (*one.keys.values(), *one.plain.values())
        for name in data.metrics
    }
    place = {cell: number for number, cell in enumerate(series)}
    resampled = bootstrap(list(series.values()), data.resamples, data.seeds[0])

    def measured(role: str, name: str, keys: tuple[str, ...]) -> Tested:
        means = map(float, series[keys, data.metric].mean(1))
        return Tested(
            role,
            name,
            keys,
            {metric: resampled.estimate(place[keys, metric]) for metric in data.metrics},
            {} if role == BASELINE else dict(zip(data.seeds, means, strict=True)),
        )

    def against(row: SettingRow, other: Tested) -> Comparison:
        first, second = (row.tested["distilled"].keys, data.metric), (other.keys, data.metric)
        difference = resampled.difference(place[first], place[second])
        p_t_test = paired_t_test(series[first], series[second]).p_value
        return Comparison(
            row.label, other.name, data.metric, difference, difference.p_value, p_t_test
        )

    for one in batch:
        row = one.row
        row.tested = {role: measured(role, role, keys) for role, keys in one.keys.items()}
        row.plain = {name: measured(BASELINE, name, keys) for name, keys in one.plain.items()}
        row.gain = against(row, row.tested["student"])
        if row.plain:
            best = max(row.plain.values(), key=lambda count: count.estimates[data.metric].mean)
            row.against_plain = against(row, best)
