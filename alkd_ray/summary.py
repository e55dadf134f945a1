"""From a run's outputs to its report: collects ranks, cost, selection and curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
from torch import nn

from alkd_ray import __version__, datasets, report, selecting, stages
from alkd_ray import sessions as windows_of
from alkd_ray.artifacts import StageOutput
from alkd_ray.evaluation.comparison import Role, SystemRow
from alkd_ray.evaluation.composition import CUTOFF, Composition, compose
from alkd_ray.evaluation.ranks import read_ranks, top_items
from alkd_ray.report import Cost, ReportData, SelectionView
from alkd_ray.results import RunResult
from alkd_ray.stages import Context
from alkd_ray.training import checkpoint
from alkd_ray.types import Ranks, SessionSet

REPORT_VERSION = 1


def write_report(context: Context, result: RunResult) -> StageOutput:
    """``report.html``, ``report.md``, ``metrics.csv`` and ``metrics.json``."""
    inputs = {"dataset": result.dataset.key}
    for name, by_seed in result.by_seed.items():
        inputs |= {f"{name} {seed}": output.key for seed, output in by_seed.items()}
    inputs |= {name: output.key for name, output in result.baselines.items()}
    if result.annotation is not None:
        inputs["annotation"] = result.annotation.output.key

    def make(folder: Path) -> None:
        report.write(collect(result), folder)

    return context.produce(
        "report",
        make,
        version=REPORT_VERSION,
        inputs=inputs,
        settings={
            "config": context.config.model_dump(exclude={"books", "storage"}),
            "code": __version__,
        },
    )


def table(result: RunResult) -> list[list[str]]:
    """The main table of a run's report as text, header first; [] without a report."""
    return report.read(result.report.folder)["table"] if result.report else []


def sentences(result: RunResult) -> list[str]:
    """What a run's report says at its top; [] without a report."""
    return report.read(result.report.folder)["headline"] if result.report else []


def collect(result: RunResult) -> ReportData:
    """All that the report shows."""
    config = result.config
    data = stages.load_dataset(result.dataset)
    seed = config.seeds[0]
    return ReportData(
        title=config.name,
        generated=f"alkd_ray {__version__}, run {result.run_id}",
        config=config.model_dump(),
        dataset=datasets.describe(data),
        num_items=len(data.catalogue),
        rows=_rows(result),
        cutoffs=tuple(config.evaluation.cutoffs),
        resamples=config.evaluation.resamples,
        seed=seed,
        cost=_cost(result),
        selection=_selection(result, data.sessions, seed),
        curves={
            role: _history(result.by_seed[role][seed])
            for role in ("teacher", "student", "distilled")
        },
        stage_seconds=_seconds(result),
        outputs=_outputs(result),
        notes=_notes(result),
    )


def _rows(result: RunResult) -> tuple[SystemRow, ...]:
    rows = [
        SystemRow(name, "baseline", (_ranks(output),), None, None)
        for name, output in result.baselines.items()
    ]
    roles: tuple[Role, ...] = ("teacher", "student", "distilled")
    for role in roles:
        folder = result.by_seed[role][result.config.seeds[0]].folder / "checkpoint"
        dim = checkpoint.read_config(folder)["dim"]
        module = cast(nn.Module, checkpoint.load(folder))
        parameters = sum(weights.numel() for weights in module.parameters())
        ranks = tuple(_ranks(output) for output in result.by_seed[f"ranks of {role}"].values())
        rows.append(SystemRow(role, role, ranks, dim, parameters))
    return tuple(rows)


def _cost(result: RunResult) -> Cost | None:
    bought = result.annotation
    if bought is None:
        return None
    teacher = result.config.llm.teacher
    notes = {
        "simulated": "simulated dollars: the endpoint is the project's own",
        "replay": "recorded rankings: nothing was sent or paid",
    }
    said = [notes[teacher]] if teacher in notes else []
    sent = 0 if bought.output.reused else bought.cost.sent
    if bought.output.reused and bought.cost.sent:
        said.append("an earlier run bought them: this one sent nothing")
    return Cost(
        dollars=bought.cost.dollars,
        tokens=bought.cost.tokens,
        requests_sent=sent,
        requests_reused=bought.cost.requests - sent,
        annotation_seconds=bought.cost.seconds,
        simulated=teacher == "simulated",
        note="; ".join(said),
    )


def _selection(result: RunResult, sessions: SessionSet, seed: int) -> SelectionView | None:
    if "selection" not in result.by_seed:
        return None
    output = result.by_seed["difficulty"][seed]
    scores = pq.read_table(output.folder / "difficulty.parquet")
    picked = selecting.load_selection(result.by_seed["selection"][seed])
    return SelectionView(
        strategy=picked.strategy,
        budget=len(picked.session_ids),
        notes=picked.notes,
        composition=_composition(result, sessions, seed),
        difficulty=scores["difficulty"].to_numpy(),
        selected=np.isin(scores["session_id"].to_numpy(), picked.session_ids),
    )


def _composition(result: RunResult, sessions: SessionSet, seed: int) -> Composition:
    """The selected sessions by effect: the LLM's rankings against the student before distillation.

    They are training sessions, whose targets the student was trained on: it hits more of them than
    of unseen sessions, so that "effective" errs on the low side.
    """
    selected = selecting.load_selection(result.by_seed["selection"][seed]).session_ids
    ids, rankings = result.annotation.rankings(seed) if result.annotation else (selected[:0], ())
    answered = windows_of.take(sessions, windows_of.rows_of_ids(sessions, ids))
    student = checkpoint.load(result.by_seed["student"][seed].folder / "checkpoint")
    top = top_items(student, answered, result.config.data.window, CUTOFF)
    return compose(rankings, top, answered.targets, len(selected) - len(ids))


def _outputs(result: RunResult) -> dict[str, str]:
    """Where each output lies below the run root."""
    found = {"dataset": result.dataset}
    for name, by_seed in result.by_seed.items():
        found |= {f"{name}, seed {seed}": output for seed, output in by_seed.items()}
    if result.annotation is not None:
        found["annotation"] = result.annotation.output
    found |= {f"ranks of {name}": output for name, output in result.baselines.items()}
    return {name: f"{output.stage}/{output.key}" for name, output in found.items()}


def _history(output: StageOutput) -> list[dict[str, Any]]:
    return json.loads((output.folder / "history.json").read_text("utf-8"))["history"]


def _ranks(output: StageOutput) -> Ranks:
    return read_ranks(output.folder / "ranks.parquet")


def _seconds(result: RunResult) -> dict[str, float]:
    seconds = {"import": result.dataset.seconds}
    for name, by_seed in result.by_seed.items():
        seconds[name] = sum(output.seconds for output in by_seed.values())
    if result.annotation is not None:
        seconds["annotation"] = result.annotation.cost.seconds
    return seconds


def _notes(result: RunResult) -> tuple[str, ...]:
    notes = []
    if result.annotation is not None and result.annotation.failed:
        notes.append(
            f"{result.annotation.failed} of "
            f"{result.annotation.failed + result.annotation.answered} rankings failed "
            "and were left out of the distillation."
        )
    if result.reason:
        notes.append(f"Annotation ended {result.status}: {result.reason}")
    return tuple(notes)
