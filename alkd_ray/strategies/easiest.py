"""The easiest sessions, where the LLM can teach least: a baseline of ALKDRec's paper."""

from __future__ import annotations

import numpy as np

from alkd_ray.active.sampling import check_budget
from alkd_ray.registry import PluginConfig
from alkd_ray.strategies import _picks
from alkd_ray.types import DifficultyScores, Selection


class Easiest:
    """The sessions that the teacher has captured best, easiest first; ties as they are ranked."""

    class Config(PluginConfig):
        """No options."""

    def select(self, difficulty: DifficultyScores, budget: int, seed: int) -> Selection:
        """Picks by rank; see :class:`alkd_ray.strategies.Strategy`."""
        population = len(difficulty.session_ids)
        check_budget(budget, population)
        places = np.arange(1, budget + 1)
        first = difficulty.direction == "easiest_first"
        ranks = places if first else population + 1 - places
        return _picks.selection(difficulty, ranks, "easiest", seed, {})
