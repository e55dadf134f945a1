"""Finds the students of finished runs through the records below the run root."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alkd_ray import datasets
from alkd_ray.errors import InputError
from alkd_ray.evaluation.metrics import summary
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.types import Catalogue

ROLES = ("distilled", "student", "teacher")
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class RecordedStudent:
    """One student of one run, and where its parts lie.

    Attributes:
        run_id: the run.
        role: ``distilled``, ``student`` (before distillation) or ``teacher``.
        seed: its seed.
        checkpoint: its checkpoint folder.
        dataset: the folder of the dataset that it was trained on.
        ranks: its ranks on the test sessions; None where the run has not evaluated it.
        window: input items that it sees.
        cutoffs: the cutoffs of the run's metrics.
    """

    run_id: str
    role: str
    seed: int
    checkpoint: Path
    dataset: Path
    ranks: Path | None
    window: int
    cutoffs: tuple[int, ...]

    def catalogue(self) -> Catalogue:
        """Its items."""
        return datasets.read(self.dataset).catalogue

    def test_metrics(self) -> dict[str, float]:
        """Its mean metrics on the test sessions; empty where it was not evaluated."""
        return {} if self.ranks is None else summary(read_ranks(self.ranks), self.cutoffs)


def known_runs(root: Path) -> list[str]:
    """Run ids with a record below ``root``, the one written last first."""
    files = list((root / "records").glob("*/run.json"))
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.parent.name), reverse=True)
    return [file.parent.name for file in files]


def find_student(
    root: Path, run: str, role: str = "distilled", seed: int | None = None
) -> RecordedStudent:
    """A student of a recorded run.

    Args:
        root: the run root.
        run: a run id, or ``latest`` for the run written last.
        role: which of the run's models.
        seed: which seed; None = the first of the run's config.

    Raises:
        InputError: there is no such run, role or seed, or what the record names is gone. The
            message lists what there is.
    """
    record = _read_record(root, run)
    outputs = record["outputs"]
    if role not in ROLES:
        raise InputError(f"there is no role {role!r}; roles: {', '.join(ROLES)}")
    if role not in outputs:
        made = [name for name in ROLES if name in outputs]
        raise InputError(
            f"run {record['run_id']} ({record['status']}) has made no {role} model"
            + (f", only: {', '.join(made)}" if made else "; let it run on: alkd run")
        )
    by_seed: Mapping[str, str] = outputs[role]
    wanted = str(record["config"]["seeds"][0] if seed is None else seed)
    if wanted not in by_seed:
        raise InputError(
            f"run {record['run_id']} has no seed {wanted}; its seeds: {', '.join(by_seed)}"
        )
    checkpoint = Path(by_seed[wanted]) / "checkpoint"
    dataset = Path(outputs["dataset"]) / "dataset"
    for part in (checkpoint, dataset):
        if not part.is_dir():
            raise InputError(
                f"{part}: is gone, though run {record['run_id']} made it; run it again"
            )
    evaluated = outputs.get(f"ranks of {role}", {}).get(wanted)
    return RecordedStudent(
        run_id=record["run_id"],
        role=role,
        seed=int(wanted),
        checkpoint=checkpoint,
        dataset=dataset,
        ranks=Path(evaluated) / "ranks.parquet" if evaluated else None,
        window=record["config"]["data"]["window"],
        cutoffs=tuple(record["config"]["evaluation"]["cutoffs"]),
    )


def _read_record(root: Path, run: str) -> dict[str, Any]:
    known = known_runs(root)
    if not known:
        raise InputError(f"there are no runs below {root}; make one with `alkd run`")
    run_id = known[0] if run == LATEST else run
    if run_id not in known:
        raise InputError(
            f"there is no run {run!r} below {root}; runs, latest first: {', '.join(known)}"
        )
    file = root / "records" / run_id / "run.json"
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); run it again") from error
