"""Sequential rules: what came after the window's items, the sooner the better."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import sparse
from torch import Tensor

from alkd_ray.recommenders._counting import (
    as_scores,
    check_fit,
    decayed,
    sequences,
    window_matrix,
)
from alkd_ray.registry import PluginConfig
from alkd_ray.types import SessionSet


class SequentialRules:
    """Rules "after i comes j", each occurrence weighing 1/distance.

    SR of Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms", User
    Modeling and User-Adapted Interaction 28 (2018): the weight of the rule i -> j is the
    sum of 1/distance over the training sessions where j follows i.

    Departures: the paper asks for the rules of the window's last item alone (``decay`` 0). Here
    those of earlier items are added, ``sum_p decay^p rules(x_p, j)``, p = 0 the last item, since
    most items of a sparse catalogue have few rules. The paper divides an item's rules by their
    total, which orders nothing for one item; among many, the full division (``confidence`` 1)
    gives rare items too loud a voice and none (0) frequent ones, so that the total is raised to a
    power. The defaults of both were chosen on the validation splits of HetRec and Amazon Games.

    Attributes:
        num_items: N.
        rules: ``[N, N]`` float32, row = item of the window, column = what follows.
    """

    class Config(PluginConfig):
        """Options."""

        max_distance: int = Field(10, ge=1, description="how far j may be behind i, in items")
        decay: float = Field(
            0.8, ge=0, le=1, description="weight of an item against the one after it; 0 = last only"
        )
        confidence: float = Field(
            0.25,
            ge=0,
            le=1,
            description="an item's rules are divided by this power of their total; 0 = counts, "
            "1 = shares",
        )
        last: int = Field(
            10, ge=1, description="items of the window that count when decay is above 0"
        )

    def __init__(
        self,
        *,
        max_distance: int = 10,
        decay: float = 0.8,
        confidence: float = 0.25,
        last: int = 10,
        num_items: int,
    ) -> None:
        self.num_items = num_items
        self.max_distance = max_distance
        self.confidence = confidence
        self.position_weights = decayed(decay, last)
        self.rules = sparse.csr_array((num_items, num_items), dtype=np.float32)

    def fit(self, sessions: SessionSet) -> None:
        """Counts ordered pairs in whole sessions."""
        check_fit("sequential-rules", sessions, self.num_items)
        items, rows = sequences(sessions)
        shape = (self.num_items, self.num_items)
        rules = sparse.csr_array(shape, dtype=np.float64)
        for distance in range(1, min(self.max_distance, len(items) - 1) + 1):
            first, second = items[:-distance], items[distance:]
            same = (rows[:-distance] == rows[distance:]) & (first != second)
            if not same.any():
                break  # a longer distance would not fit into any session either
            weights = np.full(int(same.sum()), 1.0 / distance)
            rules = rules + sparse.csr_array((weights, (first[same], second[same])), shape=shape)
        totals = np.asarray(rules.sum(1))  # [N]
        divisors = np.where(totals > 0, totals, 1.0) ** self.confidence
        rules = sparse.diags_array(1 / divisors) @ rules
        self.rules = sparse.csr_array(rules, dtype=np.float32)

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """``[B, N]`` float32 scores of all items, as the contract of the room says."""
        windows = window_matrix(items, mask, self.position_weights, self.num_items)  # [B, N]
        return as_scores(windows @ self.rules, items)
