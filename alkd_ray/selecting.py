"""The stages that decide what is worth asking: difficulty, selection, candidates. All are free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alkd_ray import artifacts, registry, stages
from alkd_ray import sessions as windows_of
from alkd_ray.artifacts import StageOutput
from alkd_ray.errors import InputError
from alkd_ray.scoring import ScoreJob, write_shards
from alkd_ray.seeds import derive, hash_uniform
from alkd_ray.stages import Context
from alkd_ray.types import DifficultyScores, IntArray, Selection


def score_difficulty(
    context: Context,
    imported: StageOutput,
    teacher: StageOutput,
    student: StageOutput,
    score: Callable[[ScoreJob, Path], None],
    seed: int,
) -> StageOutput:
    """``difficulty.parquet``: session_id, difficulty, rank of every training session."""
    from alkd_ray.active import difficulty

    config = context.config.difficulty
    inputs = {"dataset": imported.key, "teacher": teacher.key}
    if config.kind == "overlap":
        inputs["student"] = student.key

    def make(folder: Path) -> None:
        train = windows_of.of_split(stages.load_dataset(imported).sessions, "train")
        write_shards(train, context.config.data.window, folder / "shards", config.shards)
        job = ScoreJob(
            folder / "shards",
            teacher.folder / "checkpoint",
            student.folder / "checkpoint",
            config.kind,
        )
        score(job, folder / "scored.parquet")
        scored = pq.read_table(folder / "scored.parquet")
        ranked = difficulty.rank(
            scored["session_id"].to_numpy(),
            scored["difficulty"].to_numpy().astype(np.float64),
            direction=config.direction,
            seed=seed,
            kind=config.kind,
        )
        pq.write_table(
            pa.table(
                {
                    "session_id": ranked.session_ids,
                    "difficulty": ranked.difficulty,
                    "rank": ranked.ranks,
                }
            ),
            folder / "difficulty.parquet",
        )
        (folder / "scored.parquet").unlink()

    return context.produce(
        "difficulty",
        make,
        version=1,
        inputs=inputs,
        settings={
            "kind": config.kind,
            "direction": config.direction,
            "window": context.config.data.window,
        },
        seed=seed,
    )


def load_difficulty(context: Context, output: StageOutput) -> DifficultyScores:
    """The scores of a difficulty output."""
    table = pq.read_table(output.folder / "difficulty.parquet")
    config = context.config.difficulty
    return DifficultyScores(
        table["session_id"].to_numpy(),
        table["difficulty"].to_numpy(),
        table["rank"].to_numpy(),
        config.kind,
        config.direction,
    )


def select(
    context: Context, scored: StageOutput, recorded: IntArray | None, seed: int
) -> StageOutput:
    """``selection.json``: the sessions to pay for, in pick order.

    Args:
        context: the run.
        scored: output of :func:`score_difficulty`.
        recorded: ids with a recorded ranking, when only those may be picked.
        seed: the run's seed.
    """
    config = context.config.selection
    options = registry.options("strategies", config.strategy, config.options, "selection.options")

    def make(folder: Path) -> None:
        pool = load_difficulty(context, scored)
        if recorded is not None:
            pool = _restricted(pool, recorded)
        if config.budget > len(pool.session_ids):
            raise InputError(
                f"selection.budget is {config.budget}, but there are only "
                f"{len(pool.session_ids)} sessions to select from; lower it"
            )
        strategy = registry.build("strategies", config.strategy, config.options)
        selection = strategy.select(pool, config.budget, seed)
        artifacts.write_json(
            folder / "selection.json",
            {
                "strategy": selection.strategy,
                "seed": selection.seed,
                "pool": len(pool.session_ids),
                "notes": selection.notes,
                "session_ids": selection.session_ids.tolist(),
            },
        )

    inputs = {"difficulty": scored.key}
    if recorded is not None:
        inputs["recorded"] = hashlib.sha256(np.sort(recorded).tobytes()).hexdigest()[:16]
    return context.produce(
        "selection",
        make,
        version=1,
        inputs=inputs,
        settings={
            "strategy": config.strategy,
            "options": options.model_dump(),
            "budget": config.budget,
        },
        seed=seed,
    )


def load_selection(output: StageOutput) -> Selection:
    """The selection of a selection output."""
    found = json.loads((output.folder / "selection.json").read_text("utf-8"))
    return Selection(
        np.array(found["session_ids"], np.int64), found["strategy"], found["seed"], found["notes"]
    )


def candidates(
    context: Context, imported: StageOutput, teacher: StageOutput, selected: StageOutput, seed: int
) -> StageOutput:
    """``candidates.parquet``: for each selected session the items that the LLM ranks.

    The teacher's top items; with ``force_target`` a target that is not among them takes the last
    place, as in the published experiments. Then they are shuffled, unless the order is ``teacher``.
    Items of the session are no candidates, so that a session may have fewer than the others.

    Raises:
        InputError: a session with fewer than two.
    """
    from alkd_ray.evaluation.ranks import top_items
    from alkd_ray.training import checkpoint

    config = context.config.candidates

    def make(folder: Path) -> None:
        data = stages.load_dataset(imported)
        ids = load_selection(selected).session_ids
        chosen = windows_of.take(data.sessions, windows_of.rows_of_ids(data.sessions, ids))
        model = checkpoint.load(teacher.folder / "checkpoint")
        top = top_items(model, chosen, context.config.data.window, config.size)  # [B, C], or -1
        counts = (top >= 0).sum(1)  # [B]
        if (counts < 2).any():
            row = int(counts.argmin())
            raise InputError(
                f"session {ids[row]} leaves {counts[row]} of the {len(data.catalogue)} items to "
                "recommend, of which an LLM can rank none; remove it from the data"
            )
        if config.force_target:
            missing = ~(top == chosen.targets[:, None]).any(1)
            top[missing, counts[missing] - 1] = chosen.targets[missing]
        if config.order == "shuffled":
            top = _shuffled(top, ids, seed)
        rows = [row[row >= 0] for row in top]
        pq.write_table(
            pa.table({"session_id": ids, "candidates": rows}), folder / "candidates.parquet"
        )

    return context.produce(
        "candidates",
        make,
        version=3,
        inputs={"dataset": imported.key, "teacher": teacher.key, "selection": selected.key},
        settings={**config.model_dump(), "window": context.config.data.window},
        seed=seed,
    )


def _shuffled(top: IntArray, session_ids: IntArray, seed: int) -> IntArray:
    """Each row of ``top`` ``[B, C]`` in an order that hangs on seed and session alone; -1 last.

    So that a session is asked about in the same words whatever selected it, and is paid for once.
    """
    cells = session_ids[:, None] * top.shape[1] + np.arange(top.shape[1])  # [B, C]
    places = hash_uniform(derive(seed, "candidate order"), cells)
    order = np.argsort(np.where(top >= 0, places, np.iinfo(np.uint64).max), axis=1)
    return np.take_along_axis(top, order, axis=1)


def load_candidates(output: StageOutput) -> tuple[IntArray, list[IntArray]]:
    """Session ids ``[B]`` and the candidates of each."""
    table = pq.read_table(output.folder / "candidates.parquet")
    return table["session_id"].to_numpy(), [
        np.asarray(row, np.int64) for row in table["candidates"].to_pylist()
    ]


def _restricted(pool: DifficultyScores, allowed: IntArray) -> DifficultyScores:
    keep = np.isin(pool.session_ids, allowed)
    ranks = pool.ranks[keep]
    order = np.empty(len(ranks), np.int64)
    order[np.argsort(ranks)] = np.arange(1, len(ranks) + 1)
    return DifficultyScores(
        pool.session_ids[keep], pool.difficulty[keep], order, pool.kind, pool.direction
    )
