"""What the plain recommenders share: sessions and windows as sparse matrices, rows = sessions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from alkd_ray.errors import InputError
from alkd_ray.types import IntArray, SessionSet


def check_fit(recommender: str, sessions: SessionSet, num_items: int) -> None:
    """Refuses sessions whose items are not in the catalogue.

    Raises:
        InputError: naming the first such item.
    """
    if num_items < 1:
        raise InputError(f"{recommender}: num_items is {num_items}; a catalogue has at least 1")
    for name, items in (("item", sessions.flat_items), ("target", sessions.targets)):
        wrong = np.flatnonzero((items < 0) | (items >= num_items))
        if len(wrong):
            raise InputError(
                f"{recommender}: {name} {items[wrong[0]]} is not below num_items {num_items}; "
                "give the catalogue that the sessions were indexed with"
            )


def sequences(sessions: SessionSet) -> tuple[IntArray, IntArray]:
    """Whole sessions, the target as the last item.

    Returns:
        ``[T]`` int64 items, and ``[T]`` int64 their rows, both in order.
    """
    count = len(sessions)
    offsets = sessions.offsets + np.arange(count + 1)
    items = np.empty(offsets[-1], np.int64)
    is_target = np.zeros(len(items), bool)
    is_target[offsets[1:] - 1] = True
    items[is_target] = sessions.targets
    items[~is_target] = sessions.flat_items
    return items, np.repeat(np.arange(count), np.diff(offsets))


def incidence(sessions: SessionSet, num_items: int) -> sparse.csr_array:
    """``[S, N]`` float32, 1 where an item occurs in a whole session."""
    items, rows = sequences(sessions)
    ones = np.ones(len(items), np.float32)
    matrix = sparse.csr_array((ones, (rows, items)), shape=(len(sessions), num_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def window_matrix(
    items: Tensor, mask: Tensor, position_weights: NDArray[np.float64], num_items: int
) -> sparse.csr_array:
    """Windows as weights of items; those of a repeated item add up.

    Args:
        items: ``[B, L]`` int64, right-aligned.
        mask: ``[B, L]`` bool.
        position_weights: ``[P]``, entry p for the p-th item from the end; 0 beyond.
        num_items: N.

    Returns:
        ``[B, N]`` float64.
    """
    length = min(items.shape[1], len(position_weights))
    start = items.shape[1] - length
    shown = mask[:, start:].cpu().numpy()  # [B, length]
    rows, columns = np.nonzero(shown)
    weights = position_weights[length - 1 - columns]
    columns = items[:, start:].cpu().numpy()[rows, columns]
    return sparse.csr_array((weights, (rows, columns)), shape=(len(items), num_items))


def decayed(decay: float, last: int) -> NDArray[np.float64]:
    """``[last]`` weights ``decay ** p`` of positions from the end; decay 0 = the last alone."""
    return np.power(float(decay), np.arange(last)) if decay else np.ones(1)


def as_scores(product: sparse.csr_array, like: Tensor) -> Tensor:
    """A product ``[B, N]`` as dense float32 scores on the device of ``like``."""
    return torch.from_numpy(product.astype(np.float32).toarray()).to(like.device)


def latest_mention(items: Tensor, mask: Tensor) -> Tensor:
    """``[B, L]`` bool, ``mask`` without the earlier mentions of an item that comes again."""
    same = items[:, :, None] == items[:, None, :]  # [B, L, L]
    later = torch.ones(same.shape[1:], dtype=torch.bool, device=items.device).triu(1)  # [L, L]
    again = (same & later & mask[:, None, :]).any(2)  # [B, L]
    return mask & ~again


def ranks_within_rows(rows: IntArray, *keys: NDArray[np.generic]) -> tuple[IntArray, IntArray]:
    """Sorts entries by row, then by ``keys``, and counts them within their row.

    Args:
        rows: ``[E]`` row of each entry.
        keys: ``[E]`` each, smallest first, the first key before the second.

    Returns:
        ``[E]`` the order, and ``[E]`` the place (from 0) of each entry of that order in its row.
    """
    order = np.lexsort((*reversed(keys), rows))
    ordered = rows[order]
    return order, np.arange(len(rows)) - np.searchsorted(ordered, ordered)
