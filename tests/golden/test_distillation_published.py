"""Distillation from the authors' own students with their recorded GPT-4 rankings.

The wanted numbers are means over seeds (5 on HetRec, 3 on Games) of runs made independently of this
project, from the same published files, with the published settings: bands of 6/10/9 by repetition,
Adam 1e-3, batches of 1,024 rows, validation every 20 steps, patience 20, recall@50. A seed is the
order of the batches alone. The padding id of the published code is item 0, so the tests evaluate
as it does (item 0 removed from short windows) and hold that item's input embedding at zero.

The default run has the two HetRec strategies furthest apart by recall@10; all ten cases are
marked slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.types import SessionSet

WINDOW = 10
METRICS = ("recall@5", "recall@10", "ndcg@10")
TRAINING = TrainingConfig(patience=20, metric="recall@50")
HETREC, GAMES = "hetrec2011-ml", "amazon-games"
RANKED = {HETREC: 500, GAMES: 750}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Means of the three metrics and their standard deviations over seeds."""

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


WANTED = {
    HETREC: {
        "alkdrec": Wanted((0.0131, 0.0198, 0.0111), (0.0007, 0.0008, 0.0004)),
        "rad-bc": Wanted((0.0090, 0.0148, 0.0076), (0.0005, 0.0006, 0.0002)),
        "random": Wanted((0.0102, 0.0188, 0.0101), (0.0005, 0.0006, 0.0004)),
        "easiest": Wanted((0.0097, 0.0159, 0.0083), (0.0014, 0.0003, 0.0003)),
        "hardest": Wanted((0.0097, 0.0135, 0.0078), (0.0003, 0.0005, 0.0002)),
    },
    GAMES: {
        "alkdrec": Wanted((0.0343, 0.0540, 0.0296), (0.0007, 0.0002, 0.0003)),
        "rad-bc": Wanted((0.0362, 0.0528, 0.0288), (0.0006, 0.0007, 0.0004)),
        "random": Wanted((0.0303, 0.0489, 0.0257), (0.0007, 0.0009, 0.0005)),
        "easiest": Wanted((0.0314, 0.0468, 0.0251), (0.0017, 0.0016, 0.0013)),
        "hardest": Wanted((0.0285, 0.0445, 0.0243), (0.0003, 0.0003, 0.0006)),
    },
}


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


def knowledge_of(folder: Path, sessions: SessionSet, strategy: str) -> Knowledge:
    recorded = pd.read_parquet(folder / "llm_rankings.parquet").set_index("session_id")["ranking"]
    selections = json.loads((folder / "selections.json").read_text())
    ids = selections[strategy][: RANKED[folder.name]]
    return Knowledge(
        train=of_split(sessions, "train"),
        valid=of_split(sessions, "valid"),
        window=WINDOW,
        ranked_ids=np.array(ids, np.int64),
        rankings=tuple(np.asarray(recorded[i], np.int64) for i in ids),
        teacher=published_fpmc(folder / "fpmc_student.npz"),
    )


def without_item_0(gradient: Tensor) -> Tensor:
    """The gradient of a table of embeddings, zero at item 0."""
    changed = gradient.clone()
    changed[0] = 0
    return changed


def distilled(folder: Path, strategy: str, seed: int) -> tuple[float, ...]:
    """The metrics of one distilled student on the test split."""
    sessions = read(folder)
    student = published_fpmc(folder / "fpmc_student.npz")
    student.input_item_embedding.register_hook(without_item_0)
    options = ALKDRec.Config(reference_bands=True)  # pyright: ignore[reportCallIssue]
    result = ALKDRec(**options.model_dump()).distill(
        student, knowledge_of(folder, sessions, strategy), TRAINING, seed
    )
    assert 200 <= result.best_step <= 3000
    assert not student.input_item_embedding[0].any()
    num_items = student.num_items

    def also_exclude(items: Tensor, mask: Tensor) -> Tensor:
        removed = torch.zeros((len(items), num_items), dtype=torch.bool)
        removed[:, 0] = ~mask.all(1)
        return removed

    ranks = rank_targets(
        student, of_split(sessions, "test"), WINDOW, exclude="window", also_exclude=also_exclude
    )
    return tuple(float(metric_values(ranks, metric).mean()) for metric in METRICS)


def mean_of_seeds(folder: Path, strategy: str, seeds: int) -> np.ndarray:
    """``[3]``, the metrics' means over seeds 0 .. ``seeds`` - 1."""
    return np.mean([distilled(folder, strategy, seed) for seed in range(seeds)], axis=0)


def check(found: np.ndarray, name: str, strategy: str, seeds: int) -> None:
    """Whether the mean of a correct implementation may lie within two sd of the wanted mean.

    Ours is known up to its standard error, so two of those are allowed on top. They are worked out
    from the sd pooled over the data set's strategies, since one of 3 to 5 runs is itself known to
    a factor of two at best.
    """
    wanted = WANTED[name][strategy]
    pooled = np.sqrt(np.mean([np.square(other.sd) for other in WANTED[name].values()], axis=0))
    allowed = 2 * (np.array(wanted.sd) + pooled / np.sqrt(seeds))
    for metric, mine, theirs, most in zip(METRICS, found, wanted.mean, allowed, strict=True):
        assert abs(mine - theirs) <= most, (
            f"{name} {strategy} {metric}: {mine:.5f}, wanted {theirs} +- {most:.5f}"
        )


def test_alkdrec_and_hardest_on_hetrec(published_data: Path) -> None:
    """The paper's order of the two, and both where the independent runs lie.

    Details of the published code were varied on HetRec's alkdrec; a validation counts as in the
    product unless said. Without effect on the best step and the recalls of any seed: validation
    that removes the window's items alone, with item 0 or without, or that starts at step 20
    (10 seeds), and a loss 1,024 times as large (5 seeds, item 0 trained). Means +- sd over seeds of
    recall@5, then recall@10 and ndcg@10:
    item 0's input embedding held at zero, as here: .0122 +- .0008, .0196, .0109 (10 seeds);
    trained as any other: .0122 +- .0010, .0198, .0110 (8 seeds);
    held at zero, patience 21: .0123 +- .0009, .0198, .0109 (10 seeds);
    held at zero, a tie in validation is a gain: .0126 +- .0012, .0200, .0109 (10 seeds).
    The first is 1.9 standard errors below the wanted recall@5, 2 hits of 2,465; no detail above
    was found to explain it.
    """
    folder = published_data / "alkdrec" / HETREC
    alkdrec = mean_of_seeds(folder, "alkdrec", 3)
    hardest = mean_of_seeds(folder, "hardest", 2)
    check(alkdrec, HETREC, "alkdrec", 3)
    check(hardest, HETREC, "hardest", 2)
    assert alkdrec[METRICS.index("recall@10")] > hardest[METRICS.index("recall@10")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [HETREC, GAMES])
@pytest.mark.parametrize("strategy", ["alkdrec", "rad-bc", "random", "easiest", "hardest"])
def test_every_strategy(published_data: Path, name: str, strategy: str) -> None:
    found = mean_of_seeds(published_data / "alkdrec" / name, strategy, 3)
    check(found, name, strategy, 3)
