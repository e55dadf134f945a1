"""The report of a run: one page that needs nothing else, the same as Markdown, CSV and JSON.

Everything is made from a :class:`ReportData`; equal data gives equal bytes. ``docs/evaluation.md``
says how each number is computed and why it is shown.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from alkd_ray import artifacts, figures
from alkd_ray.evaluation import wording
from alkd_ray.evaluation.comparison import Analysis, Measured, SystemRow, analyse
from alkd_ray.evaluation.composition import Composition
from alkd_ray.evaluation.wording import Finding
from alkd_ray.types import BoolArray, FloatArray

METRICS_FILE = "metrics.json"

_COMPOSITION_ROWS = (
    ("effective", "hit / miss"),
    ("similar", "hit / hit"),
    ("incorrect", "miss / either"),
    ("unanswered", "no ranking"),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What the rankings cost.

    Attributes:
        dollars: rankings and hints.
        tokens: prompt and completion.
        requests_sent: for rankings, by this run.
        requests_reused: rankings that were in the store.
        annotation_seconds: wall time.
        simulated: whether the dollars are not real.
        note: what the reader should know about the dollars, or "".
    """

    dollars: float
    tokens: int
    requests_sent: int
    requests_reused: int
    annotation_seconds: float
    simulated: bool
    note: str


@dataclass(frozen=True, slots=True)
class SelectionView:
    """The sessions that were paid for, of the first seed.

    Attributes:
        strategy: its name.
        budget: |B|.
        notes: facts that the strategy gives.
        composition: what they turned out to be.
        difficulty: ``[S]`` of all training sessions.
        selected: ``[S]`` bool.
    """

    strategy: str
    budget: int
    notes: Mapping[str, float | int | str]
    composition: Composition
    difficulty: FloatArray
    selected: BoolArray


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a report shows.

    Attributes:
        title: name of the run.
        generated: what made it (program, version, run).
        config: the resolved config.
        dataset: :func:`alkd_ray.datasets.describe` of the data.
        num_items: N.
        rows: the systems, in the order of the table.
        cutoffs: k of recall and ndcg.
        resamples: bootstrap resamples.
        seed: of the resampling, and the seed whose selection and curves are shown.
        cost: None where nothing was bought.
        selection: None where nothing was selected.
        curves: role -> history of its training.
        stage_seconds: stage -> wall time, summed over seeds.
        outputs: name -> folder of each stage's output, below the run root.
        notes: what the reader has to know beside the numbers.
    """

    title: str
    generated: str
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    num_items: int
    rows: tuple[SystemRow, ...]
    cutoffs: tuple[int, ...]
    resamples: int
    seed: int
    cost: Cost | None = None
    selection: SelectionView | None = None
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write(data: ReportData, folder: Path) -> None:
    """Writes ``report.html``, ``report.md``, ``metrics.csv`` and ``metrics.json`` to ``folder``.

    Raises:
        InputError: the systems were not tested on the same sessions and seeds.
    """
    analysis = analyse(data.rows, data.cutoffs, data.resamples, data.seed)
    shown = {
        "data": data,
        "analysis": analysis,
        "headline": headline(data, analysis),
        "notes": [*data.notes, *wording.cautions(analysis)],
        "config": json.dumps(data.config, indent=1, ensure_ascii=False, default=str),
        "dataset": wording.facts(data.dataset),
        "best": {
            name: max(measured.estimates[name].mean for measured in analysis.systems)
            for name in analysis.metrics
        },
        "comparison_groups": [
            (second, list(group))
            for second, group in itertools.groupby(analysis.comparisons, lambda c: c.second)
        ],
        "composition_rows": _COMPOSITION_ROWS,
    }
    environment = page_environment()
    page = environment.get_template("report.html").render(shown, figures=_figures(data, analysis))
    artifacts.write_text(folder / "report.html", page + "\n")
    text = environment.get_template("report.md").render(shown)
    artifacts.write_text(folder / "report.md", text + "\n")
    artifacts.write_text(folder / "metrics.csv", _csv(analysis))
    artifacts.write_json(folder / METRICS_FILE, _json(data, analysis))


def read(folder: Path) -> dict[str, Any]:
    """``metrics.json`` of a report: ``table``, ``headline``, and every number."""
    return json.loads((folder / METRICS_FILE).read_text("utf-8"))


def summary_table(analysis: Analysis) -> list[list[str]]:
    """The main table as text, header first; of the intervals, that of the main metric alone."""
    header = ["system", "parameters", *analysis.metrics]
    header += [f"{analysis.main_metric} 95%", f"hits of {analysis.sessions:,}"]
    table = [header]
    for measured in analysis.systems:
        estimate = measured.estimates[analysis.main_metric]
        table.append(
            [
                measured.system.name,
                wording.count(measured.system.parameters),
                *(f"{measured.estimates[name].mean:.4f}" for name in analysis.metrics),
                f"{estimate.low:.4f}-{estimate.high:.4f}",
                wording.hits(measured.hits[analysis.main_recall]),
            ]
        )
    return table


def headline(data: ReportData, analysis: Analysis) -> list[Finding]:
    """What the report says at its top."""
    found = [*wording.verdicts(analysis), *wording.recall_cap(data.dataset)]
    if data.cost is not None:
        unit = "simulated USD" if data.cost.simulated else "USD"
        found.append(
            Finding(
                f"The rankings cost {data.cost.dollars:,.4f} {unit}",
                f"with their hints; {data.cost.tokens:,} tokens; {data.cost.requests_sent:,} "
                f"rankings asked for now, {data.cost.requests_reused:,} in the store",
            )
        )
    return found


def _figures(data: ReportData, analysis: Analysis) -> list[dict[str, str]]:
    """Each with ``svg`` and ``caption``."""
    main = analysis.main_metric
    bars = [figures.Bar(m.system.name, m.system.role, m.estimates[main]) for m in analysis.systems]
    found = [
        {
            "svg": figures.metric_bars(
                bars, main, f"Bars of {main} with 95% intervals; the numbers are in the main table"
            ),
            "caption": f"{main} on the {analysis.sessions:,} test sessions, all systems.",
        }
    ]
    if data.selection is not None:
        found.append(
            {
                "svg": figures.difficulty_histogram(
                    data.selection.difficulty,
                    data.selection.selected,
                    "Histogram of the difficulty of all training sessions and of the selected ones",
                ),
                "caption": f"Where {data.selection.strategy} picked, seed {data.seed}.",
            }
        )
    for metric, curves in _curves_by_metric(data).items():
        roles = ", ".join(curves)
        found.append(
            {
                "svg": figures.learning_curves(
                    curves, metric, f"Validation {metric} by training step of: {roles}"
                ),
                "caption": f"Validation {metric} while training, seed {data.seed}; the mark is the "
                "step whose weights were kept.",
            }
        )
    return found


def _curves_by_metric(data: ReportData) -> dict[str, dict[str, Any]]:
    """Validation metric -> role -> history: what is not on one scale is not in one figure."""
    found: dict[str, dict[str, Any]] = {}
    for role, history in data.curves.items():
        part = data.config["distillation" if role == "distilled" else role]
        if history:
            found.setdefault(part["training"]["metric"], {})[role] = history
    return found


def page_environment() -> jinja2.Environment:
    """Templates of pages and of Markdown, with the filters that word numbers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alkd_ray"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": wording.metric,
        "signed": wording.signed,
        "count": wording.count,
        "p_value": wording.p_value,
        "seconds": wording.seconds,
        "value": wording.value,
        "hits": wording.hits,
        "cell": wording.markdown_cell,
    }
    environment.globals["intervals_cover"] = wording.intervals_cover
    return environment


