"""Our training under the paper preset reaches what an independent implementation reached.

The wanted recalls are those of single runs, so the tolerance is the binomial noise of the
difference of two of them: two standard errors of sqrt(2 p (1 - p) / sessions). That leaves FPMC's
recall@10 above .0062, where chance gives .0012, and AttMix's recall@25 above .0097, where chance
gives .0030. AttMix's other implementation has the layers of the published code, without dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from alkd_ray import config, registry
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import rank_targets
from alkd_ray.seeds import torch_stream
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.training import loop
from alkd_ray.types import SplitName

WINDOW = 10
NUM_ITEMS = 8475


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("backbone", "loss", "split", "wanted"),
    [
        ("fpmc", "pairwise", "test", {"recall@5": 0.0073, "recall@10": 0.0126}),
        # Cosines of one table, Atten-Mixer's own form, end at .0024.
        ("attmix", "sampled_bce", "valid", {"recall@25": 0.0170}),
    ],
)
def test_students_of_the_paper_preset(
    published_data: Path, backbone: str, loss: str, split: SplitName, wanted: dict[str, float]
) -> None:
    folder = published_data / "alkdrec" / "hetrec2011-ml"
    table = pd.read_parquet(folder / "sessions.parquet")
    sessions = from_lists(
        table["session_id"].to_numpy(),
        list(table["items"]),
        table["target"].to_numpy(),
        positional_split(len(table)),
    )
    given = {"backbone": backbone, "training": {"loss": loss}}
    student = config.make({"preset": "paper", "student": given}).student
    model = registry.build(
        "recommenders",
        student.backbone,
        student.options,
        num_items=NUM_ITEMS,
        dim=student.dim,
        generator=torch_stream(1, "initial weights", "student"),
    )
    result = loop.fit(
        model,
        of_split(sessions, "train"),
        of_split(sessions, "valid"),
        student.training,
        WINDOW,
        seed=1,
    )
    ranks = rank_targets(model, of_split(sessions, split), WINDOW)
    assert result.steps == result.best_step + 20 * 10 < 10_000  # stopped by patience
    for metric, expected in wanted.items():
        found = float(metric_values(ranks, metric).mean())
        noise = float(np.sqrt(2 * expected * (1 - expected) / len(ranks.ranks)))
        assert abs(found - expected) <= 2 * noise, f"{metric} {found:.4f}, wanted {expected}"
