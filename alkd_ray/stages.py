"""The stages of a run: what each reads, the settings it declares, and what it writes.

Each function finds its output by content, or makes it (see :mod:`alkd_ray.artifacts`). They are
called, in order, by :mod:`alkd_ray.pipeline` alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alkd_ray import artifacts, datasets, registry
from alkd_ray import sessions as windows_of
from alkd_ray.artifacts import StageOutput
from alkd_ray.config import ModelConfig, RunConfig
from alkd_ray.errors import InputError
from alkd_ray.scoring import ScoreJob, write_shards
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.types import DifficultyScores, IntArray, Selection

if TYPE_CHECKING:
    from alkd_ray.buying import Bought


class Listener(Protocol):
    """Told what a run is doing."""

    def stage_started(self, stage: str, seed: int | None) -> None:
        """A stage begins (it may turn out to be there already)."""
        ...

    def stage_finished(self, output: StageOutput, seed: int | None) -> None:
        """A stage's output is there."""
        ...

    def progress(self, done: int, total: int, text: str) -> None:
        """How far the current stage is."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage needs beside its inputs."""

    config: RunConfig
    root: Path
    listener: Listener

    def produce(
        self,
        stage: str,
        make: Callable[[Path], None],
        *,
        version: int,
        inputs: dict[str, str],
        settings: Any,
        seed: int | None = None,
        of: str = "",
    ) -> StageOutput:
        """:func:`alkd_ray.artifacts.produce`, told to the listener; ``of`` says what it is for."""
        self.listener.stage_started(f"{stage} of {of}" if of else stage, seed)
        output = artifacts.produce(
            self.root,
            stage,
            make,
            version=version,
            inputs=inputs,
            settings=settings,
            seed=seed,
        )
        self.listener.stage_finished(output, seed)
        return output


def import_sessions(context: Context) -> StageOutput:
    """The dataset in native form. Files that the options name are part of the key."""
    data = context.config.data
    options = registry.options("sources", data.source, data.options, "data.options").model_dump()

    def make(folder: Path) -> None:
        source = registry.build("sources", data.source, data.options)
        datasets.write(source.load(), folder / "dataset")

    return context.produce(
        "import",
        make,
        version=1,
        inputs=_hashes_of_files(options),
        settings={"source": data.source, "options": options},
    )


def load_dataset(imported: StageOutput) -> datasets.Dataset:
    """The dataset of an import's output."""
    return datasets.read(imported.folder / "dataset")