def _csv(analysis: Analysis) -> str:
    """One row for each system and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "system", "role", "metric", "mean", "low", "high", "standard_error", "covers",
            "seeds", "sessions", "hits_by_seed", "dim", "parameters",
        ]
    )  # fmt: skip
    for measured in analysis.systems:
        system = measured.system
        for name, estimate in measured.estimates.items():
            numbers = (estimate.mean, estimate.low, estimate.high, estimate.standard_error)
            writer.writerow(
                [
                    system.name, system.role, name, *(f"{x:.6g}" for x in numbers),
                    estimate.covers, estimate.seeds, estimate.sessions,
                    " ".join(map(str, measured.hits.get(name, ()))),
                    _or_empty(system.dim), _or_empty(system.parameters),
                ]
            )  # fmt: skip
    return buffer.getvalue()


def _or_empty(number: int | None) -> str:
    return "" if number is None else str(number)


def _json(data: ReportData, analysis: Analysis) -> dict[str, Any]:
    selection = None
    if data.selection is not None:
        selection = {
            "strategy": data.selection.strategy,
            "budget": data.selection.budget,
            "notes": dict(data.selection.notes),
            "composition": asdict(data.selection.composition),
        }
    return wording.rounded(
        {
            "title": data.title,
            "generated": data.generated,
            "headline": [str(finding) for finding in headline(data, analysis)],
            "table": summary_table(analysis),
            "sessions": analysis.sessions,
            "seeds": analysis.seeds,
            "resamples": analysis.resamples,
            "intervals": wording.intervals_cover(analysis),
            "systems": [_measured(measured) for measured in analysis.systems],
            "best_baseline": analysis.best_baseline,
            "comparisons": [
                {
                    "first": c.first,
                    "second": c.second,
                    "metric": c.metric,
                    **asdict(c.difference),
                    "least_detectable": c.difference.least_detectable,
                    "p_bootstrap_holm": c.p_bootstrap,
                    "p_t_test_holm": c.p_t_test,
                    "verdict": c.verdict,
                }
                for c in analysis.comparisons
            ],
            "dataset": dict(data.dataset),
            "selection": selection,
            "cost": asdict(data.cost) if data.cost else None,
            "stage_seconds": dict(data.stage_seconds),
            "outputs": dict(data.outputs),
            "notes": [*data.notes, *wording.cautions(analysis)],
        }
    )


def _measured(measured: Measured) -> dict[str, Any]:
    return {
        "name": measured.system.name,
        "role": measured.system.role,
        "dim": measured.system.dim,
        "parameters": measured.system.parameters,
        "metrics": {
            name: {**asdict(estimate), "covers": estimate.covers}
            for name, estimate in measured.estimates.items()
        },
        "hits": {name: list(hits) for name, hits in measured.hits.items()},
    }
