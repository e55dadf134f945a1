"""Rates of scoring difficulty and of ranking targets, each against the plain way.

python benchmarks/difficulty.py

The difficulty of a session is that of ``DifficultyWorker`` (``alkd_ray/scoring.py``), block by
block, against a loop that scores one session at a time. ``rank_targets`` counts the items above a
target, against a sort of all scores. Both ways give the same numbers, which is checked. Rates are
per second of processor time on one thread, medians of runs made in turn; the data is the
published HetRec, or a random matrix of its size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_data
import pyarrow.parquet as pq
import torch

from alkd_ray import registry, scoring
from alkd_ray.active import difficulty
from alkd_ray.evaluation.ranks import rank_targets
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import torch_stream
from alkd_ray.sessions import of_split, take, windows
from alkd_ray.training import checkpoint
from alkd_ray.types import FloatArray, IntArray, SessionSet

WINDOW = 10
BLOCK = 4096


def plain_difficulty(model: Backbone, sessions: SessionSet) -> FloatArray:
    """``[S]``, one session at a time."""
    batch = windows(sessions, WINDOW)
    found = np.empty(len(sessions))
    with torch.inference_mode():
        table = model.item_table().numpy()
        for row in range(len(sessions)):
            items, mask = batch.items[row : row + 1], batch.mask[row : row + 1]
            encoded = model.encode(torch.from_numpy(items), torch.from_numpy(mask)).numpy()
            found[row] = difficulty.consistency(encoded, table, items, mask)[0]
    return found


def worker_difficulty(
    worker: scoring.DifficultyWorker, columns: dict[str, np.ndarray]
) -> FloatArray:
    """``[S]``, in blocks of columns as Ray Data hands them over."""
    count = len(columns["session_id"])
    parts = []
    for start in range(0, count, BLOCK):
        block = {name: values[start : start + BLOCK] for name, values in columns.items()}
        parts.append(worker(block)["difficulty"])
    return np.concatenate(parts)


def sorted_ranks(model: Backbone, sessions: SessionSet) -> IntArray:
    """``[S]`` ranks by sorting all scores of every session."""
    batch = windows(sessions, WINDOW)
    found = np.empty(len(sessions), np.int64)
    with torch.inference_mode():
        for row, (start, stop) in enumerate(
            zip(sessions.offsets[:-1], sessions.offsets[1:], strict=True)
        ):
            items = torch.from_numpy(batch.items[row : row + 1])
            scores = model.score(items, torch.from_numpy(batch.mask[row : row + 1]))[0]
            scores[torch.from_numpy(sessions.flat_items[start:stop])] = -torch.inf
            target = int(sessions.targets[row])
            order = torch.sort(scores, descending=True).indices
            lost = bool(torch.isneginf(scores[target]))
            found[row] = len(scores) + 1 if lost else int((order == target).nonzero()) + 1
    return found


def rates(
    tasks: list[tuple[Callable[[], np.ndarray], int]], rounds: int
) -> tuple[list[float], list[np.ndarray]]:
    """Sessions per second of each task (a function, the sessions it does), and what they found."""
    times = np.empty((rounds, len(tasks)))
    results: list[np.ndarray] = []
    for turn in range(rounds):
        results = []
        for column, (task, _) in enumerate(tasks):
            started = time.process_time()
            results.append(task())
            times[turn, column] = time.process_time() - started
    seconds = np.median(times, axis=0)
    return [count / s for (_, count), s in zip(tasks, seconds, strict=True)], results


def main() -> None:
    """Reads the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    published_data.add_argument(parser)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = published_data.read(given.data, "hetrec2011-ml")
    train, valid = of_split(data.sessions, "train"), of_split(data.sessions, "valid")
    few = take(train, np.arange(1000))
    some = take(valid, np.arange(300))
    num_items = len(data.catalogue)
    print(f"{data.name}; sessions per second of one thread")
    print(f"{'what':<24}{'d':>4}{'plain':>10}{'ours':>12}{'ratio':>8}")
    for dim in (10, 100):
        model = registry.build(
            "recommenders",
            "fpmc",
            {"init_std": 1.0},
            num_items=num_items,
            dim=dim,
            generator=torch_stream(1, "initial weights", "benchmark"),
        )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            checkpoint.save(
                folder / "teacher",
                model,
                backbone_name="fpmc",
                options={"init_std": 1.0},
                dim=dim,
                num_items=num_items,
                metrics={},
            )
            scoring.write_shards(train, WINDOW, folder / "shards", 1)
            table = pq.read_table(folder / "shards")
            job = scoring.ScoreJob(folder, folder / "teacher", folder / "teacher", "consistency")
            worker = scoring.DifficultyWorker(job)
        columns = {name: table[name].to_numpy() for name in table.column_names}
        (plain, ours), (slow, quick) = rates(
            [
                (lambda model=model: plain_difficulty(model, few), len(few)),
                (lambda w=worker, c=columns: worker_difficulty(w, c), len(train)),
            ],
            given.rounds,
        )
        assert np.allclose(slow, quick[: len(few)], atol=1e-6)
        print(f"{'difficulty':<24}{dim:>4}{plain:>10,.0f}{ours:>12,.0f}{ours / plain:>8.1f}")
        (plain, ours), (slow, quick) = rates(
            [
                (lambda model=model: sorted_ranks(model, some), len(some)),
                (lambda model=model: rank_targets(model, valid, WINDOW).ranks, len(valid)),
            ],
            given.rounds,
        )
        differing = int((np.abs(slow - quick[: len(some)]) > 1).sum())
        assert differing == 0, f"{differing} ranks differ"
        print(
            f"{'rank of the target':<24}{dim:>4}{plain:>10,.0f}{ours:>12,.0f}{ours / plain:>8.1f}"
        )


if __name__ == "__main__":
    main()
