"""Metrics and ranks against their definitions, on made-up scores with ties and not-a-numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alkd_ray.errors import InputError
from alkd_ray.evaluation import metrics
from alkd_ray.evaluation.ranks import rank_targets, read_ranks, top_items, write_ranks
from alkd_ray.sessions import from_lists
from alkd_ray.types import Ranks, SessionSet

UNHURRIED = settings(deadline=None)  # the machine may be busy; only the examples count
NUM_ITEMS = 12
CUTOFFS = st.integers(1, 40)
RANKS = st.lists(st.integers(1, 60), min_size=1, max_size=30).map(
    lambda found: Ranks(np.arange(len(found)), np.array(found, np.int64), 59)
)
# Few distinct scores, so that ties are the rule.
SCORES = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 0.5000001, 2.0])
SESSIONS = st.lists(
    st.tuples(
        st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=6),
        st.integers(0, NUM_ITEMS - 1),
    ),
    min_size=1,
    max_size=9,
)


@dataclass
class ByLastItem:
    """Scores are a row of a table, chosen by the session's last item."""

    table: np.ndarray
    num_items: int = NUM_ITEMS

    def score(self, items: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert bool(mask[:, -1].all())
        return torch.from_numpy(self.table)[items[:, -1]].clone()


def sessions_of(pairs: list[tuple[list[int], int]]) -> SessionSet:
    items, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return from_lists(range(len(pairs)), items, targets, ["test"] * len(pairs))


def table_of(scores: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, (NUM_ITEMS, NUM_ITEMS), elements=scores.map(np.float32))


@UNHURRIED
@given(RANKS, CUTOFFS)
def test_bounds_and_order(ranks: Ranks, k: int) -> None:
    recall, ndcg, mrr = (
        metrics.metric_values(ranks, f"{name}@{k}") for name in ("recall", "ndcg", "mrr")
    )
    assert (mrr >= 0).all()
    assert (mrr <= ndcg).all()
    assert (ndcg <= recall).all()
    assert (recall <= 1).all()
    assert ((recall > 0) == (mrr > 0)).all()


@UNHURRIED
@given(RANKS, CUTOFFS, st.integers(0, 20), st.sampled_from(["recall", "ndcg", "mrr"]))
def test_a_larger_cutoff_never_lowers(ranks: Ranks, k: int, more: int, name: str) -> None:
    small = metrics.metric_values(ranks, f"{name}@{k}")
    large = metrics.metric_values(ranks, f"{name}@{k + more}")
    assert (small <= large).all()


@UNHURRIED
@given(st.permutations(range(NUM_ITEMS)), st.integers(0, NUM_ITEMS - 1), st.integers(1, NUM_ITEMS))
def test_metrics_are_those_of_a_list(order: list[int], target: int, k: int) -> None:
    """From their textbook definitions over a ranked list with one relevant item."""
    ranks = Ranks(np.zeros(1, np.int64), np.array([order.index(target) + 1]), NUM_ITEMS)
    gains = [1 if item == target else 0 for item in order[:k]]
    dcg = sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
    ideal = 1 / math.log2(2)
    reciprocal = max((gain / (place + 1) for place, gain in enumerate(gains)), default=0)
    assert metrics.metric_values(ranks, f"recall@{k}")[0] == sum(gains)
    assert metrics.metric_values(ranks, f"ndcg@{k}")[0] == pytest.approx(dcg / ideal)
    assert metrics.metric_values(ranks, f"mrr@{k}")[0] == pytest.approx(reciprocal)


@UNHURRIED
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5_000), min_size=10, max_size=10, unique=True),
            st.integers(0, 11),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 10),
)
def test_reference_ndcg_is_the_published_loop(rows: list[tuple[list[int], int]], k: int) -> None:
    top = np.array([row for row, _ in rows])
    targets = np.array([row[place] if place < 10 else 6_000 for row, place in rows])
    wanted = []
    for row, target in zip(top.tolist(), targets.tolist(), strict=True):
        value = 0.0
        for place, item in enumerate(set(row[:k])):
            if item == target:
                value = 1 / math.log2(place + 2)
        wanted.append(value)
    np.testing.assert_allclose(metrics.reference_ndcg(top, targets, k), wanted)


@UNHURRIED
@given(table_of(SCORES | st.just(math.nan)), SESSIONS, st.integers(1, 4))
def test_ranks_are_those_of_a_naive_sort(
    table: np.ndarray, pairs: list[tuple[list[int], int]], block_rows: int
) -> None:
    found = rank_targets(ByLastItem(table), sessions_of(pairs), 10, block_rows=block_rows)
    for (items, target), rank in zip(pairs, found.ranks.tolist(), strict=True):
        scores = table[items[-1]].tolist()
        if target in items or math.isnan(scores[target]) or scores[target] == -math.inf:
            assert rank == NUM_ITEMS + 1
            continue
        rivals = [item for item in range(NUM_ITEMS) if item not in {*items, target}]
        # Against the model: not-a-number first, then by score, the target last of its equals.
        order = sorted(
            [*rivals, target],
            key=lambda item: (
                -math.inf if math.isnan(scores[item]) else -scores[item],
                item == target,
            ),
        )
        assert rank == order.index(target) + 1


@UNHURRIED
@given(table_of(SCORES), SESSIONS, st.integers(1, NUM_ITEMS), st.integers(1, 4))
def test_top_items_are_those_of_a_naive_sort(
    table: np.ndarray, pairs: list[tuple[list[int], int]], k: int, block_rows: int
) -> None:
    found = top_items(ByLastItem(table), sessions_of(pairs), 10, k, block_rows=block_rows)
    for (items, _), row in zip(pairs, found.tolist(), strict=True):
        scores = table[items[-1]].tolist()
        free = [i for i in range(NUM_ITEMS) if i not in items and scores[i] != -math.inf]
        order = sorted(free, key=lambda item: (-scores[item], item))[:k]
        assert row == order + [-1] * (k - len(order))


@UNHURRIED
@given(st.floats(-3, 3, width=32), SESSIONS)
def test_a_constant_model_scores_zero(value: float, pairs: list[tuple[list[int], int]]) -> None:
    table = np.full((NUM_ITEMS, NUM_ITEMS), value, np.float32)
    found = rank_targets(ByLastItem(table), sessions_of(pairs), 10)
    assert metrics.summary(found, [1, 5])["recall@5"] == 0


def test_a_target_that_cannot_be_recommended_is_no_hit_in_a_small_catalogue() -> None:
    excluded = Ranks(np.array([0, 1]), np.array([9, 8]), num_items=8)
    assert metrics.metric_values(excluded, "recall@10").tolist() == [0.0, 1.0]
    assert metrics.metric_values(excluded, "mrr@10").tolist() == [0.0, 1 / 8]


@UNHURRIED
@given(RANKS)
def test_ranks_survive_their_file(tmp_path_factory: pytest.TempPathFactory, ranks: Ranks) -> None:
    file = tmp_path_factory.mktemp("ranks") / "ranks.parquet"
    write_ranks(ranks, file)
    back = read_ranks(file)
    np.testing.assert_array_equal(back.ranks, ranks.ranks)
    np.testing.assert_array_equal(back.session_ids, ranks.session_ids)
    assert back.num_items == ranks.num_items


@pytest.mark.parametrize("name", ["recall", "recall@", "recall@0", "recall@-1", "hits@5", "@5"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown metric"):
        metrics.metric_values(Ranks(np.zeros(1, np.int64), np.ones(1, np.int64), 5), name)
