"""Distillation from the authors' own students with their recorded GPT-4 rankings.

The wanted numbers are means over seeds of runs made independently of this project, from the same
published files, with the published settings: bands of 6/10/9 by repetition, Adam 1e-3, batches of
1,024 rows, validation every 20 steps, patience 20, recall@50.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation.alkdrec import ALKDRec
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import rank_targets
from alkd_ray.recommenders._published import published_fpmc
from alkd_ray.registry import PluginConfig
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.types import SessionSet

WINDOW = 10
METRICS = ("recall@5", "recall@10", "ndcg@10")
TRAINING = TrainingConfig(patience=20, metric="recall@50")

# dataset, strategy, sessions, seeds, wanted recall@5, recall@10, ndcg@10.
CASES = [
    ("hetrec2011-ml", "alkdrec", 500, 3, (0.0131, 0.0198, 0.0111)),
    ("hetrec2011-ml", "rad-bc", 500, 2, (0.0090, 0.0148, 0.0076)),
    ("hetrec2011-ml", "random", 500, 2, (0.0102, 0.0188, 0.0101)),
    ("hetrec2011-ml", "easiest", 500, 2, (0.0097, 0.0159, 0.0083)),
    ("hetrec2011-ml", "hardest", 500, 2, (0.0097, 0.0135, 0.0078)),
    ("amazon-games", "alkdrec", 750, 2, (0.0343, 0.0540, 0.0296)),
    ("amazon-games", "hardest", 750, 1, (0.0285, 0.0445, 0.0243)),
]
# The wanted means' sd over seeds is .0002-.0014 (HetRec), .0002-.0017 (Games). Means of 1-3 seeds
# are allowed about two of the larger ones; the strategies lie up to 3 times as far apart.
TOLERANCE = {"hetrec2011-ml": (0.0016, 0.0016, 0.0010), "amazon-games": (0.0026, 0.0022, 0.0016)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(folder: Path) -> SessionSet:
    table = pd.read_parquet(folder / "sessions.parquet")
    return from_lists(
        table["session_id"].to_numpy(),
        list(table["items"]),
        table["target"].to_numpy(),
        positional_split(len(table)),
    )


def distilled(
    folder: Path, sessions: SessionSet, strategy: str, count: int, seed: int
) -> tuple[float, ...]:
    student = published_fpmc(folder / "fpmc_student.npz")
    recorded = pd.read_parquet(folder / "llm_rankings.parquet").set_index("session_id")["ranking"]
    ids = json.loads((folder / "selections.json").read_text())[strategy][:count]
    result = ALKDRec(**options(reference_bands=True).model_dump()).distill(
        student,
        Knowledge(
            train=of_split(sessions, "train"),
            valid=of_split(sessions, "valid"),
            window=WINDOW,
            ranked_ids=np.array(ids, np.int64),
            rankings=tuple(np.asarray(recorded[i], np.int64) for i in ids),
            teacher=student,
        ),
        TRAINING,
        seed,
    )
    assert 200 <= result.best_step <= 3000
    num_items = student.num_items

    def also_exclude(items: Tensor, mask: Tensor) -> Tensor:
        removed = torch.zeros((len(items), num_items), dtype=torch.bool)
        removed[:, 0] = ~mask.all(1)  # the published evaluation removes its padding id, 0
        return removed

    ranks = rank_targets(
        student, of_split(sessions, "test"), WINDOW, exclude="window", also_exclude=also_exclude
    )
    return tuple(float(metric_values(ranks, metric).mean()) for metric in METRICS)


def options(**given: object) -> PluginConfig:
    return ALKDRec.Config(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "strategy", "count", "seeds", "wanted"), CASES, ids=lambda value: str(value)
)
def test_distilled_student_is_the_published_one(
    published_data: Path,
    name: str,
    strategy: str,
    count: int,
    seeds: int,
    wanted: tuple[float, ...],
) -> None:
    folder = published_data / "alkdrec" / name
    sessions = read(folder)
    found = np.mean(
        [distilled(folder, sessions, strategy, count, seed) for seed in range(seeds)], axis=0
    )
    for metric, mine, theirs, allowed in zip(METRICS, found, wanted, TOLERANCE[name], strict=True):
        assert abs(mine - theirs) <= allowed, f"{metric} {mine:.5f}, wanted {theirs} +- {allowed}"
