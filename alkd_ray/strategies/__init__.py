"""Contract of the room: a strategy picks the sessions worth paying for, by their difficulty."""

from __future__ import annotations

from typing import Protocol

from alkd_ray.types import DifficultyScores, Selection


class Strategy(Protocol):
    """Picks sessions without replacement."""

    def select(self, difficulty: DifficultyScores, budget: int, seed: int) -> Selection:
        """``budget`` distinct sessions of ``difficulty``, in the order of picking.

        Raises:
            InputError: ``budget`` is larger than the number of sessions.
        """
        ...
