"""Soft labels against a loop over rows that follows the description word by word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alkd_ray import registry
from alkd_ray.seeds import numpy_stream
from alkd_ray.sessions import from_lists, positional_split
from alkd_ray.training import examples, soft_labels
from alkd_ray.types import SessionSet

NUM_ITEMS, WINDOW = 40, 4
NAMES = ["sequential-rules", "item-knn"]


def world() -> SessionSet:
    """Items 30-39 are never seen; session 0 consists of an item that occurs nowhere else."""
    rng = numpy_stream(4, "soft label world")
    inputs = [rng.integers(1, 30, size=rng.integers(1, 7)) for _ in range(80)]
    inputs[0] = np.array([0, 0])
    targets = rng.integers(1, 30, size=80)
    targets[0] = 0
    rows = [row.tolist() for row in inputs]
    return from_lists(np.arange(80), rows, targets, positional_split(80))


def naive(row: int, rows: examples.Rows, sessions: SessionSet) -> dict[int, float]:
    batch = rows.take(torch.tensor([row]))
    window = set(batch.items[batch.mask].tolist())
    mixed = np.zeros(NUM_ITEMS)
    for name in NAMES:
        model = registry.build("recommenders", name, {}, num_items=NUM_ITEMS)
        model.fit(sessions)
        scores = model.score(batch.items, batch.mask)[0].double().numpy()
        scores = np.array([0 if i in window else max(s, 0) for i, s in enumerate(scores)])
        if scores.sum():
            mixed += scores / scores.sum()
    best = sorted(range(NUM_ITEMS), key=lambda item: -mixed[item])[: soft_labels.TOP]
    total = sum(mixed[item] for item in best)
    return {item: mixed[item] / total for item in best if mixed[item] > 0}


@pytest.mark.parametrize("top", [100, 7])
def test_shares_are_those_of_a_plain_loop(top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "TOP", top)
    monkeypatch.setattr(soft_labels, "_BLOCK_ELEMENTS", 9 * NUM_ITEMS)  # blocks of 9 rows
    sessions = world()
    rows = examples.of_sessions(sessions, "prefixes", WINDOW)
    models = soft_labels.fitted(NAMES, sessions, NUM_ITEMS)
    labels = soft_labels.of_rows(models, rows, NUM_ITEMS)
    assert labels.items.shape == labels.shares.shape == (len(rows), min(top, NUM_ITEMS))
    for row in range(0, len(rows), 11):
        wanted = naive(row, rows, sessions)
        found = {
            int(item): float(share)
            for item, share in zip(labels.items[row], labels.shares[row], strict=True)
            if share > 0
        }
        if top == 100:  # a shorter list may cut equal shares anywhere
            assert found.keys() == wanted.keys()
        np.testing.assert_allclose(sorted(found.values()), sorted(wanted.values()), rtol=1e-4)


def test_a_row_that_nothing_is_known_of_has_no_labels() -> None:
    sessions = world()
    rows = examples.of_sessions(sessions, "last", WINDOW)
    labels = soft_labels.of_rows(soft_labels.fitted(NAMES, sessions, NUM_ITEMS), rows, NUM_ITEMS)
    sums = labels.shares.sum(1)
    assert sums[0] == 0  # its only item has no neighbour
    torch.testing.assert_close(sums[1:], torch.ones(len(rows) - 1))
    assert not torch.isin(labels.items[labels.shares > 0], torch.arange(30, NUM_ITEMS)).any()
