"""Item kNN: items that occur in the same sessions as the window's."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import sparse
from torch import Tensor

from alkd_ray.recommenders._counting import (
    as_scores,
    check_fit,
    decayed,
    incidence,
    ranks_within_rows,
    window_matrix,
)
from alkd_ray.registry import PluginConfig
from alkd_ray.types import SessionSet

_BLOCK_ROWS = 4096
"""Items whose similarities are worked out at a time."""


class ItemKnn:
    """Cosine similarity of items over sessions, summed over the last items of the window.

    Sarwar, Karypis, Konstan and Riedl, "Item-Based Collaborative Filtering Recommendation
    Algorithms", WWW 2001, with sessions for users and binary entries:
    ``sim(i, j) = c_ij / (sqrt(c_i c_j) + shrinkage)``, c = number of sessions. The score of j is
    ``sum_p decay^p sim(x_p, j)`` over the last items, p = 0 the latest.

    Departures: the shrinkage, so that two items seen once, together, are not the closest of all
    (Koren, "Factor in the Neighbors", TKDD 2010, shrinks alike), and the decay. Their defaults
    were chosen on the validation splits of HetRec and Amazon Games.

    Attributes:
        num_items: N.
        similarity: ``[N, N]`` float32, row = item of the window, column = candidate; its diagonal
            is empty.
    """

    class Config(PluginConfig):
        """Options."""

        last: int = Field(10, ge=1, description="items of the window that count, the last ones")
        decay: float = Field(
            0.8, ge=0, le=1, description="weight of an item against the one after it; 0 = last only"
        )
        shrinkage: float = Field(
            20.0, ge=0, description="sessions added to the denominator, against chance pairs"
        )
        neighbours: int = Field(
            0, ge=0, description="similar items kept for each item; 0 = all (memory!)"
        )

    def __init__(
        self,
        *,
        last: int = 10,
        decay: float = 0.8,
        shrinkage: float = 20.0,
        neighbours: int = 0,
        num_items: int,
    ) -> None:
        self.num_items = num_items
        self.position_weights = decayed(decay, last)
        self.shrinkage = shrinkage
        self.neighbours = neighbours
        self.similarity = sparse.csr_array((num_items, num_items), dtype=np.float32)

    def fit(self, sessions: SessionSet) -> None:
        """Counts the pairs of items in whole sessions."""
        check_fit("item-knn", sessions, self.num_items)
        occurs = incidence(sessions, self.num_items)  # [S, N]
        counts = np.asarray(occurs.sum(0))  # [N]
        by_item = occurs.T.tocsr()  # [N, S]
        blocks = [
            self._similar(start, by_item[start : start + _BLOCK_ROWS] @ occurs, counts)
            for start in range(0, self.num_items, _BLOCK_ROWS)
        ]
        self.similarity = sparse.csr_array(sparse.vstack(blocks, format="csr"))

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """``[B, N]`` float32 scores of all items, as the contract of the room says."""
        windows = window_matrix(items, mask, self.position_weights, self.num_items)  # [B, N]
        return as_scores(windows @ self.similarity, items)

    def _similar(
        self, start: int, together: sparse.csr_array, counts: np.ndarray
    ) -> sparse.csr_array:
        """Similarities of items ``start ..`` from their counts in common, ``[block, N]``."""
        pairs = together.tocoo()
        rows, columns = pairs.coords
        rows, columns = rows.astype(np.int64), columns.astype(np.int64)
        values = pairs.data / (np.sqrt(counts[rows + start] * counts[columns]) + self.shrinkage)
        keep = rows + start != columns
        rows, columns, values = rows[keep], columns[keep], values[keep]
        if self.neighbours:
            order, place = ranks_within_rows(rows, -values)
            chosen = order[place < self.neighbours]
            rows, columns, values = rows[chosen], columns[chosen], values[chosen]
        return sparse.csr_array((values.astype(np.float32), (rows, columns)), shape=together.shape)
