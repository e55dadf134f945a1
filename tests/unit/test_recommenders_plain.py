"""Each plain recommender solves a tiny world whose answer is worked out by hand."""

import math

import numpy as np
import pytest
import torch

from alkd_ray import registry
from alkd_ray import sessions as windows_of
from alkd_ray.recommenders import _counting


def fitted(name, lists, num_items, **options):
    """A recommender fitted to whole sessions, each given with its target as the last item."""
    model = registry.build("recommenders", name, options, num_items=num_items)
    inputs, targets = [row[:-1] for row in lists], [row[-1] for row in lists]
    model.fit(windows_of.from_lists(range(len(lists)), inputs, targets, ["train"] * len(lists)))
    return model


def scores(model, *window):
    items = torch.tensor([window])
    return model.score(items, torch.ones_like(items, dtype=torch.bool))[0].numpy()


def test_popularity_counts_inputs_and_targets():
    model = fitted("popularity", [[0, 1], [1, 2, 1], [1, 3]], 5)
    assert scores(model, 4).tolist() == [1, 4, 1, 1, 0]


def test_item_knn_is_the_cosine_over_sessions():
    # 0 and 1 share 2 sessions, 0 and 2 one; 0 is in 3 sessions, 1 in 2, 2 in 2.
    lists = [[0, 1], [1, 0, 0], [0, 2], [2, 3]]
    model = fitted("item-knn", lists, 5, shrinkage=0.0)
    expected = [0, 2 / math.sqrt(6), 1 / math.sqrt(6), 0, 0]
    np.testing.assert_allclose(scores(model, 0), expected, rtol=1e-6)


def test_item_knn_shrinks_decays_and_truncates():
    lists = [[0, 1], [1, 0, 0], [0, 2], [2, 3]]
    shrunk = fitted("item-knn", lists, 5, shrinkage=2.0, decay=0.5)
    expected = [
        1 / (math.sqrt(6) + 2),
        0.5 * 2 / (math.sqrt(6) + 2),
        0.5 / (math.sqrt(6) + 2),
        0,
        0,
    ]
    expected[3] = 1 / (math.sqrt(2) + 2)
    np.testing.assert_allclose(scores(shrunk, 0, 2), expected, rtol=1e-6)
    kept = fitted("item-knn", lists, 5, shrinkage=0.0, neighbours=1)
    assert np.flatnonzero(scores(kept, 0)).tolist() == [1]
    last = fitted("item-knn", lists, 5, last=1)
    np.testing.assert_array_equal(scores(last, 0, 2), scores(last, 2))


def test_item_knn_does_not_depend_on_its_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 20, 6).tolist() for _ in range(40)]
    whole = fitted("item-knn", lists, 20, neighbours=4)
    monkeypatch.setattr("alkd_ray.recommenders.item_knn._BLOCK_ROWS", 3)
    cut = fitted("item-knn", lists, 20, neighbours=4)
    assert (whole.similarity != cut.similarity).nnz == 0


def test_sequential_rules_weigh_by_distance_and_direction():
    lists = [[0, 1, 2], [0, 2], [2, 0], [3, 3, 0]]
    model = fitted("sequential-rules", lists, 5, confidence=0.0, decay=0.0)
    np.testing.assert_allclose(scores(model, 0), [0, 1, 0.5 + 1, 0, 0])
    np.testing.assert_allclose(scores(model, 2, 0), scores(model, 0))
    np.testing.assert_allclose(scores(model, 3), [1 + 0.5, 0, 0, 0, 0])  # never 3 -> 3
    near = fitted("sequential-rules", lists, 5, confidence=0.0, decay=0.0, max_distance=1)
    np.testing.assert_allclose(scores(near, 0), [0, 1, 1, 0, 0])
    decayed = fitted("sequential-rules", lists, 5, confidence=0.0, decay=0.5)
    np.testing.assert_allclose(
        scores(decayed, 2, 0), scores(model, 0) + 0.5 * scores(model, 2), rtol=1e-6
    )


def test_sequential_rules_divide_by_a_power_of_their_total():
    lists = [[0, 1, 2], [0, 2], [3, 4]]  # the rules of 0 weigh 1 + 1.5
    for power in (0.25, 1.0):
        model = fitted("sequential-rules", lists, 5, confidence=power, decay=1.0)
        expected = [0, 1 / 2.5**power, 1.5 / 2.5**power, 0, 1]
        np.testing.assert_allclose(scores(model, 0, 3), expected, rtol=1e-6)


