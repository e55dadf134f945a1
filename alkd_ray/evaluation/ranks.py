"""Ranks of targets among the whole catalogue, in blocks of rows, without a sort.

Memory is ``block_rows x N`` whatever the number of sessions. Ties are broken against the model:
the target is placed last among equal scores, so that a constant model scores zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from alkd_ray import artifacts
from alkd_ray import sessions as windows_of
from alkd_ray.recommenders import Backbone, Recommender
from alkd_ray.types import BoolArray, IntArray, Ranks, SessionSet

# items [B, L], mask [B, L] -> [B, N] bool, True where an item is not to be recommended
AlsoExclude = Callable[[Tensor, Tensor], Tensor]
BLOCK_ROWS = 64
ENCODED_ROWS = 1_024
"""Windows that a backbone encodes at a time."""


def rank_targets(
    recommender: Recommender,
    sessions: SessionSet,
    window: int,
    *,
    block_rows: int = BLOCK_ROWS,
    exclude: Literal["session", "window"] = "session",
    also_exclude: AlsoExclude | None = None,
) -> Ranks:
    """The rank of each session's target among all items that may be recommended.

    Args:
        recommender: scores items for windows.
        sessions: S sessions.
        window: input items that the recommender sees, the last ones.
        block_rows: rows scored at a time.
        exclude: items not to be recommended: all input items of the session, or the window's.
        also_exclude: further items, by window.

    Returns:
        Ranks from 1; N + 1 where the target itself is excluded (it repeats an input item) or its
        score is not a number. A not-a-number score of another item stands above the target.
    """
    ranks = np.empty(len(sessions), np.int64)
    below = np.empty((min(block_rows, len(sessions)), recommender.num_items), bool)
    with torch.inference_mode():
        for start, scores, targets in _blocks(
            recommender, sessions, window, block_rows, exclude, also_exclude
        ):
            target_scores = scores.gather(1, targets[:, None])  # [B, 1]
            beaten = _beaten(scores, target_scores, below)
            lost = torch.isneginf(target_scores[:, 0]) | torch.isnan(target_scores[:, 0])
            found = np.where(lost.cpu(), scores.shape[1] + 1, scores.shape[1] - beaten)
            ranks[start : start + len(scores)] = found
    return Ranks(sessions.ids.copy(), ranks, recommender.num_items)


def top_items(
    recommender: Recommender,
    sessions: SessionSet,
    window: int,
    k: int,
    *,
    block_rows: int = BLOCK_ROWS,
    exclude: Literal["session", "window"] = "session",
    also_exclude: AlsoExclude | None = None,
) -> IntArray:
    """The k best items of each session, ``[S, k]`` int64, best first, -1 where there are fewer.

    Equal scores are ordered by item, the lower one first, so that the list never depends on the
    size of a block or the number of threads.
    """
    k = min(k, recommender.num_items)
    top = np.empty((len(sessions), k), np.int64)
    with torch.inference_mode():
        for start, scores, _ in _blocks(
            recommender, sessions, window, block_rows, exclude, also_exclude
        ):
            top[start : start + len(scores)] = _top_of_block(scores, k)
    return top


def write_ranks(ranks: Ranks, file: Path) -> None:
    """``session_id, rank`` as Parquet, N in the metadata; whole or not at all."""
    table = pa.table({"session_id": ranks.session_ids, "rank": ranks.ranks})
    table = table.replace_schema_metadata({"num_items": str(ranks.num_items)})
    artifacts.replace_file(file, lambda temporary: pq.write_table(table, temporary))


def read_ranks(file: Path) -> Ranks:
    """What :func:`write_ranks` wrote."""
    table = pq.read_table(file)
    return Ranks(
        table["session_id"].to_numpy(),
        table["rank"].to_numpy(),
        int((table.schema.metadata or {})[b"num_items"]),
    )


def _beaten(scores: Tensor, target_scores: Tensor, below: BoolArray) -> IntArray:
    """``[B]``, how many scores of each row lie below the target's.

    Not "score >= target": a comparison with nan is False, and nan shall not help.

    Args:
        scores: ``[B, N]``.
        target_scores: ``[B, 1]``.
        below: ``[>= B, N]``, written over: memory that is used again costs no page faults.
    """
    if scores.device.type != "cpu":
        return (scores < target_scores).sum(1).cpu().numpy()
    # On a CPU torch compares, and counts what it found, several times slower than numpy.
    found = np.less(scores.numpy(), target_scores.numpy(), out=below[: len(scores)])
    return np.array([np.count_nonzero(row) for row in found])


class _Scorer:
    """A recommender's scores by block, with what blocks share worked out once.

    A backbone's item table is, and windows are encoded many at a time. A product of rows with the
    transposed table is 3 times slower than with a copy that lies so.
    """

    def __init__(
        self, recommender: Recommender, items: Tensor, mask: Tensor, block_rows: int
    ) -> None:
        self._recommender = recommender
        self._items = items
        self._mask = mask
        self._backbone = recommender if isinstance(recommender, Backbone) else None
        self._encoded = torch.empty(0)  # of the rows from _first on
        self._first = 0
        if self._backbone is not None:
            self._table = self._backbone.item_table().T.contiguous()  # [d, N]
            self._scores = self._table.new_empty((block_rows, self._table.shape[1]))

    def __call__(self, start: int, stop: int) -> Tensor:
        """``[stop - start, N]``; of a backbone, valid until the next call."""
        if self._backbone is None:
            return self._recommender.score(self._items[start:stop], self._mask[start:stop])
        if stop > self._first + len(self._encoded):
            many = slice(start, start + max(ENCODED_ROWS, stop - start))
            self._encoded = self._backbone.encode(self._items[many], self._mask[many])
            self._first = start
        rows = self._encoded[start - self._first : stop - self._first]  # [B, d]
        return torch.mm(rows, self._table, out=self._scores[: len(rows)])


def _blocks(
    recommender: Recommender,
    sessions: SessionSet,
    window: int,
    block_rows: int,
    exclude: Literal["session", "window"],
    also_exclude: AlsoExclude | None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First row, scores ``[B, N]`` with -inf at excluded items, targets ``[B]``; by block."""
    device = _device_of(recommender)
    batch = windows_of.windows(sessions, window)
    items, mask, targets = (
        torch.from_numpy(part).to(device) for part in (batch.items, batch.mask, batch.targets)
    )
    score = _Scorer(recommender, items, mask, min(block_rows, len(sessions)))
    for start in range(0, len(sessions), block_rows):
        stop = min(start + block_rows, len(sessions))
        scores = score(start, stop)  # [B, N]
        if exclude == "session":
            first, last = sessions.offsets[start], sessions.offsets[stop]
            rows = np.repeat(np.arange(stop - start), np.diff(sessions.offsets[start : stop + 1]))
            excluded = sessions.flat_items[first:last]
        else:
            rows, columns = np.nonzero(batch.mask[start:stop])
            excluded = batch.items[start:stop][rows, columns]
        where = (torch.from_numpy(rows).to(device), torch.from_numpy(excluded).to(device))
        scores[where] = -torch.inf
        if also_exclude is not None:
            scores.masked_fill_(also_exclude(items[start:stop], mask[start:stop]), -torch.inf)
        yield start, scores, targets[start:stop]


def _top_of_block(scores: Tensor, k: int) -> IntArray:
    """Top k by (score, lower item first), exact under ties at the k-th place."""
    kth = scores.topk(k, dim=1).values[:, -1:]  # [B, 1]
    # Items at or above the k-th score in item order, then a stable sort by score.
    rows, items = torch.nonzero(scores >= kth, as_tuple=True)
    rows, items = rows.cpu().numpy(), items.cpu().numpy()
    values = scores.cpu().numpy()[rows, items]
    order = np.lexsort((items, -values, rows))
    rows, items, values = rows[order], items[order], values[order]
    starts = np.searchsorted(rows, np.arange(len(scores)))
    place = np.arange(len(rows)) - starts[rows]
    top = np.full((len(scores), k), -1, np.int64)
    keep = (place < k) & ~np.isneginf(values)
    top[rows[keep], place[keep]] = items[keep]
    return top


def _device_of(recommender: Recommender) -> torch.device:
    if isinstance(recommender, torch.nn.Module):
        for parameter in recommender.parameters():
            return parameter.device
    return torch.device("cpu")
