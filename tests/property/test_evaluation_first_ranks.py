"""Ranks as far as a metric looks: those of a whole ranking, and screening that leaves much out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alkd_ray import registry
from alkd_ray.evaluation import first_ranks as module
from alkd_ray.evaluation.first_ranks import first_ranks
from alkd_ray.evaluation.metrics import cutoff_of, metric_values
from alkd_ray.evaluation.ranks import ENCODED_ROWS, rank_targets
from alkd_ray.sessions import from_lists
from alkd_ray.types import SessionSet

UNHURRIED = settings(deadline=None)  # the machine may be busy; only the examples count
NUM_ITEMS, WINDOW = 14, 4
# Few distinct numbers, so that ties are the rule; some that are none.
NUMBERS = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 0.5000001, 3.0, math.inf, math.nan])
FINITE = st.floats(-4, 4, width=32)


@dataclass
class Vectors:
    """Windows and items are vectors; a window's is chosen by its last item."""

    windows: np.ndarray
    items: np.ndarray
    num_items: int = NUM_ITEMS

    def encode(self, items: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert bool(mask[:, -1].all())
        return torch.from_numpy(self.windows)[items[:, -1]]

    def item_table(self) -> torch.Tensor:
        return torch.from_numpy(self.items)

    def score(self, items: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.encode(items, mask) @ self.item_table().T


def vectors(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, (NUM_ITEMS, 3), elements=numbers.map(np.float32))


def sessions_of(pairs: list[tuple[list[int], int]]) -> SessionSet:
    items, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return from_lists(range(len(pairs)), items, targets, ["valid"] * len(pairs))


ITEM = st.integers(0, NUM_ITEMS - 1)
SESSIONS = st.lists(
    st.tuples(st.lists(ITEM, min_size=1, max_size=6), ITEM), min_size=1, max_size=9
).map(sessions_of)


@UNHURRIED
@given(
    st.one_of(*[st.tuples(vectors(n), vectors(n)) for n in (NUMBERS, FINITE)]),
    SESSIONS,
    st.integers(1, NUM_ITEMS),
    st.integers(1, NUM_ITEMS),
)
def test_first_ranks_are_those_of_all_items(
    tables: tuple[np.ndarray, np.ndarray], sessions: SessionSet, up_to: int, few: int
) -> None:
    backbone = Vectors(*tables)
    whole = rank_targets(backbone, sessions, WINDOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW_ITEMS", few)
        found = first_ranks(backbone, sessions, WINDOW, up_to)
    assert found.ranks.tolist() == np.minimum(whole.ranks, up_to + 1).tolist()
    assert found.session_ids.tolist() == whole.session_ids.tolist()
    assert found.num_items == whole.num_items


@pytest.mark.parametrize("name", ["fpmc", "stamp", "attmix"])
def test_most_targets_of_a_large_catalogue_are_left_out_and_no_metric_changes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_items, count = 6_000, ENCODED_ROWS + 100
    rng = np.random.default_rng(3)
    backbone = registry.build(
        "recommenders",
        name,
        {},
        num_items=num_items,
        dim=10,
        generator=torch.Generator().manual_seed(3),
    )
    lengths = rng.integers(1, 9, count)
    sessions = from_lists(
        range(count),
        [rng.integers(0, num_items, length).tolist() for length in lengths],
        rng.integers(0, num_items, count).tolist(),
        ["valid"] * count,
    )
    looked_at: list[int] = []

    def counted(backbone: object, sessions: SessionSet, window: int) -> object:
        looked_at.append(len(sessions))
        return rank_targets(backbone, sessions, window)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "rank_targets", counted)
    whole = rank_targets(backbone, sessions, WINDOW)
    for metric in ("recall@50", "ndcg@10", "mrr@1"):
        found = first_ranks(backbone, sessions, WINDOW, cutoff_of(metric))
        assert (metric_values(found, metric) == metric_values(whole, metric)).all()
    assert metric_values(whole, "recall@50").sum() > 0
    assert max(looked_at) < count / 2
    # Of the same items all have the same score: nothing is certain, and nothing is found.
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    found = first_ranks(backbone, sessions, WINDOW, 50)
    assert (found.ranks == 51).all()
    assert looked_at[-1] == count
