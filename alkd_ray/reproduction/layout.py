"""How a table is laid out: as text for a page, as LaTeX, and as rows of CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alkd_ray.evaluation.statistics import Estimate
from alkd_ray.evaluation.wording import metric as metric_text
from alkd_ray.reproduction.cells import Analysis, Cell, Entry
from alkd_ray.reproduction.studies import Study

_MARKS = {"paper higher": "↑", "paper lower": "↓", "inside": "", "": ""}
_TEX_MARKS = {"paper higher": r"$^\uparrow$", "paper lower": r"$^\downarrow$", "inside": "", "": ""}
_TEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


# Opens a box that is made as narrow as the text where it is wider; its end closes it.
_FITTING = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"

_PUBLISHED = (
    "; below those of ndcg the quantity that the paper calls so; in parentheses the published "
    "number, with an arrow where it lies outside"
)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a page's table: one metric of the systems of one row of the study.

    Attributes:
        row: value of the study's rows.
        metric: the metric.
        cells: by column; None where there is no such system.
        is_first: of its row.
        height: metrics of its row.
    """

    row: str
    metric: str
    cells: tuple[Cell | None, ...]
    is_first: bool
    height: int

    @property
    def best(self) -> float:
        """The largest mean among the distilled students."""
        means = [
            cell.ours.mean
            for cell in self.cells
            if cell is not None and cell.ours is not None and cell.entry.role == "distilled"
        ]
        return max(means, default=0.0)


@dataclass(frozen=True, slots=True)
class Grid:
    """The table of one dataset.

    Attributes:
        dataset: its name.
        columns: systems.
        lines: rows.
        sessions: test sessions; 0 = nothing has a result.
        others: systems without a row: plain baselines, and models that all rows share.
    """

    dataset: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    sessions: int
    others: tuple[Entry, ...]


def grids(study: Study, entries: Sequence[Entry], analysis: Analysis) -> list[Grid]:
    """A table for each dataset."""
    found = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        inside = [entry for entry in entries if entry.dataset == dataset]
        placed = [entry for entry in inside if entry.row]
        columns = list(dict.fromkeys(entry.column for entry in placed))
        lines = [
            Line(
                row,
                metric,
                tuple(analysis.cells.get((dataset, row, column, metric)) for column in columns),
                number == 0,
                len(study.metrics),
            )
            for row in dict.fromkeys(e.row for e in placed if e.role == "distilled")
            for number, metric in enumerate(study.metrics)
        ]
        others = tuple(entry for entry in inside if not entry.row)
        estimates = (analysis.cells[key].ours for key in analysis.cells if key[0] == dataset)
        sessions = next((ours.sessions for ours in estimates if ours), 0)
        found.append(Grid(dataset, tuple(columns), tuple(lines), sessions, others))
    return found


def mark(cell: Cell) -> str:
    """An arrow where the paper's number lies outside our interval."""
    return _MARKS[cell.verdict]


def cell_lines(analysis: Analysis) -> list[list[Any]]:
    """A row for each cell, header first."""
    header = ["dataset", "row", "system", "role", "metric", "mean", "low", "high", "seeds"]
    header += ["sessions", "hits", "reference mean", "reference low", "reference high", "paper"]
    header += ["paper's place", "LLM rankings", "missing", "setting", "runs"]
    lines: list[list[Any]] = [header]
    for cell in analysis.cells.values():
        entry, ours, reference = cell.entry, cell.ours, cell.reference
        line: list[Any] = [entry.dataset, entry.row, entry.column, entry.role, cell.metric]
        line += [ours.mean, ours.low, ours.high, ours.seeds, ours.sessions] if ours else [None] * 5
        line += [cell.hits]
        line += [reference.mean, reference.low, reference.high] if reference else [None] * 3
        line += [cell.paper, cell.verdict, entry.rankings, entry.missing, entry.setting]
        lines.append([*line, " ".join(entry.runs)])
    return lines


def contrast_lines(analysis: Analysis) -> list[list[Any]]:
    """A row for each difference, those of teachers and students last; header first."""
    header = ["dataset", "row", "system", "second row", "second system", "metric", "difference"]
    header += ["low", "high", "standard error", "least detectable", "p bootstrap, Holm"]
    header += ["p t-test, Holm", "holds"]
    lines: list[list[Any]] = [header]
    for gap in (*analysis.contrasts, *analysis.teachers):
        test, difference = gap.comparison, gap.comparison.difference
        lines.append(
            [
                gap.first.dataset, gap.first.row, gap.first.column, gap.second.row,
                gap.second.column, test.metric, difference.mean, difference.low, difference.high,
                difference.standard_error, difference.least_detectable, test.p_bootstrap,
                test.p_t_test, gap.holds,
            ]
        )  # fmt: skip
    return lines