def pretrain(context: Context, role: str, imported: StageOutput, seed: int) -> StageOutput:
    """A trained teacher or student: ``checkpoint/`` and ``history.json``."""
    from alkd_ray.training import checkpoint, loop

    model: ModelConfig = getattr(context.config, role)
    window = context.config.data.window

    def make(folder: Path) -> None:
        data = load_dataset(imported)
        backbone = registry.build(
            "recommenders",
            model.backbone,
            model.options,
            num_items=len(data.catalogue),
            dim=model.dim,
            generator=torch_stream(seed, "initial weights", role),
        )
        result = loop.fit(
            backbone,
            windows_of.of_split(data.sessions, "train"),
            windows_of.of_split(data.sessions, "valid"),
            model.training,
            window,
            seed,
            _step_progress(context, role, model.training.metric),
        )
        checkpoint.save(
            folder / "checkpoint",
            backbone,
            backbone_name=model.backbone,
            options=model.options,
            dim=model.dim,
            num_items=len(data.catalogue),
            metrics={model.training.metric: result.best_metric, "best_step": result.best_step},
            extra={"role": role, "window": window},
        )
        _write_history(folder, result)

    return context.produce(
        "pretrain",
        make,
        version=1,
        inputs={"dataset": imported.key},
        settings={"role": role, "model": model.model_dump(), "window": window},
        seed=seed,
        of=role,
    )


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
        train = windows_of.of_split(load_dataset(imported).sessions, "train")
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
    """
    from alkd_ray.evaluation.ranks import top_items
    from alkd_ray.training import checkpoint

    config = context.config.candidates

    def make(folder: Path) -> None:
        data = load_dataset(imported)
        ids = load_selection(selected).session_ids
        chosen = windows_of.take(data.sessions, windows_of.rows_of_ids(data.sessions, ids))
        size = min(config.size, len(data.catalogue) - int(chosen.lengths.max()))
        model = checkpoint.load(teacher.folder / "checkpoint")
        top = top_items(model, chosen, context.config.data.window, size)  # [B, C]
        if config.force_target:
            missing = ~(top == chosen.targets[:, None]).any(1)
            top[missing, -1] = chosen.targets[missing]
        if config.order == "shuffled":
            top = numpy_stream(seed, "candidate order").permuted(top, axis=1)
        pq.write_table(
            pa.table({"session_id": ids, "candidates": list(top)}), folder / "candidates.parquet"
        )

    return context.produce(
        "candidates",
        make,
        version=1,
        inputs={"dataset": imported.key, "teacher": teacher.key, "selection": selected.key},
        settings={**config.model_dump(), "window": context.config.data.window},
        seed=seed,
    )


def load_candidates(output: StageOutput) -> tuple[IntArray, list[IntArray]]:
    """Session ids ``[B]`` and the candidates of each."""
    table = pq.read_table(output.folder / "candidates.parquet")
    return table["session_id"].to_numpy(), [
        np.asarray(row, np.int64) for row in table["candidates"].to_pylist()
    ]


def distil(
    context: Context,
    imported: StageOutput,
    teacher: StageOutput,
    student: StageOutput,
    bought: Bought | None,
    seed: int,
) -> StageOutput:
    """The distilled student: ``checkpoint/`` and ``history.json``.

    Args:
        context: the run.
        imported: the dataset.
        teacher: the conventional teacher.
        student: the pretrained student, from whose weights distillation starts.
        bought: the rankings; None for methods that read none.
        seed: the run's seed.
    """
    from alkd_ray.distillation import Knowledge
    from alkd_ray.training import checkpoint

    config = context.config.distillation
    options = registry.options("distillation", config.method, config.options)
    window = context.config.data.window
    inputs = {"dataset": imported.key, "teacher": teacher.key, "student": student.key}
    if bought is not None:
        inputs["rankings"] = bought.output.key

    def make(folder: Path) -> None:
        sessions = load_dataset(imported).sessions
        ids, rankings = bought.rankings(seed) if bought else (np.zeros(0, np.int64), ())
        model = checkpoint.load(student.folder / "checkpoint")
        result = registry.build("distillation", config.method, config.options).distill(
            model,
            Knowledge(
                train=windows_of.of_split(sessions, "train"),
                valid=windows_of.of_split(sessions, "valid"),
                window=window,
                ranked_ids=ids,
                rankings=rankings,
                teacher=checkpoint.load(teacher.folder / "checkpoint"),
            ),
            config.training,
            seed,
            _step_progress(context, "distilled", config.training.metric),
        )
        backbone = context.config.student
        checkpoint.save(
            folder / "checkpoint",
            model,
            backbone_name=backbone.backbone,
            options=backbone.options,
            dim=backbone.dim,
            num_items=model.num_items,
            metrics={config.training.metric: result.best_metric, "best_step": result.best_step},
            extra={"role": "distilled", "method": config.method, "window": window},
        )
        _write_history(folder, result)

    return context.produce(
        "distillation",
        make,
        version=1,
        inputs=inputs,
        settings={
            "method": config.method,
            "options": options.model_dump(),
            "training": config.training.model_dump(),
            "window": window,
        },
        seed=seed,
    )


def evaluate(
    context: Context, imported: StageOutput, model: StageOutput, role: str, seed: int
) -> StageOutput:
    """``ranks.parquet``: the rank of every test session's target under one checkpoint."""
    from alkd_ray.evaluation import ranks
    from alkd_ray.training import checkpoint

    def make(folder: Path) -> None:
        test = windows_of.of_split(load_dataset(imported).sessions, "test")
        found = ranks.rank_targets(
            checkpoint.load(model.folder / "checkpoint"), test, context.config.data.window
        )
        ranks.write_ranks(found, folder / "ranks.parquet")

    return context.produce(
        "evaluation",
        make,
        version=1,
        inputs={"dataset": imported.key, "model": model.key},
        settings={"role": role, "window": context.config.data.window},
        seed=seed,
        of=role,
    )


def evaluate_baseline(context: Context, imported: StageOutput, name: str) -> StageOutput:
    """``ranks.parquet`` of a plain recommender, fitted to the training sessions."""
    from alkd_ray.evaluation import ranks

    def make(folder: Path) -> None:
        data = load_dataset(imported)
        plain = registry.build("recommenders", name, {}, num_items=len(data.catalogue))
        plain.fit(windows_of.of_split(data.sessions, "train"))
        test = windows_of.of_split(data.sessions, "test")
        found = ranks.rank_targets(plain, test, context.config.data.window)
        ranks.write_ranks(found, folder / "ranks.parquet")

    return context.produce(
        "evaluation",
        make,
        version=1,
        inputs={"dataset": imported.key},
        settings={"baseline": name, "window": context.config.data.window},
        of=name,
    )


def _step_progress(context: Context, what: str, metric: str) -> Callable[[int, int, float], None]:
    def report(step: int, most: int, best: float) -> None:
        context.listener.progress(step, most, f"{what}: best {metric} {best:.4f}")

    return report


def _write_history(folder: Path, result: Any) -> None:
    artifacts.write_json(
        folder / "history.json",
        {
            "best_step": result.best_step,
            "best_metric": result.best_metric,
            "steps": result.steps,
            "seconds": result.seconds,
            "history": list(result.history),
        },
    )


def _restricted(pool: DifficultyScores, allowed: IntArray) -> DifficultyScores:
    keep = np.isin(pool.session_ids, allowed)
    ranks = pool.ranks[keep]
    order = np.empty(len(ranks), np.int64)
    order[np.argsort(ranks)] = np.arange(1, len(ranks) + 1)
    return DifficultyScores(
        pool.session_ids[keep], pool.difficulty[keep], order, pool.kind, pool.direction
    )


def _hashes_of_files(options: dict[str, Any]) -> dict[str, str]:
    """Name -> content hash of every file or folder that an option whose name ends in path names."""
    found = {}
    for name, value in options.items():
        if name.endswith("path") and isinstance(value, str | Path) and str(value):
            found[name] = _content_hash(Path(value))
    return found


def _content_hash(path: Path) -> str:
    files: Sequence[Path] = sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files if path.is_dir() else [path]:
        digest.update(file.name.encode())
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
