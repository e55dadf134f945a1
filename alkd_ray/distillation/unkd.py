"""unKD: the student learns the teacher's order among items of like popularity.

Chen, Chen, Feng, Zhou, He: Unbiased Knowledge Distillation for Recommendation. WSDM 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._joint import session_rows_of, train_with
from alkd_ray.distillation._score_gaps import score_gaps
from alkd_ray.distillation._teacher_lists import (
    TeacherLists,
    popularity_groups,
    teacher_lists,
)
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone, embed_candidates
from alkd_ray.registry import PluginConfig
from alkd_ray.seeds import numpy_stream
from alkd_ray.training.examples import RowBatch, sessions_of_rows
from alkd_ray.training.loop import TrainingResult
from alkd_ray.types import FloatArray, IntArray

LOST_MASS = 1e-6
"""Ranks that together are drawn more seldom than this are not kept."""


class UnKD:
    """``L = L_base + weight * mean -log sigma(y_better - y_worse)`` over drawn pairs of items.

    Items are ordered by popularity and cut into groups with about equal numbers of interactions.
    For each session and group the teacher ranks the unobserved items; two different ranks r (from
    0) are drawn with probabilities proportional to ``exp(-(r + 1) / rank_scale)``, and the student
    shall score the better ranked item higher. A pair never crosses groups, so that the teacher's
    liking for popular items is not handed on.

    The method was written for users; a user is a session here, its embedding Encode(window). With
    prefix examples each prefix has lists of its own; what is observed is the whole session.

    The authors distil from 100 to 10 dimensions with Adam, learning rate .01 and an L2 penalty of
    .01 on the batch's embeddings. Here the rate and ``weight_decay``, which is decoupled and of
    all weights, are ``distillation.training``'s, as the base loss is.

    Departures from the paper and its code:
    - training goes on from the pretrained student;
    - pairs are drawn afresh for every batch, not once an epoch;
    - a group's borders are the points of equal mass, where the code closes a group before it would
      hold more than its part; like there, items never seen in training belong to no group;
    - the code's weights of groups by user are left out: it works them out and never uses them;
    - of the ``kept`` ranks only those are held in memory that carry all but 1e-6 of the
      probability, 277 at the default scale, and draws are cut off there;
    - a list of fewer than two items gives no pair, and the mean is over the pairs there are; a
      group in which no session has a pair leaves its draws to the others;
    - draws that are lacking after rounding go to the groups with the largest shares, in the code
      to the first groups;
    - items that the teacher scores alike are ordered by number, the lower one first, and may be
      drawn as a pair.
    """

    class Config(PluginConfig):
        """Options; the defaults are the authors'."""

        weight: float = Field(1.0, ge=0, description="lambda, of the term beside the base loss")
        groups: int = Field(4, ge=1, le=100, description="popularity groups of items, G")
        pairs: int = Field(
            30, ge=1, description="pairs drawn a session, n; a group's part of them is rounded"
        )
        shares: list[float] | None = Field(
            None,
            description="each group's part of the pairs, from the most popular one on; "
            "none = all equal",
        )
        kept: int = Field(1000, ge=2, description="ranks of a list among which pairs are drawn")
        rank_scale: float = Field(
            20.0, ge=1, le=1e6, description="ranks over which the probability falls by the factor e"
        )

        @model_validator(mode="after")
        def _fitting(self) -> UnKD.Config:
            if self.shares is not None:
                if len(self.shares) != self.groups:
                    raise ValueError(f"shares must be {self.groups} numbers, one for each group")
                if min(self.shares) < 0 or not 0 < sum(self.shares) < math.inf:
                    raise ValueError("shares must not be negative, nor all 0")
            return self

    needs_rankings: ClassVar[bool] = False

    def __init__(
        self,
        weight: float,
        groups: int,
        pairs: int,
        shares: Sequence[float] | None,
        kept: int,
        rank_scale: float,
    ) -> None:
        self.weight = weight
        self.groups = groups
        self.pairs = pairs
        self.shares = np.ones(groups) if shares is None else np.array(shares, float)
        self.rank_scale = rank_scale
        self.longest = max(2, min(kept, math.ceil(-rank_scale * math.log(LOST_MASS))))

    def distill(
        self,
        student: Backbone,
        knowledge: Knowledge,
        training: TrainingConfig,
        seed: int,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> TrainingResult:
        """Fine-tunes ``student``; see :class:`alkd_ray.distillation.Distiller`.

        Raises:
            InputError: settings that mean nothing here, the lists take more than 8 GiB, or no
                group with a share has two items outside a session.
        """
        rows = session_rows_of(knowledge, training)
        lists = teacher_lists(
            knowledge.teacher,
            knowledge.train,
            rows,
            sessions_of_rows(knowledge.train, training.examples),
            popularity_groups(knowledge.train, student.num_items, self.groups),
            self.groups,
            self.longest,
        )
        # A group of which no session has a pair leaves its part of the draws to the others.
        shares = self.shares * (lists.lengths >= 2).any(0)
        if not shares.any():
            raise InputError(
                f"unkd: none of the {self.groups} popularity groups with a share has two items "
                "outside a session; set fewer distillation.options.groups, or check the catalogue"
            )
        draws = numpy_stream(seed, "distillation", "unkd", "pairs")
        term = GroupedPairs(lists, pairs_of_groups(shares, self.pairs), self.rank_scale, draws)
        return train_with(student, rows, knowledge, training, seed, term, self.weight, progress)


def pairs_of_groups(shares: FloatArray, pairs: int) -> IntArray:
    """``[G]`` int64, pairs to draw: the share of ``pairs``, rounded half to even, as published.

    The total may be above ``pairs`` (8 each for 30 in 4 groups). Were it below, the groups with
    the largest shares get one more.

    Args:
        shares: ``[G]``, not negative, not all 0; scaled to sum to 1.
        pairs: n.
    """
    found = np.rint(shares / shares.sum() * pairs).astype(np.int64)
    lacking = max(0, pairs - int(found.sum()))
    found[np.argsort(-shares, kind="stable")[:lacking]] += 1
    return found


class GroupedPairs:
    """The term: draws pairs for the windows of a batch and compares the student's scores."""

    def __init__(
        self, lists: TeacherLists, pairs: IntArray, rank_scale: float, draws: np.random.Generator
    ) -> None:
        """Prepares the draws.

        Args:
            lists: the teacher's.
            pairs: ``[G]`` int64, pairs a window to draw from each group; n together.
            rank_scale: see :class:`UnKD`.
            draws: on the host, so that a seed means the same pairs on every device.
        """
        self.lists = lists
        self.group_of = np.repeat(np.arange(len(pairs)), pairs)  # [n]
        self.rank_scale = rank_scale
        self.draws = draws

    def __call__(self, backbone: Backbone, batch: RowBatch) -> Tensor:
        """See :class:`alkd_ray.distillation._joint.Term`."""
        pairs, is_pair = self.drawn(batch.window_of)  # [2, B, n], [B, n]
        encoded = backbone.encode(batch.items, batch.mask)  # [B, d]
        # The groups of popular items are small: most items are drawn often, and embedded once.
        is_drawn = torch.zeros(backbone.num_items, dtype=torch.bool, device=pairs.device)
        is_drawn[pairs] = True
        embedded = embed_candidates(backbone, is_drawn.nonzero().squeeze(1))  # [drawn, d]
        better, worse = (is_drawn.cumsum(0) - 1)[pairs]  # [B, n], rows of embedded
        gaps = score_gaps(encoded, embedded, better, worse)  # [B, n]
        return (functional.softplus(-gaps) * is_pair).sum() / is_pair.sum().clamp_min(1)

    def drawn(self, window_of: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of items for windows.

        Args:
            window_of: ``[B]`` int64, the windows' numbers.

        Returns:
            ``[2, B, n]`` int64, the better items and the worse ones; ``[B, n]`` bool, False where
            the list is too short for a pair.
        """
        lengths = self.lists.lengths[window_of.cpu().numpy()][:, self.group_of]  # [B, n]
        is_pair = lengths >= 2
        ranks = self.drawn_ranks(np.where(is_pair, lengths, 2))  # [2, B, n]
        columns = np.where(is_pair, ranks + self.lists.starts[self.group_of], 0)
        at = torch.from_numpy(columns).to(window_of.device)
        pairs = self.lists.items[window_of.unsqueeze(1), at].long()
        return pairs, torch.from_numpy(is_pair).to(window_of.device)

    def drawn_ranks(self, lengths: IntArray) -> IntArray:
        """``[2, ...]`` int64, two different ranks from 0 in lists of ``lengths``, the lower first.

        Args:
            lengths: ``[...]`` int64, at least 2 each.
        """
        ranks = self._ranks(lengths)
        while len((again := np.nonzero(ranks[0] == ranks[1]))[0]):
            ranks[(slice(None), *again)] = self._ranks(lengths[again])
        return np.stack([np.minimum(*ranks), np.maximum(*ranks)])

    def _ranks(self, lengths: IntArray) -> IntArray:
        """``[2, ...]`` int64, independent ranks.

        An exponential variable modulo a length has the density of one that is cut off there, for
        it has no memory; its whole part is distributed as exp(-r / scale) over r < length.
        """
        drawn = self.draws.standard_exponential((2, *lengths.shape)) * self.rank_scale
        return drawn.astype(np.int64) % lengths
