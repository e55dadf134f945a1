"""The report of a table or figure: one page that needs nothing else, Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alkd_ray import __version__, artifacts
from alkd_ray.evaluation import wording
from alkd_ray.evaluation.wording import FEW_SEEDS, Finding
from alkd_ray.report import page_environment
from alkd_ray.reproduction import further, layout
from alkd_ray.reproduction.cells import Analysis, Entry, analyse
from alkd_ray.reproduction.entries import Finished
from alkd_ray.reproduction.further import Table
from alkd_ray.reproduction.sentences import MAIN_METRIC, headline
from alkd_ray.reproduction.studies import Study
from alkd_ray.sweeps import figures
from alkd_ray.sweeps.figures import Drawn, Plot, Shown
from alkd_ray.sweeps.tables import as_csv

PAGE = "reproduction.html"
BOOTSTRAP_SEED = 1
MONEY_METRIC = "recall@10"  # of tables, which draw all else in the main metric: by the money alone


@dataclass(frozen=True, slots=True)
class Reproduced:
    """All that a report shows.

    Attributes:
        study: the table or figure.
        entries: its systems.
        finished: its sweeps.
        resamples: least number of bootstrap resamples.
        notes: what limits the numbers.
        dollars_per_ranking: dataset -> what an LLM's ranking is priced at; {} = unknown.
        tables: further tables.
        overrides: ``key=value`` by which the sweeps are others than their files'.
    """

    study: Study
    entries: Sequence[Entry]
    finished: Sequence[Finished]
    resamples: int
    notes: Sequence[str] = ()
    dollars_per_ranking: Mapping[str, float] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    overrides: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What was written, for the command line.

    Attributes:
        folder: of the report.
        findings: its headline.
        grids: its tables.
        analysis: its numbers.
    """

    folder: Path
    findings: Sequence[Finding]
    grids: Sequence[layout.Grid]
    analysis: Analysis


def write(data: Reproduced, folder: Path) -> Written:
    """The page, the same as Markdown and JSON, the LaTeX table; cells, differences, more as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    analysis = analyse(data.study, data.entries, data.resamples, BOOTSTRAP_SEED)
    tables = layout.grids(data.study, data.entries, analysis)
    findings = headline(data.study, analysis, data.finished)
    notes = [*_settings_notes(data), *data.notes, *_cautions(data)]
    facts = {
        "generated": f"alkd_ray {__version__}",
        "sweeps": [one.sweep.sweep_id for one in data.finished],
        "overrides": list(data.overrides),
        "seeds": {one.dataset: one.sweep.seeds for one in data.finished},
        "resamples": analysis.resamples,
        "notes": notes,
        "seconds": {one.dataset: round(one.seconds, 1) for one in data.finished},
    }
    numbers = further.merged(data.tables)
    failed = [
        (one.dataset, record)
        for one in data.finished
        for _, record in sorted(one.records.items())
        if record.status != "complete"
    ]
    shown = {
        "tables": [*data.tables, *further.trials(data.entries)],
        "study": data.study,
        "analysis": analysis,
        "grids": tables,
        "headline": findings,
        "notes": notes,
        "seeds": _seeds(data),
        "sweeps": ", ".join(one.sweep.sweep_id for one in data.finished),
        "failed": failed,
        "mark": layout.mark,
        "generated": facts["generated"],
        "work": [_work(one) for one in data.finished],
    }
    environment = page_environment()
    page = environment.get_template(PAGE).render(shown, figures=_figures(data, analysis))
    artifacts.write_text(folder / PAGE, page + "\n")
    text = environment.get_template("reproduction.md").render(shown)
    artifacts.write_text(folder / "reproduction.md", text + "\n")
    artifacts.write_text(folder / "table.tex", layout.latex(data.study, tables, analysis))
    artifacts.write_text(folder / "cells.csv", as_csv(layout.cell_lines(analysis)))
    artifacts.write_text(folder / "differences.csv", as_csv(layout.contrast_lines(analysis)))
    for name, lines in numbers.items():
        artifacts.write_text(folder / f"{name}.csv", as_csv(lines))
    said = [str(finding) for finding in findings]
    artifacts.write_json(
        folder / "reproduction.json",
        layout.as_json(data.study, analysis, said, facts)
        | {name: layout.as_records(lines) for name, lines in numbers.items()},
    )
    return Written(folder, findings, tables, analysis)


def _settings_notes(data: Reproduced) -> Sequence[str]:
    """How it was made: the study's notes, which speak of its sweeps as their files have them."""
    if not data.overrides:
        return data.study.notes
    return [
        f"Made with {' '.join(data.overrides)}: the settings are not those of the paper's table or "
        "figure, which the sweeps' files hold."
    ]


def _work(finished: Finished) -> str:
    """What this sweep did itself; what another had done is found."""
    records = finished.records.values()
    seconds = sum(record.seconds for record in records)
    if not seconds:
        return f"{finished.dataset}: {len(records):,} trials, all found, nothing run"
    found = sum(record.reused for record in records)
    text = f"{finished.dataset}: {len(records):,} trials"
    text += f", {found:,} of them found" if found else ""
    return f"{text}; {wording.seconds(seconds)} of work on one core, without pretraining"


def _seeds(data: Reproduced) -> str:
    """``5 seeds``, or those of each dataset."""
    counts = {one.dataset: len(one.sweep.seeds) for one in data.finished}
    if len(set(counts.values())) == 1:
        return _counted(next(iter(counts.values())))
    return ", ".join(f"{_counted(count)} ({dataset})" for dataset, count in counts.items())


def _counted(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def _cautions(data: Reproduced) -> list[str]:
    return [
        f"{one.dataset}: {_counted(len(one.sweep.seeds))} only; where training runs differ much, "
        f"the intervals are too narrow. Use at least {FEW_SEEDS}."
        for one in data.finished
        if len(one.sweep.seeds) < FEW_SEEDS
    ]


def _figures(data: Reproduced, analysis: Analysis) -> list[Drawn]:
    """Every distilled student, and against the money where it is known."""
    metrics = [MAIN_METRIC, MONEY_METRIC] if data.study.is_table else data.study.metrics
    found = []
    for dataset in dict.fromkeys(entry.dataset for entry in data.entries):
        for metric in metrics:
            found += _figures_of(data, analysis, dataset, metric)
    return found


def _figures_of(data: Reproduced, analysis: Analysis, dataset: str, metric: str) -> list[Drawn]:
    study, price = data.study, data.dollars_per_ranking.get(dataset, 0.0)
    shown, before = [], set()
    for entry in data.entries:
        cell = analysis.cells.get((dataset, entry.row, entry.column, metric))
        if entry.dataset != dataset or cell is None or cell.ours is None:
            continue
        ours = cell.ours
        if entry.role == "student":
            before.add(ours.mean)
        elif entry.role == "distilled":
            point = {study.rows: _number(entry.row)}
            point |= {study.columns: entry.column} if study.columns else {}
            dollars = price * (entry.rankings or 0.0)
            shown.append(Shown(point, ours.mean, ours.low, ours.high, dollars))
    if len(shown) < 2:
        return []
    axes = [axis for axis in (study.rows, study.columns) if axis]
    reference = before.pop() if len(before) == 1 else None
    title = f"{dataset}, test {metric}"
    plot = Plot(
        shown,
        axes,
        title,
        reference,
        what_for="one student's rankings, as priced",
        selecting=study.columns,
    )
    return figures.money(plot) if metric == MONEY_METRIC and study.is_table else figures.draw(plot)


def _number(text: str) -> str | int | float:
    """A row's value as a number, where it is one."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value
