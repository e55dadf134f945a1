"""What a run that was told to end before its report has to show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from alkd_ray import selecting
from alkd_ray.artifacts import StageOutput
from alkd_ray.evaluation.metrics import summary as summarise
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.results import RunResult
from alkd_ray.stages import Context


def lines(context: Context, result: RunResult, until: str) -> list[str]:
    """A few lines for people about the last stage; [] where the record says it all."""
    by_seed = result.by_seed
    if until == "pretrain":
        return [line for role in ("teacher", "student") for line in _trained(role, by_seed[role])]
    if until == "distillation":
        return _trained("distilled", by_seed["distilled"])
    if until == "difficulty":
        return [_scored(context, seed, output) for seed, output in by_seed["difficulty"].items()]
    if until == "selection":
        return [
            line
            for seed, output in by_seed["selection"].items()
            for line in _selected(seed, output)
        ]
    if until == "evaluation":
        return [
            f"{system:<20} " + "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            for system, found in means(metrics(result)).items()
        ]
    return []


def metrics(result: RunResult) -> dict[str, dict[str, dict[str, float]]]:
    """System -> seed ("" for those without) -> metric -> mean over the test sessions."""
    cutoffs = tuple(result.config.evaluation.cutoffs)
    found: dict[str, dict[str, dict[str, float]]] = {
        name: {"": summarise(read_ranks(output.folder / "ranks.parquet"), cutoffs)}
        for name, output in result.baselines.items()
    }
    for name, by_seed in result.by_seed.items():
        if name.startswith("ranks of "):
            found[name.removeprefix("ranks of ")] = {
                str(seed): summarise(read_ranks(output.folder / "ranks.parquet"), cutoffs)
                for seed, output in by_seed.items()
            }
    return found


def means(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """System -> metric -> mean over the seeds."""
    return {
        system: {
            name: float(np.mean([values[name] for values in by_seed.values()]))
            for name in next(iter(by_seed.values()))
        }
        for system, by_seed in found.items()
    }


def _trained(role: str, outputs: Mapping[int, StageOutput]) -> list[str]:
    found = []
    for seed, output in outputs.items():
        described = _json(output, "checkpoint/config.json")
        reached = "  ".join(f"{name} {value:.4g}" for name, value in described["metrics"].items())
        found.append(f"{role:<10} seed {seed}: validation {reached}  {output.folder}")
    return found


def _scored(context: Context, seed: int, output: StageOutput) -> str:
    scores = selecting.load_difficulty(context, output)
    low, middle, high = np.quantile(scores.difficulty, (0.05, 0.5, 0.95))
    return (
        f"seed {seed}: {len(scores.session_ids):,} sessions, difficulty ({scores.kind}) 5% "
        f"{low:.4f}, median {middle:.4f}, 95% {high:.4f}  {output.folder / 'difficulty.parquet'}"
    )


def _selected(seed: int, output: StageOutput) -> list[str]:
    picked = selecting.load_selection(output)
    notes = [
        f"  {name:<30} {value:.6g}" if isinstance(value, float) else f"  {name:<30} {value}"
        for name, value in picked.notes.items()
    ]
    head = f"seed {seed}: {len(picked.session_ids):,} sessions by {picked.strategy}"
    return [f"{head}  {output.folder / 'selection.json'}", *notes]


def _json(output: StageOutput, name: str) -> dict[str, Any]:
    return json.loads((output.folder / name).read_text("utf-8"))
