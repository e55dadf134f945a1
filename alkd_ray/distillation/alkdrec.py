"""ALKDRec: the student learns to rank what the LLM ranked, the top of the list most.

Du, Sun, Wang, Chua, Zhang, Ong: Active Large Language Model-Based Knowledge Distillation for
Session-Based Recommendation. AAAI 2025, equation 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._rankings import (
    check_training,
    flattened,
    nothing_to_learn,
    session_rows,
)
from alkd_ray.recommenders import Backbone
from alkd_ray.registry import PluginConfig
from alkd_ray.training import examples
from alkd_ray.training.loop import TrainingResult, train_rows
from alkd_ray.types import FloatArray, IntArray


class ALKDRec:
    """The pairwise loss over the LLM's rankings, weighted by position (equation 1).

    A row is (window of a ranked session, ranked item); the negatives v' are the positives of the
    other rows of the batch. Optimiser and early stopping are those of pretraining, started afresh.

    Weighting. By default every ranked item is one row and alpha weighs its part of the loss, as
    equation 1 says. With ``reference_bands`` a row is repeated alpha times instead, and the bands
    end at the 0-based positions ``bands`` (for 5/15/25 they hold 6/10/9 items), as in the
    published code; items of the top are then drawn more often as negatives as well.

    Departures from the published code: the weights that distillation starts from count as the
    first validated ones, so that a student never ends worse on validation than it began; an item
    outside the catalogue is left out; item 0 is an item like any other.
    """

    class Config(PluginConfig):
        """Options."""

        alphas: list[float] = Field([3.0, 2.0, 1.0], description="weight of each band")
        bands: list[int] = Field(
            [5, 15, 25], description="last position of each band, counted from 1, ascending"
        )
        reference_bands: bool = Field(
            False, description="repeat rows, with bands one item off, as in the published code"
        )

        @model_validator(mode="after")
        def _fitting(self) -> ALKDRec.Config:
            if len(self.alphas) != len(self.bands) or not self.bands:
                raise ValueError("alphas and bands must be of one length, at least 1")
            if self.bands[0] < 1 or any(a >= b for a, b in itertools.pairwise(self.bands)):
                raise ValueError("bands must be positive and ascending")
            if min(self.alphas) < 0 or max(self.alphas) == 0:
                raise ValueError("alphas must not be negative, nor all 0")
            if self.reference_bands and any(alpha % 1 for alpha in self.alphas):
                raise ValueError("with reference_bands the alphas must be whole numbers")
            return self

    needs_rankings: ClassVar[bool] = True

    def __init__(
        self, alphas: Sequence[float], bands: Sequence[int], reference_bands: bool
    ) -> None:
        self.alphas = np.array([*alphas, 0.0])
        self.bands = np.array(bands)
        self.reference_bands = reference_bands

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
            InputError: no ranking holds an item of weight above 0, or a ranked session is not
                among the training sessions.
        """
        check_training(training)
        session_of = session_rows(knowledge)
        number, position, items = flattened(knowledge.rankings, student.num_items)
        alpha = self.weights_at(position)
        number, items, alpha = number[alpha > 0], items[alpha > 0], alpha[alpha > 0]
        if not len(items):
            raise nothing_to_learn(knowledge)
        weights: FloatArray | None = alpha
        if self.reference_bands:
            times = alpha.astype(np.int64)
            number, items, weights = np.repeat(number, times), np.repeat(items, times), None
        rows = examples.of_rankings(
            knowledge.train, session_of[number], items, weights, knowledge.window
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

    def weights_at(self, position: IntArray) -> FloatArray:
        """``[R]`` alpha of 0-based positions; 0 beyond the last band."""
        place = position if self.reference_bands else position + 1
        return self.alphas[np.searchsorted(self.bands, place, side="left")]
