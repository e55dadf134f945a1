"""Metrics, each from the ranks of the targets alone, and the published reference_ndcg.

With one relevant item a session: recall@k = [rank <= k], ndcg@k = [rank <= k] / log2(1 + rank),
mrr@k = [rank <= k] / rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alkd_ray.errors import InputError
from alkd_ray.types import FloatArray, IntArray, Ranks


def metric_values(ranks: Ranks, metric: str) -> FloatArray:
    """One metric of each session, ``[S]`` float64.

    Args:
        ranks: the targets' ranks.
        metric: ``recall@k``, ``ndcg@k`` or ``mrr@k``.

    Raises:
        InputError: another name.
    """
    name, cutoff = _parts(metric)
    rank = ranks.ranks.astype(np.float64)
    # N + 1 is no place, even where fewer items than the cutoff are known.
    hit = rank <= min(cutoff, ranks.num_items)
    gain = {"recall": np.ones_like(rank), "ndcg": 1 / np.log2(1 + rank), "mrr": 1 / rank}[name]
    return np.where(hit, gain, 0.0)


def cutoff_of(metric: str) -> int:
    """The last rank that counts for a metric.

    Raises:
        InputError: no such metric.
    """
    return _parts(metric)[1]


def _parts(metric: str) -> tuple[str, int]:
    name, _, cutoff = metric.partition("@")
    if name not in ("recall", "ndcg", "mrr") or not cutoff.isdigit() or int(cutoff) < 1:
        raise InputError(f"unknown metric {metric!r}; known: recall@k, ndcg@k, mrr@k with k >= 1")
    return name, int(cutoff)


def names(cutoffs: Sequence[int]) -> list[str]:
    """The metrics that reports show: recall and ndcg at each cutoff, mrr@10."""
    return [f"{name}@{k}" for k in cutoffs for name in ("recall", "ndcg")] + ["mrr@10"]


def summary(ranks: Ranks, cutoffs: Sequence[int]) -> dict[str, float]:
    """Mean of every metric of :func:`names` over the sessions."""
    return {name: float(metric_values(ranks, name).mean()) for name in names(cutoffs)}


def reference_ndcg(top: IntArray, targets: IntArray, k: int) -> FloatArray:
    """The published experiments' "ndcg", for checking the paper's tables alone; not an ndcg.

    Their code collected the k best items in a Python ``set`` and discounted a hit by its position
    in the set's iteration order, which follows the items' hashes, not their ranks.

    Args:
        top: ``[S, >= k]`` int64, best first.
        targets: ``[S]`` int64.
        k: cutoff.

    Returns:
        ``[S]`` float64.
    """
    values = np.zeros(len(top))
    hit = np.flatnonzero((top[:, :k] == targets[:, None]).any(1))
    for row in hit:
        order = list(set(top[row, :k].tolist()))
        values[row] = 1 / np.log2(order.index(int(targets[row])) + 2)
    return values
