"""A finished run in MLflow's terms: one run per student below one run for the whole."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from alkd_ray import artifacts, buying, stages
from alkd_ray.bought import Bought
from alkd_ray.errors import AlkdError
from alkd_ray.evaluation.metrics import summary as summarise
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.pipeline import ROLES
from alkd_ray.results import RunResult
from alkd_ray.runtime import request_traces, tracking
from alkd_ray.runtime.tracking import DatasetInput, StudentRun, TrackedRun
from alkd_ray.serving.export import export

MICROUSD = "_microusd"
# What the annotation ended with, as the whole run's metrics; amounts are the budget's.
FINAL_FIGURES = {
    "answered": "answered",
    "failed": "failed",
    "sent": "sent",
    "settled_microusd": "settled_microusd",
    "held_microusd": "held_microusd",
    "unresolved_microusd": "unresolved_microusd",
    "cap_microusd": "cap_microusd",
    "settled_tokens": "tokens",
}


def log(result: RunResult, uri: str) -> TrackedRun:
    """Logs parameters, step metrics, test metrics, cost, inputs, artifacts and students.

    With ``tracking.trace_requests`` also the answers that the rankings and hints were read from.

    Raises:
        AlkdError: the tracking server cannot be reached; nothing of the run is lost. Where only
            the traces failed, the run is in MLflow, and logging it again adds them.
    """
    tracked = _log_run(result, uri)
    if result.config.tracking.trace_requests and result.annotation is not None:
        try:
            request_traces.log_request_traces(
                uri=uri,
                experiment_id=tracked.experiment_id,
                run_id=tracked.run_id,
                books=buying.books(artifacts.run_root(), result.config.books),
                keys=request_keys(result),
            )
        except AlkdError as error:
            raise AlkdError(
                f"the traces of its requests ({error}); the run itself is in MLflow as "
                f"{tracked.run_id}, and the same command logs the rest"
            ) from error
    return tracked


def request_keys(result: RunResult) -> list[str]:
    """Keys of the requests for a run's hints and rankings, each once."""
    assert result.annotation is not None
    hints = [
        json.loads((output.folder / "hints.json").read_text("utf-8"))["key"]
        for output in result.by_seed.get("hints", {}).values()
    ]
    rankings = pq.read_table(result.annotation.output.folder / "rankings.parquet", columns=["key"])
    return list(dict.fromkeys(key for key in [*hints, *rankings["key"].to_pylist()] if key))


def annotation_history(bought: Bought) -> list[dict[str, float]]:
    """The points of a pass, if it left any, and what it ended with as the last step.

    Amounts are in dollars. The points are those of the pass that made the annotation's output;
    when that was found again by a later run, it is still their story.
    """
    file = bought.output.folder / "progress.json"
    text = file.read_text("utf-8") if file.is_file() else ""
    points: list[dict[str, float]] = json.loads(text) if text.strip() else []
    figures = bought.figures()
    final = {name: figures[figure] for name, figure in FINAL_FIGURES.items()}
    known = {name: float(value) for name, value in final.items() if value is not None}
    points.append({"seconds": bought.cost.seconds, **known})
    return [{"step": step, **_in_dollars(point)} for step, point in enumerate(points)]


def _in_dollars(point: dict[str, float]) -> dict[str, float]:
    return {
        f"{name.removesuffix(MICROUSD)}_dollars" if name.endswith(MICROUSD) else name: (
            value / 1e6 if name.endswith(MICROUSD) else value
        )
        for name, value in point.items()
    }


def _log_run(result: RunResult, uri: str) -> TrackedRun:
    assert result.report is not None
    config = result.config
    with tempfile.TemporaryDirectory(prefix="alkd-log-") as scratch:
        folder = Path(scratch)
        artifacts.write_json(folder / "config.json", config.model_dump())
        students = [_student(result, role, seed, folder) for seed in config.seeds for role in ROLES]
        return tracking.log_pipeline_run(
            uri=uri,
            experiment=config.tracking.experiment,
            run_key=result.run_id,
            run_name=config.name,
            params=flat(config.model_dump()),
            datasets=[_dataset(result)],
            students=students,
            metrics=_cost(result),
            artifacts={"config.json": folder / "config.json", "report": result.report.folder},
            annotation=annotation_history(result.annotation) if result.annotation else (),
        )


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, str | int | float]:
    """Nested fields as dotted names; lists as JSON."""
    found: dict[str, str | int | float] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            found |= flat(inner, f"{prefix}{name}.")
        else:
            plain = isinstance(inner, str | int | float)
            found[prefix + name] = inner if plain else json.dumps(inner)
    return found


def _student(result: RunResult, role: str, seed: int, folder: Path) -> StudentRun:
    config = result.config
    output = result.by_seed[role][seed]
    ranks = result.by_seed[f"ranks of {role}"][seed].folder / "ranks.parquet"
    history = json.loads((output.folder / "history.json").read_text("utf-8"))["history"]
    model = config.teacher if role == "teacher" else config.student
    training = config.distillation.training if role == "distilled" else model.training
    metrics = summarise(read_ranks(ranks), tuple(config.evaluation.cutoffs))
    shown = {"model": model.model_dump(), "training": training.model_dump()}
    files: dict[str, Path] = {"ranks.parquet": ranks, "config.json": folder / "config.json"}
    exported = None
    if role == "distilled":
        shown["distillation"] = config.distillation.model_dump()
        shown["selection"] = config.selection.model_dump()
        if "selection" in result.by_seed:
            files["selection.json"] = result.by_seed["selection"][seed].folder / "selection.json"
        if result.annotation is not None:
            files["rankings.parquet"] = result.annotation.output.folder / "rankings.parquet"
        if result.report is not None:
            files["report.html"] = result.report.folder / "report.html"
        exported = folder / f"{role}-{seed}"
        data = stages.load_dataset(result.dataset)
        export(
            output.folder / "checkpoint",
            data.catalogue,
            config.data.window,
            exported,
            test_metrics=metrics,
        )
    return StudentRun(
        name=role,
        seed=seed,
        params=flat({"preset": config.preset, "role": role, "seed": seed, **shown}),
        history=tuple(history),
        metrics=metrics,
        cost=_cost(result) if role == "distilled" else {},
        artifacts=files,
        export_folder=exported,
        tags={"stage_key": output.key, "dataset": result.dataset.key},
    )


def _dataset(result: RunResult) -> DatasetInput:
    folder = result.dataset.folder / "dataset"
    described = json.loads((folder / "dataset.json").read_text("utf-8"))
    data = stages.load_dataset(result.dataset)
    return DatasetInput(
        name=data.name,
        hash=data.sessions.fingerprint,
        source=data.source,
        folder=folder,
        rows=described["counts"],
    )


def _cost(result: RunResult) -> dict[str, float]:
    if result.annotation is None:
        return {}
    cost = result.annotation.cost
    return {
        "cost_dollars": cost.dollars,
        "cost_tokens": float(cost.tokens),
        "requests": float(cost.requests),
        "annotation_seconds": cost.seconds,
    }
