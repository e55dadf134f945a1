"""Popularity: the same list for everybody."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alkd_ray.recommenders._counting import check_fit, sequences
from alkd_ray.registry import PluginConfig
from alkd_ray.types import SessionSet


class Popularity:
    """Scores an item by its number of occurrences in the training sessions, targets included.

    The least that any recommender must beat; see Cremonesi, Koren and Turrin, "Performance of
    Recommender Algorithms on Top-N Recommendation Tasks", RecSys 2010.

    Attributes:
        num_items: N.
        counts: ``[N]`` float32.
    """

    class Config(PluginConfig):
        """No options."""

    def __init__(self, *, num_items: int) -> None:
        self.num_items = num_items
        self.counts = torch.zeros(num_items)

    def fit(self, sessions: SessionSet) -> None:
        """Counts the items of whole sessions."""
        check_fit("popularity", sessions, self.num_items)
        items, _ = sequences(sessions)
        counts = np.bincount(items, minlength=self.num_items)
        self.counts = torch.from_numpy(counts.astype(np.float32))

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """``[B, N]`` float32, the counts in every row."""
        return self.counts.to(items.device).repeat(len(items), 1)
