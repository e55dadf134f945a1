"""Ours beside the paper's: the mean of every cell with its interval, and the differences.

Pure computation over per-session values; see :mod:`alkd_ray.evaluation.statistics` for what the
intervals cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from alkd_ray.evaluation.comparison import Comparison
from alkd_ray.evaluation.statistics import (
    RESAMPLES_PER_DIFFERENCE,
    Estimate,
    bootstrap,
    holm,
    paired_t_test,
)
from alkd_ray.reproduction.published import PublishedCell, published
from alkd_ray.reproduction.studies import Study
from alkd_ray.types import FloatArray

Role = Literal["distilled", "student", "teacher", "baseline"]
Verdict = Literal["", "inside", "paper higher", "paper lower"]

# Our names of what the paper calls otherwise.
_PAPER_NAMES = {"student": "Student", "teacher": "Teacher"}


def reference_of(metric: str) -> str:
    """What the paper's number of a metric is to be held against: its ndcg is no ndcg."""
    return f"reference_{metric}" if metric.startswith("ndcg") else metric


@dataclass(frozen=True, slots=True)
class Entry:
    """One system in one place of a table or figure.

    Attributes:
        dataset: name of the dataset.
        row: value of the study's rows, as text; "" for a plain baseline, which has no row.
        column: its system, as text.
        role: what kind of system it is.
        values: metric -> ``[R, S]`` float64, by seed and test session; {} = it has no result.
        missing: why it has none.
        rankings: LLM rankings that one seed's training read; None = it reads none.
        setting: id of its setting in the sweep; "" for a baseline.
        runs: ids of its trials, in MLflow and the journal.
        link: of the setting in the sweep's report, relative to this report.
    """

    dataset: str
    row: str
    column: str
    role: Role
    values: Mapping[str, FloatArray] = field(default_factory=dict)
    missing: str = ""
    rankings: float | None = None
    setting: str = ""
    runs: tuple[str, ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric of an entry.

    Attributes:
        entry: whose.
        metric: which.
        ours: mean and interval; None without a result.
        hits: sessions whose target is among the first k, the mean over seeds; None for others
            than recall.
        reference: of the paper's own metric, where that is another one (its ndcg).
        paper: the printed number; None = the paper prints none.
    """

    entry: Entry
    metric: str
    ours: Estimate | None
    hits: float | None = None
    reference: Estimate | None = None
    paper: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Where the paper's number lies to our interval of the same quantity."""
        held = self.reference or self.ours
        if held is None or self.paper is None:
            return ""
        # The paper prints five decimals.
        if self.paper > held.high + 5e-6:
            return "paper higher"
        return "paper lower" if self.paper < held.low - 5e-6 else "inside"


@dataclass(frozen=True, slots=True)
class Contrasted:
    """A difference between two entries, first - second.

    Attributes:
        first: an entry.
        second: another one of the same dataset.
        comparison: with its interval; the p-values are corrected (Holm) for all differences of
            the table in the same dataset and metric.
    """

    first: Entry
    second: Entry
    comparison: Comparison

    @property
    def holds(self) -> bool:
        """Whether the difference is shown after Holm's correction."""
        gap = self.comparison
        return gap.verdict in ("higher", "lower")


@dataclass(frozen=True, slots=True)
class Analysis:
    """All numbers of a table or figure.

    Attributes:
        cells: (dataset, row, column, metric) -> cell.
        contrasts: the study's differences, in the order of the metrics, then of the entries.
        teachers: each teacher - its student, corrected among themselves.
        resamples: bootstrap resamples.
        not_compared: differences that the study takes, of two systems of which one has no result.
    """

    cells: Mapping[tuple[str, str, str, str], Cell]
    contrasts: tuple[Contrasted, ...]
    teachers: tuple[Contrasted, ...]
    resamples: int
    not_compared: int = 0


def analyse(study: Study, entries: Sequence[Entry], resamples: int, seed: int) -> Analysis:
    """Measures and compares the entries.

    Args:
        study: what is shown and compared.
        entries: of all datasets; those of one dataset have the same test sessions and seeds.
        resamples: least number of bootstrap resamples; more are drawn where Holm's correction
            could not be passed otherwise.
        seed: of the resampling.
    """
    cells: dict[tuple[str, str, str, str], Cell] = {}
    gaps: dict[tuple[str, str], list[Contrasted]] = {}
    teachers: dict[tuple[str, str], list[Contrasted]] = {}
    by_dataset: dict[str, list[Entry]] = {}
    for entry in entries:
        by_dataset.setdefault(entry.dataset, []).append(entry)
    planned = {name: pairs(study, inside) for name, inside in by_dataset.items()}
    compared = {name: _with_results(found) for name, found in planned.items()}
    largest_family = max(map(len, compared.values()), default=0)
    resamples = max(resamples, RESAMPLES_PER_DIFFERENCE * largest_family)
    for dataset, inside in by_dataset.items():
        measured = _Measured([entry for entry in inside if entry.values], resamples, seed)
        for entry in inside:
            for metric in study.metrics:
                key = (dataset, entry.row, entry.column, metric)
                cells[key] = _cell(study, entry, metric, measured)
        taught = _with_results(_teachers(inside))
        for metric in study.metrics:
            family = metric, dataset
            gaps[family] = [measured.contrast(*pair, metric) for pair in compared[dataset]]
            teachers[family] = [measured.contrast(*pair, metric) for pair in taught]
    families = [(metric, dataset) for metric in study.metrics for dataset in by_dataset]
    return Analysis(
        cells,
        tuple(gap for family in families for gap in _holm(gaps[family])),
        tuple(gap for family in families for gap in _holm(teachers[family])),
        resamples,
        sum(map(len, planned.values())) - sum(map(len, compared.values())),
    )


def pairs(study: Study, entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """The differences that a study takes, among the entries of one dataset."""
    placed = {(entry.row, entry.column): entry for entry in entries if entry.role != "baseline"}
    found = []
    for (row, column), entry in placed.items():
        if study.contrast == "student":
            other = placed.get((row, "student"))
            if entry.role == "distilled" and other:
                found.append((entry, other))
        elif study.contrast == "rows":
            main = placed.get((study.main, column))
            if entry.role == "distilled" and main and row != study.main:
                found.append((main, entry))
        else:
            main = placed.get((row, study.main))
            if main and column != study.main:
                found.append((main, entry))
    return found


def _teachers(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Each teacher and the student of its row."""
    students = {entry.row: entry for entry in entries if entry.role == "student"}
    return [
        (entry, students[entry.row])
        for entry in entries
        if entry.role == "teacher" and entry.row in students
    ]


def _with_results(found: Sequence[tuple[Entry, Entry]]) -> list[tuple[Entry, Entry]]:
    return [(first, second) for first, second in found if first.values and second.values]


class _Measured:
    """The entries of one dataset, resampled together."""

    def __init__(self, entries: Sequence[Entry], resamples: int, seed: int) -> None:
        series: list[FloatArray] = []
        self._place: dict[tuple[int, str], int] = {}
        for entry in entries:
            for metric, values in entry.values.items():
                self._place[id(entry), metric] = len(series)
                series.append(values)
        self._resampled = bootstrap(series, resamples, seed) if series else None

    def estimate(self, entry: Entry, metric: str) -> Estimate | None:
        place = self._place.get((id(entry), metric))
        if self._resampled is None or place is None:
            return None
        return self._resampled.estimate(place)

    def contrast(self, first: Entry, second: Entry, metric: str) -> Contrasted:
        assert self._resampled is not None
        values = first.values[metric], second.values[metric]
        gap = self._resampled.difference(
            self._place[id(first), metric], self._place[id(second), metric]
        )
        t_test = paired_t_test(*values)
        return Contrasted(
            first,
            second,
            Comparison(first.column, second.column, metric, gap, gap.p_value, t_test.p_value),
        )


def _cell(study: Study, entry: Entry, metric: str, measured: _Measured) -> Cell:
    hits = None
    if entry.values and metric.startswith("recall"):
        hits = float(np.mean(entry.values[metric].sum(1)))
    system = _PAPER_NAMES.get(entry.column, entry.column)
    where = PublishedCell(study.name, entry.dataset, entry.row, system, metric)
    reference = reference_of(metric)
    return Cell(
        entry,
        metric,
        measured.estimate(entry, metric),
        hits,
        measured.estimate(entry, reference) if reference != metric else None,
        published().get(where),
    )


def _holm(gaps: Sequence[Contrasted]) -> list[Contrasted]:
    """One family, corrected together."""
    by_bootstrap = holm([gap.comparison.p_bootstrap for gap in gaps])
    by_t_test = holm([gap.comparison.p_t_test for gap in gaps])
    return [
        replace(
            gap,
            comparison=replace(gap.comparison, p_bootstrap=float(first), p_t_test=float(second)),
        )
        for gap, first, second in zip(gaps, by_bootstrap, by_t_test, strict=True)
    ]
