"""A finished run in MLflow's terms: one run per student below one run for the whole."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from alkd_ray import artifacts, stages
from alkd_ray.evaluation.metrics import summary as summarise
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.pipeline import ROLES
from alkd_ray.results import RunResult
from alkd_ray.runtime import tracking
from alkd_ray.runtime.tracking import DatasetInput, StudentRun, TrackedRun
from alkd_ray.serving.export import export


def log(result: RunResult, uri: str) -> TrackedRun:
    """Logs parameters, step metrics, test metrics, cost, inputs, artifacts and students.

    Raises:
        AlkdError: the tracking server cannot be reached; nothing of the run is lost.
    """
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