def latex(study: Study, tables: Sequence[Grid], analysis: Analysis) -> str:
    r"""The tables for a paper, ours above, the published below; none is wider than the text.

    They need ``\usepackage{booktabs, graphicx}``, as their first line says.
    """
    found = [_latex_table(study, grid, analysis) for grid in tables]
    return "\n\n".join([r"% \usepackage{booktabs, graphicx}", *found]) + "\n"


def _latex_table(study: Study, grid: Grid, analysis: Analysis) -> str:
    columns = " & ".join(map(tex, grid.columns))
    lines = [
        r"\begin{table*}",
        rf"\caption{{{tex(study.title)}, {tex(grid.dataset)}. "
        f"{grid.sessions:,} test sessions; means over seeds with 95\\% intervals over "
        f"{_covers(grid)}; bold: the best distilled student of a row"
        f"{_PUBLISHED if study.is_table else ''}.}}",
        r"\centering\scriptsize",
        _FITTING,
        rf"\begin{{tabular}}{{ll{'r' * len(grid.columns)}}}",
        r"\toprule",
        rf"& Metric & {columns} \\",
    ]
    for line in grid.lines:
        if line.is_first:
            lines.append(r"\midrule")
        # In braces: a bracket after a rule, or after the end of a row, would be its option.
        name = f"{{{tex(line.row)}}}" if line.is_first else ""
        cells = " & ".join(_latex_cell(cell, line.best) for cell in line.cells)
        lines.append(rf"{name} & {tex(line.metric)} & {cells} \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if grid.others:
        lines += _latex_of_others(study, grid, analysis)
    return "\n".join([*lines, r"\end{table*}"])


def _latex_of_others(study: Study, grid: Grid, analysis: Analysis) -> list[str]:
    """A second table for the systems without a row: a line for each."""
    lines = [
        r"\par\medskip",
        _FITTING,
        rf"\begin{{tabular}}{{l{'r' * len(study.metrics)}}}",
        r"\toprule",
        rf"& {' & '.join(map(tex, study.metrics))} \\",
        r"\midrule",
    ]
    for entry in grid.others:
        found = [
            analysis.cells[grid.dataset, "", entry.column, metric].ours for metric in study.metrics
        ]
        shown = [f"{metric_text(ours.mean)} {_interval(ours)}" if ours else "--" for ours in found]
        lines.append(rf"{tex(entry.column)} & {' & '.join(shown)} \\")
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _latex_cell(cell: Cell | None, best: float) -> str:
    if cell is None:
        return "--"
    if cell.ours is None:
        published = "" if cell.paper is None else f" ({metric_text(cell.paper)})"
        return f"--{published}"
    ours = metric_text(cell.ours.mean)
    if cell.entry.role == "distilled" and cell.ours.mean == best:
        ours = rf"\textbf{{{ours}}}"
    parts = [ours, _interval(cell.ours)]
    if cell.reference is not None and cell.paper is not None:
        parts += [metric_text(cell.reference.mean), _interval(cell.reference)]
    if cell.paper is not None:
        parts.append(f"({metric_text(cell.paper)}{_TEX_MARKS[cell.verdict]})")
    # The empty group keeps a bracket in the next line from being the length of the break.
    return r"\shortstack[r]{" + r"\\{}".join(parts) + "}"


def _interval(estimate: Estimate) -> str:
    return f"[{metric_text(estimate.low)}, {metric_text(estimate.high)}]"


def _covers(grid: Grid) -> str:
    found = [c.ours.covers for line in grid.lines for c in line.cells if c and c.ours]
    return found[0] if found else "sessions"


def tex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_TEX_SPECIAL.get(character, character) for character in text)


def as_json(
    study: Study, analysis: Analysis, findings: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Every number."""
    return {
        "study": study.name,
        "title": study.title,
        "claim": study.claim,
        "findings": list(findings),
        **facts,
        "cells": [
            {
                "dataset": cell.entry.dataset,
                "row": cell.entry.row,
                "system": cell.entry.column,
                "role": cell.entry.role,
                "metric": cell.metric,
                "ours": asdict(cell.ours) if cell.ours else None,
                "hits": cell.hits,
                "reference": asdict(cell.reference) if cell.reference else None,
                "paper": cell.paper,
                "paper_is": cell.verdict,
                "rankings": cell.entry.rankings,
                "missing": cell.entry.missing,
                "setting": cell.entry.setting,
                "runs": list(cell.entry.runs),
            }
            for cell in analysis.cells.values()
        ],
        "contrasts": as_records(contrast_lines(analysis)),
    }


def as_records(lines: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows, header first, as name -> value each."""
    header, *rest = lines
    return [dict(zip(header, line, strict=True)) for line in rest]
