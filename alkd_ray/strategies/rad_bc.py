"""RAD-BC: active distillation where the teacher is either correct or incorrect.

Baykal, Trinh, Iliopoulos, Menghani, Vee: Robust Active Distillation. ICLR 2023.
"""

from __future__ import annotations

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import WeightedRanks, paper
from alkd_ray.active.sampling import pick_ranks
from alkd_ray.seeds import numpy_stream
from alkd_ray.strategies import _picks
from alkd_ray.strategies._options import GainOptions
from alkd_ray.types import DifficultyScores, Selection


class RadBC:
    """Sessions drawn one by one by the max-min policy of two effects.

    It is the game of ALKDRec with k_correct = k_ef + k_si correct sessions that all gain ``r^-mu``;
    ``g_si`` is not used for the picks. With two effects p* and the exact policy are one and the
    same wherever a positive gain can be guaranteed. Elsewhere k* is the population, as published.

    Departures from the paper: gains follow the difficulty rank, as in ALKDRec's experiments, not
    the student's margin between two classes; picks are drawn one by one without replacement.
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
        stream = numpy_stream(seed, "selection", "rad-bc")
        two_effects = self.gains.two_effects()
        ranks = pick_ranks(two_effects, paper, population, budget, stream)
        support = paper(two_effects, population).support
        # Its policy weighs all ranks alike, as ``exact`` does; this is what it guarantees when
        # similar sessions gain less than effective ones.
        guarantee = WeightedRanks(self.gains, population, "exact").guarantee(support)
        notes = _picks.notes_of_game(self.gains, population, support, guarantee.gain)
        return _picks.selection(difficulty, ranks, "rad-bc", seed, notes)
