"""The stages of a run: what each reads, the settings it declares, and what it writes.

Each function finds its output by content, or makes it (see :mod:`alkd_ray.artifacts`). They are
called, in order, by :mod:`alkd_ray.pipeline` alone.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from alkd_ray import artifacts, datasets, registry
from alkd_ray import sessions as windows_of
from alkd_ray.artifacts import StageOutput
from alkd_ray.bought import rankings_of
from alkd_ray.config import ModelConfig, RunConfig, canonical_hash
from alkd_ray.errors import InputError
from alkd_ray.seeds import torch_stream
from alkd_ray.storage import Storage
from alkd_ray.types import FloatArray

# Told of a training's step and best validation metric so far; may raise to end it.
Watch = Callable[[int, float], None]


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


class Silent:
    """A listener that says nothing: of many at once, each has no bar of its own."""

    def stage_started(self, stage: str, seed: int | None) -> None:
        """Nothing."""

    def stage_finished(self, output: StageOutput, seed: int | None) -> None:
        """Nothing."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage needs beside its inputs."""

    config: RunConfig
    root: Path
    listener: Listener

    @property
    def storage(self) -> Storage | None:
        """Where outputs are kept beside the run root, for other machines; None = nowhere."""
        return Storage.of(self.config.storage)

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
            storage=self.storage,
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
        inputs=hashes_of_files(options),
        settings={"source": data.source, "options": options},
    )


def load_dataset(imported: StageOutput) -> datasets.Dataset:
    """The dataset of an import's output; one that was just read is not read again."""
    return _read(imported.folder)


@functools.lru_cache(maxsize=2)
def _read(folder: Path) -> datasets.Dataset:
    return datasets.read(folder / "dataset")


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

    return context.produce("pretrain", make, of=role, **_pretraining(context, role, imported, seed))


def is_pretrained(context: Context, role: str, imported: StageOutput, seed: int) -> bool:
    """Whether :func:`pretrain` has nothing to do."""
    key = artifacts.stage_key("pretrain", **_pretraining(context, role, imported, seed))
    return artifacts.is_there(context.root, "pretrain", key, context.storage)


def _pretraining(context: Context, role: str, imported: StageOutput, seed: int) -> dict[str, Any]:
    """What decides a pretrained model."""
    model: ModelConfig = getattr(context.config, role)
    return {
        "version": 1,
        "inputs": {"dataset": imported.key},
        "settings": {
            "role": role,
            "model": model.model_dump(),
            "window": context.config.data.window,
            **_defaults_of_yours(model.backbone, model.options),
        },
        "seed": seed,
    }


