"""All systems of a run measured on the same test sessions, and the differences that matter.

Three differences are taken, in each metric: distilled - student, distilled - teacher, and
distilled - best plain baseline. They are one family: their p-values are corrected together (Holm).
The best plain baseline is the one with the largest ndcg at the largest cutoff on the test sessions
themselves; that choice favours the baseline, never the distilled student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alkd_ray.errors import InputError
from alkd_ray.evaluation import metrics
from alkd_ray.evaluation.statistics import (
    LEVEL,
    Bootstrap,
    Difference,
    Estimate,
    bootstrap,
    holm,
    paired_t_test,
)
from alkd_ray.types import FloatArray, Ranks

Role = Literal["baseline", "teacher", "student", "distilled"]

NO_DIFFERENCE = "no difference shown"
UNCORRECTED = ", uncorrected"


@dataclass(frozen=True, slots=True)
class SystemRow:
    """A system and what it was tested with.

    Attributes:
        name: as shown.
        role: ``baseline``, ``teacher``, ``student`` or ``distilled``.
        ranks: one per seed (one alone for a baseline, which draws nothing).
        dim: size of its embeddings, None where it has none.
        parameters: number of its weights, None where it has none.
    """

    name: str
    role: Role
    ranks: tuple[Ranks, ...]
    dim: int | None
    parameters: int | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A system's row of the table.

    Attributes:
        system: what was measured.
        estimates: metric -> mean and interval.
        hits: ``recall@k`` -> sessions whose target is among the k best, by seed.
    """

    system: SystemRow
    estimates: dict[str, Estimate]
    hits: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference in one metric, first - second, with its tests.

    Attributes:
        first: name of a system.
        second: name of the system it is compared with.
        metric: the metric.
        difference: with its interval and the p-value of the paired bootstrap.
        p_bootstrap: that p-value after Holm's correction.
        p_t_test: p-value of the paired t-test over sessions after Holm's correction.
    """

    first: str
    second: str
    metric: str
    difference: Difference
    p_bootstrap: float
    p_t_test: float

    @property
    def verdict(self) -> str:
        """What may be said of the difference: ``no difference shown``, ``higher``, ``lower``.

        ``, uncorrected`` is added where the interval leaves out 0, but not after Holm's correction.
        """
        if self.difference.covers_zero:
            return NO_DIFFERENCE
        direction = "higher" if self.difference.mean > 0 else "lower"
        return direction if self.p_bootstrap < 1 - LEVEL else direction + UNCORRECTED


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that the report's numbers are read from.

    Attributes:
        metrics: names, in the order of the columns.
        main_metric: ndcg at the largest cutoff; figures and the choice of the baseline use it.
        main_recall: recall at the same cutoff, whose hits are shown.
        sessions: number of test sessions.
        seeds: number of seeds.
        resamples: bootstrap resamples.
        systems: in the order given.
        best_baseline: name of the best plain baseline, "" without one.
        comparisons: by pair of systems, then by metric.
    """

    metrics: tuple[str, ...]
    main_metric: str
    main_recall: str
    sessions: int
    seeds: int
    resamples: int
    systems: tuple[Measured, ...]
    best_baseline: str
    comparisons: tuple[Comparison, ...]

    def named(self, name: str) -> Measured:
        """The system of a name."""
        return next(m for m in self.systems if m.system.name == name)


def analyse(
    systems: Sequence[SystemRow], cutoffs: Sequence[int], resamples: int, seed: int
) -> Analysis:
    """Measures and compares ``systems``.

    Args:
        systems: with ranks of the same test sessions; several seeds stand in the same order.
        cutoffs: k of recall and ndcg.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        InputError: two systems were not tested on the same sessions, or with the same seeds.
    """
    _check(systems)
    names = tuple(metrics.names(cutoffs))
    values = [_values(system, name) for system in systems for name in names]
    resampled = bootstrap(values, resamples, seed)
    cell = {
        (system.name, name): row * len(names) + column
        for row, system in enumerate(systems)
        for column, name in enumerate(names)
    }
    recalls = [name for name in names if name.startswith("recall")]
    measured = tuple(
        Measured(
            system,
            {name: resampled.estimate(cell[system.name, name]) for name in names},
            {
                name: tuple(int(row.sum()) for row in values[cell[system.name, name]])
                for name in recalls
            },
        )
        for system in systems
    )
    main = f"ndcg@{max(cutoffs)}"
    baselines = [m for m in measured if m.system.role == "baseline"]
    best = max(baselines, key=lambda m: m.estimates[main].mean).system.name if baselines else ""
    pairs = _pairs(systems, best)
    return Analysis(
        metrics=names,
        main_metric=main,
        main_recall=f"recall@{max(cutoffs)}",
        sessions=len(systems[0].ranks[0].ranks),
        seeds=max(len(system.ranks) for system in systems),
        resamples=resamples,
        systems=measured,
        best_baseline=best,
        comparisons=_compare(pairs, names, cell, resampled),
    )


def _values(system: SystemRow, metric: str) -> FloatArray:
    return np.stack([metrics.metric_values(ranks, metric) for ranks in system.ranks])  # [R, S]


def _pairs(systems: Sequence[SystemRow], best: str) -> list[tuple[str, str]]:
    by_role = {system.role: system.name for system in systems if system.role != "baseline"}
    if "distilled" not in by_role:
        return []
    others = [by_role.get("student", ""), by_role.get("teacher", ""), best]
    return [(by_role["distilled"], other) for other in others if other]


def _compare(
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    cell: dict[tuple[str, str], int],
    resampled: Bootstrap,
) -> tuple[Comparison, ...]:
    tests = [(first, second, name) for first, second in pairs for name in names]
    differences, t_tests = [], []
    for first, second, name in tests:
        a, b = cell[first, name], cell[second, name]
        differences.append(resampled.difference(a, b))
        t_tests.append(paired_t_test(resampled.series[a], resampled.series[b]).p_value)
    corrected = holm([difference.p_value for difference in differences])
    corrected_t = holm(t_tests)
    return tuple(
        Comparison(*test, difference, float(p), float(p_t))
        for test, difference, p, p_t in zip(tests, differences, corrected, corrected_t, strict=True)
    )


def _check(systems: Sequence[SystemRow]) -> None:
    if not systems or not all(system.ranks for system in systems):
        raise InputError("there are no ranks to report; evaluate the systems first")
    ids = systems[0].ranks[0].session_ids
    if not len(ids):
        raise InputError("there are no test sessions to report on; check the split of the data")
    if len({system.name for system in systems}) < len(systems):
        raise InputError("two systems of a report have the same name; rename one")
    seeds = {len(system.ranks) for system in systems} - {1}
    for system in systems:
        if len(seeds) > 1 or any(
            not np.array_equal(ids, ranks.session_ids) for ranks in system.ranks
        ):
            raise InputError(
                f"{system.name} was not tested on the sessions and seeds of {systems[0].name}; "
                "evaluate both on the same dataset, with the same seeds"
            )