def test_sequential_rules_find_what_follows_even_where_popularity_misleads():
    """Every session is a stretch of a chain with the most popular item thrown in at random."""
    rng = np.random.default_rng(0)
    lists = []
    for _ in range(300):
        row = ((rng.integers(0, 20) + np.arange(5)) % 20).tolist()
        row.insert(int(rng.integers(0, 5)), 20)
        lists.append(row)
    model = fitted("sequential-rules", lists, 21)
    best = [int(scores(model, (i - 1) % 20, i).argmax()) for i in range(20)]
    assert best == [(i + 1) % 20 for i in range(20)]


def test_vsknn_follows_the_sessions_that_share_the_latest_item():
    # Both share one item with the window (0, 1); the second shares the later one.
    model = fitted("vsknn", [[0, 2], [1, 3], [4, 5]], 6, idf=False)
    np.testing.assert_allclose(scores(model, 0, 1), [0.25, 1, 0.25, 1, 0, 0])
    one = fitted("vsknn", [[0, 2], [1, 3], [4, 5]], 6, idf=False, neighbours=1)
    np.testing.assert_allclose(scores(one, 0, 1), [0, 1, 0, 1, 0, 0])


def test_vsknn_compares_only_the_latest_candidates():
    lists = [[0, 1, 2], [0, 3], [0, 4]]  # the first is the most similar, and the oldest
    assert np.flatnonzero(scores(fitted("vsknn", lists, 5, sample=2), 1, 0)).tolist() == [3, 4]
    every = fitted("vsknn", lists, 5, neighbours=1, sample=0)
    assert scores(every, 1, 0)[2] > 0
    # Equal similarity: the later session is the neighbour.
    tied = fitted("vsknn", lists, 5, neighbours=1, idf=False)
    assert np.flatnonzero(scores(tied, 0)).tolist() == [0, 4]


def reference_vsknn(lists, num_items, window, neighbours, sample, cosine, match, idf):
    """The same by loops over sessions and items."""
    n, sets = len(window), [set(row) for row in lists]
    weight = {}
    for position, item in enumerate(window):
        weight[item] = (position + 1) / n  # a later mention replaces an earlier one
    candidates = [row for row in range(len(lists)) if sets[row] & set(window)]
    candidates = sorted(candidates, reverse=True)[: sample or None]
    found = []
    for row in candidates:
        shared = [weight[item] for item in sets[row] if item in weight]
        similarity = sum(shared) / (math.sqrt(len(sets[row])) if cosine else 1)
        found.append((round(similarity, 12), row, max(shared)))
    values = np.zeros(num_items)
    for similarity, row, latest in sorted(found, reverse=True)[:neighbours]:
        for item in sets[row]:
            rarity = math.log(len(lists) / sum(item in other for other in sets)) if idf else 1
            values[item] += similarity * (latest if match else 1) * rarity
    return values


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("match", [False, True])
@pytest.mark.parametrize(("neighbours", "sample"), [(3, 8), (5, 0), (100, 1000)])
def test_vsknn_equals_loops(cosine, match, neighbours, sample):
    rng = np.random.default_rng(7)
    lists = [rng.integers(0, 15, rng.integers(2, 7)).tolist() for _ in range(50)]
    model = fitted(
        "vsknn",
        lists,
        15,
        neighbours=neighbours,
        sample=sample,
        similarity="cosine" if cosine else "dot",
        match_weight=match,
        idf=match,
    )
    for length in (1, 4, 10):
        window = rng.integers(0, 15, length).tolist()
        expected = reference_vsknn(lists, 15, window, neighbours, sample, cosine, match, match)
        np.testing.assert_allclose(scores(model, *window), expected, rtol=1e-5, atol=1e-6)


def test_long_windows_count_their_last_items():
    model = fitted("vsknn", [[0, 2], [1, 3], [4, 5]], 6, last=2)
    np.testing.assert_array_equal(scores(model, 5, 5, 0, 1), scores(model, 0, 1))


def test_sequences_put_the_target_last():
    sessions = windows_of.from_lists([7, 8], [[1, 2], []], [3, 4], ["train"] * 2)
    items, rows = _counting.sequences(sessions)
    assert items.tolist() == [1, 2, 3, 4]
    assert rows.tolist() == [0, 0, 0, 1]
