"""The max-min selection policy of the game that ALKDRec defines.

The game is equation 3 of Du et al.: Active Large Language Model-Based Knowledge Distillation for
Session-Based Recommendation. AAAI 2025. The solution is this project's (``docs/selection.md``).
"""

from __future__ import annotations

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact
from alkd_ray.active.sampling import pick_ranks
from alkd_ray.seeds import numpy_stream
from alkd_ray.strategies import _picks
from alkd_ray.strategies._options import GainOptions
from alkd_ray.types import DifficultyScores, Selection


class AlkdrecExact:
    """Sessions drawn one by one by the policy with the largest guaranteed gain.

    Departure from the paper: probabilities are proportional to one over the gain on all ranks
    1..k, with the k that guarantees most, where p* weighs the ranks beyond k_si + k_in less.
    Everything else is as in ``alkdrec-paper``.
    """

    class Config(GainOptions):
        """Options."""

    def __init__(
        self, mu: float, ratio: tuple[float, float, float], g_si: float, g_in: float
    ) -> None:
        self.gains = Gains(mu, ratio, g_si, g_in)

    def select(self, difficulty: DifficultyScores, budget: int, seed: int) -> Selection:
        """Picks in the order drawn; see :class:`alkd_ray.strategies.Strategy`."""
        population = len(difficulty.session_ids)
        stream = numpy_stream(seed, "selection", "alkdrec-exact")
        ranks = pick_ranks(self.gains, exact, population, budget, stream)
        policy = exact(self.gains, population)
        notes = _picks.notes_of_game(self.gains, population, policy.support, policy.min_gain)
        return _picks.selection(difficulty, ranks, "alkdrec-exact", seed, notes)
