"""The selection policy of ALKDRec as published.

Du, Sun, Wang, Chua, Zhang, Ong: Active Large Language Model-Based Knowledge Distillation for
Session-Based Recommendation. AAAI 2025, Definition 1 and Theorem 2.
"""

from __future__ import annotations

import functools

from pydantic import Field

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import paper
from alkd_ray.active.sampling import pick_ranks
from alkd_ray.seeds import numpy_stream
from alkd_ray.strategies import _picks
from alkd_ray.strategies._options import GainOptions
from alkd_ray.types import DifficultyScores, Selection


class AlkdrecPaper:
    """Sessions drawn one by one by p* up to rank k*.

    Readings of the paper. The second sums of H_k and G_k run from k_si + k_in + 1, and k* needs
    G_s where g_s is printed (otherwise p* does not sum to one). Rank 1 has the highest gain; which
    end of the difficulty that is, the ranks say. After each pick the sessions that are left are
    ranked anew from 1 and the policy is solved again.

    p* does not in general have the largest guaranteed gain (Theorem 3 does not hold); see
    ``alkdrec-exact`` and ``docs/selection.md``.
    """

    class Config(GainOptions):
        """Options."""

        reference_support: bool = Field(
            False, description="leave out rank k* itself, as the published code does"
        )

    def __init__(
        self,
        mu: float,
        ratio: tuple[float, float, float],
        g_si: float,
        g_in: float,
        reference_support: bool,
    ) -> None:
        self.gains = Gains(mu, ratio, g_si, g_in)
        self.solve = functools.partial(paper, reference_support=reference_support)

    def select(self, difficulty: DifficultyScores, budget: int, seed: int) -> Selection:
        """Picks in the order drawn; see :class:`alkd_ray.strategies.Strategy`."""
        population = len(difficulty.session_ids)
        stream = numpy_stream(seed, "selection", "alkdrec-paper")
        ranks = pick_ranks(self.gains, self.solve, population, budget, stream)
        policy = self.solve(self.gains, population)
        notes = _picks.notes_of_game(self.gains, population, policy.support, policy.min_gain)
        return _picks.selection(difficulty, ranks, "alkdrec-paper", seed, notes)
