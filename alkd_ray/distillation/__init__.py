"""Contract of the room: a method moves knowledge into a pretrained student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from alkd_ray.config import TrainingConfig
from alkd_ray.recommenders import Backbone, Recommender
from alkd_ray.training.loop import TrainingResult
from alkd_ray.types import IntArray, SessionSet


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a method may draw on.

    Attributes:
        train: all training sessions.
        valid: validation sessions, for early stopping alone.
        window: input items a recommender sees.
        ranked_ids: ``[R]`` int64, the sessions with an LLM ranking.
        rankings: R rankings, ``[<= wanted]`` int64 each, best first.
        teacher: the conventional teacher.
    """

    train: SessionSet
    valid: SessionSet
    window: int
    ranked_ids: IntArray
    rankings: tuple[IntArray, ...]
    teacher: Recommender


class Distiller(Protocol):
    """Changes the student in place.

    Attributes:
        needs_rankings: whether it reads LLM rankings; without them nothing is selected or bought.
    """

    needs_rankings: ClassVar[bool]

    def distill(
        self,
        student: Backbone,
        knowledge: Knowledge,
        training: TrainingConfig,
        seed: int,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> TrainingResult:
        """Fine-tunes ``student``; its best weights on validation stay in it."""
        ...
