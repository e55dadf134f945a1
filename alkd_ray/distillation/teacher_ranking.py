"""TR: the student learns to rank what the conventional teacher ranks, without an LLM.

The baseline of that name in Du et al., Active Large Language Model-Based Knowledge Distillation
for Session-Based Recommendation, AAAI 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._rankings import check_training
from alkd_ray.errors import InputError
from alkd_ray.evaluation.ranks import top_items
from alkd_ray.recommenders import Backbone
from alkd_ray.registry import PluginConfig
from alkd_ray.training import examples
from alkd_ray.training.loop import TrainingResult, train_rows


class TeacherRanking:
    """The pairwise loss, unit weights, on the teacher's top items for all training sessions.

    The paper names the method and gives no settings; its published code lists 50 items. Here the
    list is as long as an LLM's ranking by default, and the loss and the negatives are those of
    ALKDRec. Items of the session are left out of it.
    """

    class Config(PluginConfig):
        """Options."""

        top: int = Field(25, ge=1, description="items of the teacher's list")

    needs_rankings: ClassVar[bool] = False

    def __init__(self, top: int) -> None:
        self.top = top

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
            InputError: no item of the catalogue is left outside the sessions.
        """
        check_training(training)
        train = knowledge.train
        listed = top_items(knowledge.teacher, train, knowledge.window, self.top)  # [S, <= top]
        session_row, place = np.nonzero(listed >= 0)  # -1 where too few items are left
        if not len(session_row):
            raise InputError("the teacher lists no items outside the sessions; check the catalogue")
        rows = examples.of_rankings(
            train, session_row, listed[session_row, place], None, knowledge.window
        )
        return train_rows(
            student,
            rows,
            knowledge.valid,
            training,
            knowledge.window,
            seed,
            purpose="distillation",
            keep_start=True,
            progress=progress,
        )
