"""Ranks as far as a metric looks, several times faster than all of them.

Training validates every few steps, by a metric at a cutoff. Most targets stand far behind it, and a
thousand of the items that score highest on the whole are enough to see that.
"""

from __future__ import annotations

import numpy as np
import torch

from alkd_ray import sessions as sessions_of
from alkd_ray.evaluation.ranks import ENCODED_ROWS, rank_targets
from alkd_ray.recommenders import Backbone
from alkd_ray.types import IntArray, Ranks, SessionSet

FEW_ITEMS = 1_024
"""Items that targets are held against at first. Of HetRec's and Games' validation sessions 5 to
22% have a target that these do not rule out, under any of the three backbones."""
LEAST_LENGTH = 1e-15
"""Vectors are taken for as long as this at least: squares of less are lost in float32."""


def first_ranks(backbone: Backbone, sessions: SessionSet, window: int, up_to: int) -> Ranks:
    """The ranks of :func:`alkd_ray.evaluation.ranks.rank_targets` up to ``up_to``.

    Whatever is left out is left out for certain. Scores that differ in the last bit alone may be
    rounded, and so ordered, as in any other division into blocks.

    Args:
        backbone: scores items for windows.
        sessions: S sessions.
        window: input items that the backbone sees, the last ones.
        up_to: the last rank that matters.

    Returns:
        Ranks from 1; ``up_to + 1`` stands for all others.
    """
    rows = np.arange(len(sessions))
    if backbone.num_items > FEW_ITEMS > up_to:
        rows = _within_reach(backbone, sessions, window, up_to)
    found = rank_targets(backbone, sessions_of.take(sessions, rows), window)
    ranks = np.full(len(sessions), up_to + 1)
    ranks[rows] = np.minimum(found.ranks, up_to + 1)
    return Ranks(sessions.ids.copy(), ranks, found.num_items)


@torch.inference_mode()
def _within_reach(backbone: Backbone, sessions: SessionSet, window: int, up_to: int) -> IntArray:
    """``[R]`` row numbers of sessions whose target is perhaps among the first ``up_to``.

    Certain of all others: a row is left out if ``up_to`` items that may be recommended score above
    its target by more than the scores' rounding.
    """
    table = backbone.item_table()  # [N, d]
    batch = sessions_of.windows(sessions, window)
    items, mask, targets, lengths = (
        torch.from_numpy(part).to(table.device)
        for part in (batch.items, batch.mask, batch.targets, sessions.lengths)
    )
    longest = table.norm(dim=1).max().clamp_min(LEAST_LENGTH)
    few = torch.empty(0)
    rows = []
    for start in range(0, len(sessions), ENCODED_ROWS):
        part = slice(start, start + ENCODED_ROWS)
        encoded = backbone.encode(items[part], mask[part])  # [B, d]
        if not start:  # whatever they are, what is left out is certain
            few = table[(table @ encoded.mean(0)).topk(FEW_ITEMS).indices].T.contiguous()
        scores = (encoded * table[targets[part]]).sum(1)  # [B], the targets'
        lengths_of = encoded.norm(dim=1).clamp_min(LEAST_LENGTH)
        least = scores + _rounding(table.shape[1]) * lengths_of * longest
        # Comparisons with nan are False: such a row stays.
        above = (encoded @ few > least.unsqueeze(1)).sum(1)
        # Items of the session are not recommended, and may be among them.
        stays = above < up_to + lengths[part]
        rows.append(start + stays.nonzero()[:, 0].cpu().numpy())
    return np.concatenate([np.zeros(0, np.int64), *rows])


def _rounding(dim: int) -> float:
    """How far two scores may be off together, for vectors of length 1.

    A float32 product of d-vectors is off by at most ``d u |x| |y|``, u = 2^-24, in any order of
    the sum (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). There are two scores
    here, and the same two in other orders there; twice that, for the lengths' own rounding.
    """
    return 8 * dim * 2.0**-24
