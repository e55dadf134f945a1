"""Sessions at random: what every other strategy has to beat."""

from __future__ import annotations

from alkd_ray.active.sampling import check_budget
from alkd_ray.registry import PluginConfig
from alkd_ray.seeds import numpy_stream
from alkd_ray.strategies import _picks
from alkd_ray.types import DifficultyScores, Selection


class Random:
    """Each session with the same probability, without replacement."""

    class Config(PluginConfig):
        """No options."""

    def select(self, difficulty: DifficultyScores, budget: int, seed: int) -> Selection:
        """Picks in the order drawn; see :class:`alkd_ray.strategies.Strategy`."""
        population = len(difficulty.session_ids)
        check_budget(budget, population)
        stream = numpy_stream(seed, "selection", "random")
        ranks = 1 + stream.choice(population, budget, replace=False)
        return _picks.selection(difficulty, ranks, "random", seed, {})
