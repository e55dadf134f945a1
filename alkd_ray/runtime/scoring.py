"""Difficulty by Ray Data: a map over the shards, the models loaded once per worker process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.dataset as arrow_dataset
import pyarrow.parquet as pq
import ray

from alkd_ray.runtime.cluster import all_nodes_see, ensure_ray
from alkd_ray.scoring import DifficultyWorker, ScoreJob, score_in_process

BATCH_ROWS = 16_384


def score(job: ScoreJob, out: Path) -> None:
    """Scores all shards of ``job``; writes ``session_id, difficulty`` (rows by id) to ``out``.

    Tasks, not actors: worker processes live on between tasks, so the models are loaded once in
    each as well, without the seconds that a pool of actors takes to start, and without the danger
    that actors hold every CPU while the reads starve. Where nodes do not share the run root, this
    process scores alone.
    """
    ensure_ray()
    if not all_nodes_see(job.shards.parent):  # Ray Data reads on any node
        score_in_process(job, out)
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".scored-") as scored:
        scored_block: Any = functools.partial(_scored_block, job=job)
        ray.data.read_parquet(str(job.shards)).map_batches(
            scored_block, batch_size=BATCH_ROWS, batch_format="numpy"
        ).write_parquet(scored)
        table = arrow_dataset.dataset(scored, format="parquet").to_table()
        pq.write_table(table.sort_by("session_id"), out, compression="zstd")


def _scored_block(columns: dict[str, Any], job: ScoreJob) -> dict[str, Any]:
    return _worker(job)(columns)


@functools.lru_cache(maxsize=2)
def _worker(job: ScoreJob) -> DifficultyWorker:
    """One per process and job; it holds the models."""
    return DifficultyWorker(job)
