"""Difficulty of many sessions: the shards that are read, and the worker that scores a block.

The worker is the same for the plain loop of one process (:func:`score_in_process`) and for Ray
Data (:mod:`alkd_ray.runtime.scoring`); it loads the models once and maps blocks of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alkd_ray import sessions as windows_of
from alkd_ray.types import SessionSet

OVERLAP_TOP = 20
_ITEM = "item_"  # of the names of the shards' columns


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What to score.

    Attributes:
        shards: folder of Parquet shards (see :func:`write_shards`).
        teacher: checkpoint folder of the teacher.
        student: checkpoint folder of the student (used by kind ``overlap``).
        kind: ``consistency`` (df_s of the paper) or ``overlap`` (what the published code used).
    """

    shards: Path
    teacher: Path
    student: Path
    kind: Literal["consistency", "overlap"]


def write_shards(sessions: SessionSet, window: int, folder: Path, shards: int) -> None:
    """Windows as flat integer columns, which Parquet and Arrow read fastest.

    Columns: ``session_id`` and ``item_0`` .. (right-aligned, -1 where there is none).
    """
    folder.mkdir(parents=True)
    batch = windows_of.windows(sessions, window)
    items = np.where(batch.mask, batch.items, -1).astype(np.int32)  # [S, L]
    columns = {f"{_ITEM}{column}": items[:, column] for column in range(window)}
    table = pa.table({"session_id": sessions.ids, **columns})
    for shard, rows in enumerate(np.array_split(np.arange(len(sessions)), shards)):
        if len(rows):
            part = table.slice(int(rows[0]), len(rows))
            pq.write_table(part, folder / f"part-{shard:05d}.parquet", compression="zstd")


class DifficultyWorker:
    """Maps a block of shard columns to ``session_id`` and ``difficulty`` (larger = harder)."""

    def __init__(self, job: ScoreJob) -> None:
        from alkd_ray.training import checkpoint

        self.kind = job.kind
        self.teacher = checkpoint.load(job.teacher)
        self.student = checkpoint.load(job.student) if job.kind == "overlap" else None

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores one block of B sessions; equal for every way of cutting the blocks."""
        # Ray Data is free to hand over columns in another order, and text puts 100 before 11.
        names = sorted(
            (name for name in columns if name.startswith(_ITEM)),
            key=lambda name: int(name.removeprefix(_ITEM)),
        )
        items = np.stack([columns[name] for name in names], axis=1).astype(np.int64)  # [B, L]
        mask = items >= 0
        items = np.where(mask, items, 0)
        score = self._consistency if self.kind == "consistency" else self._overlap
        return {"session_id": columns["session_id"], "difficulty": score(items, mask)}

    def _consistency(self, items: np.ndarray, mask: np.ndarray) -> np.ndarray:
        import torch

        from alkd_ray.active import difficulty

        with torch.inference_mode():
            encoded = self.teacher.encode(torch.from_numpy(items), torch.from_numpy(mask))
            table = self.teacher.item_table()
        return difficulty.consistency(encoded.numpy(), table.detach().numpy(), items, mask)

    def _overlap(self, items: np.ndarray, mask: np.ndarray) -> np.ndarray:
        from alkd_ray.active import difficulty
        from alkd_ray.evaluation.ranks import top_items

        assert self.student is not None
        lengths = mask.sum(1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        block = SessionSet(
            ids=np.arange(len(items)),
            flat_items=items[mask],
            offsets=offsets,
            targets=np.zeros(len(items), np.int64),
            split=np.zeros(len(items), np.int8),
        )
        window = items.shape[1]
        tops = [
            top_items(model, block, window, OVERLAP_TOP) for model in (self.teacher, self.student)
        ]
        return difficulty.overlap(*tops)


def score_in_process(job: ScoreJob, out: Path) -> None:
    """The plain form: one loop over the shards; writes ``session_id, difficulty`` to ``out``."""
    worker = DifficultyWorker(job)
    parts = []
    for file in sorted(job.shards.glob("*.parquet")):
        table = pq.read_table(file)
        parts.append(worker({name: table[name].to_numpy() for name in table.column_names}))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pq.write_table(pa.table(columns), out, compression="zstd")