def _defaults_of_yours(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """For a key: all options of a recommender from outside (``package.module:Class``).

    Where a default of ours changes, the stage's version is raised; of yours, nobody would do so.
    """
    if ":" not in name:
        return {}
    return {"plugin": registry.options("recommenders", name, options).model_dump(mode="json")}


def distil(
    context: Context,
    imported: StageOutput,
    teacher: StageOutput,
    student: StageOutput,
    rankings: StageOutput | None,
    seed: int,
    watch: Watch | None = None,
) -> StageOutput:
    """The distilled student: ``checkpoint/`` and ``history.json``.

    Args:
        context: the run.
        imported: the dataset.
        teacher: the conventional teacher.
        student: the pretrained student, from whose weights distillation starts.
        rankings: the annotation's output; None for methods that read none.
        seed: the run's seed.
        watch: looks at the training, if it is not there already.
    """
    from alkd_ray.distillation import Knowledge
    from alkd_ray.training import checkpoint

    config = context.config.distillation
    options = registry.options("distillation", config.method, config.options)
    window = context.config.data.window
    inputs = {"dataset": imported.key, "teacher": teacher.key, "student": student.key}
    inputs |= hashes_of_files(options.model_dump())
    ids, ranked = rankings_of(rankings, seed) if rankings else (np.zeros(0, np.int64), ())
    if rankings is not None:  # what it reads, whatever else was bought with it
        inputs["rankings"] = canonical_hash([ids.tolist(), [row.tolist() for row in ranked]])

    def make(folder: Path) -> None:
        sessions = load_dataset(imported).sessions
        model = checkpoint.load(student.folder / "checkpoint")
        result = registry.build("distillation", config.method, config.options).distill(
            model,
            Knowledge(
                train=windows_of.of_split(sessions, "train"),
                valid=windows_of.of_split(sessions, "valid"),
                window=window,
                ranked_ids=ids,
                rankings=ranked,
                teacher=checkpoint.load(teacher.folder / "checkpoint"),
            ),
            config.training,
            seed,
            _step_progress(context, "distilled", config.training.metric, watch),
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
    context: Context,
    imported: StageOutput,
    model: StageOutput,
    role: str,
    seed: int,
    split: Literal["test", "valid"] = "test",
) -> StageOutput:
    """``ranks.parquet``: the rank of every target of a split under one checkpoint."""
    from alkd_ray.evaluation import ranks
    from alkd_ray.training import checkpoint

    def make(folder: Path) -> None:
        sessions = windows_of.of_split(load_dataset(imported).sessions, split)
        found = ranks.rank_targets(
            checkpoint.load(model.folder / "checkpoint"), sessions, context.config.data.window
        )
        ranks.write_ranks(found, folder / "ranks.parquet")

    return context.produce(
        "evaluation" if split == "test" else "validation",
        make,
        version=1,
        inputs={"dataset": imported.key, "model": model.key},
        settings={"role": role, "window": context.config.data.window},
        seed=seed,
        of=role,
    )


def reference_ndcg(
    context: Context, imported: StageOutput, model: StageOutput, cutoffs: Sequence[int]
) -> dict[int, FloatArray]:
    """What the paper calls ndcg@k, by cutoff: ``[S]`` float64 over the test sessions.

    Kept as ``reference_ndcg.parquet``; see :func:`alkd_ray.evaluation.metrics.reference_ndcg`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from alkd_ray.evaluation import metrics, ranks
    from alkd_ray.training import checkpoint

    def make(folder: Path) -> None:
        test = windows_of.of_split(load_dataset(imported).sessions, "test")
        recommender = checkpoint.load(model.folder / "checkpoint")
        top = ranks.top_items(recommender, test, context.config.data.window, max(cutoffs))
        values = {f"{k}": metrics.reference_ndcg(top, test.targets, k) for k in cutoffs}
        pq.write_table(pa.table(values), folder / "reference_ndcg.parquet")

    kept = context.produce(
        "reference",
        make,
        version=1,
        inputs={"dataset": imported.key, "model": model.key},
        settings={"cutoffs": list(cutoffs), "window": context.config.data.window},
    )
    table = pq.read_table(kept.folder / "reference_ndcg.parquet")
    return {k: table[f"{k}"].to_numpy() for k in cutoffs}


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
        settings={
            "baseline": name,
            "window": context.config.data.window,
            **_defaults_of_yours(name, {}),
        },
        of=name,
    )


def check_distillation(config: RunConfig) -> None:
    """Refuses files that a distillation could not read, before anything is bought for it.

    Raises:
        InputError: an option names a path where nothing is.
    """
    method = config.distillation
    options = registry.options("distillation", method.method, method.options).model_dump()
    for name, path in _paths_in(options).items():
        if not path.exists():
            raise InputError(f"distillation.options.{name}: there is nothing at {path.absolute()}")


def _step_progress(
    context: Context, what: str, metric: str, watch: Watch | None = None
) -> Callable[[int, int, float], None]:
    def report(step: int, most: int, best: float) -> None:
        if watch is not None:
            watch(step, best)
        text = f"{what}: best {metric} {best:.4f}; ends sooner where it no longer gains"
        context.listener.progress(step, most, text)

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


def hashes_of_files(options: dict[str, Any]) -> dict[str, str]:
    """Name -> content hash of every file or folder that an option whose name ends in path names."""
    return {name: _content_hash(path) for name, path in _paths_in(options).items()}


def _paths_in(options: dict[str, Any]) -> dict[str, Path]:
    return {
        name: Path(value)
        for name, value in options.items()
        if name.endswith("path") and isinstance(value, str | Path) and str(value)
    }


def _content_hash(path: Path) -> str:
    files: Sequence[Path] = sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files if path.is_dir() else [path]:
        digest.update(file.name.encode())
        if file.is_file():
            is_now = file.stat()
            digest.update(_digest(file, is_now.st_ino, is_now.st_size, is_now.st_mtime_ns))
    return digest.hexdigest()[:16]


# A report looks at hundreds of settings, each of which names the same files.
@functools.lru_cache(maxsize=256)
def _digest(file: Path, inode: int, size: int, changed_at: int) -> bytes:
    """The SHA-256 of a file, read again once it is another one, or has changed."""
    del inode, size, changed_at
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
