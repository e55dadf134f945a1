"""Difficulty by Ray Data: a stateful map over the shards, the models loaded once per worker."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.dataset as arrow_dataset
import pyarrow.parquet as pq
import ray

from alkd_ray.runtime.cluster import ensure_ray
from alkd_ray.scoring import DifficultyWorker, ScoreJob

# One actor of half a CPU: actors that take every CPU starve the reads, and the job hangs.
ACTOR_CPUS = 0.5
BATCH_ROWS = 4096


def score(job: ScoreJob, out: Path) -> None:
    """Scores all shards of ``job``; writes ``session_id, difficulty`` (rows by id) to ``out``."""
    ensure_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    actors = max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".scored-") as scored:
        ray.data.read_parquet(str(job.shards)).map_batches(
            DifficultyWorker,
            fn_constructor_args=(job,),
            batch_size=BATCH_ROWS,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=ACTOR_CPUS,
        ).write_parquet(scored)
        table = arrow_dataset.dataset(scored, format="parquet").to_table()
        pq.write_table(table.sort_by("session_id"), out, compression="zstd")
