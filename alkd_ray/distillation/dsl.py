"""DSL: a sparse student, trained without a teacher, that chooses its weights as it learns.

Wang, Sui, Wu, Zheng, Xiong: Dynamic Sparse Learning: A Novel Paradigm for Efficient
Recommendation. WSDM 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field, model_validator

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._item_tables import item_tables
from alkd_ray.distillation._joint import session_rows_of
from alkd_ray.distillation._sparse_tables import SparseTables
from alkd_ray.recommenders import Backbone
from alkd_ray.registry import PluginConfig
from alkd_ray.seeds import numpy_stream
from alkd_ray.training.loop import TrainingResult, device_of, train_rows
from alkd_ray.training.stepper import Objective, make_loss


class DSL:
    """The base loss, over item tables of which a share ``density`` of the weights is in use.

    A mask is drawn from Bernoulli(density) and applied to the student at once, then after every
    step of the optimiser, so that neither Adam's moments nor its weight decay bring a masked
    weight back. Every ``interval`` steps the share rho of the weights in use that are nearest to 0
    is dropped, and as many others are grown where the step just made had the largest gradients.
    rho falls by a cosine from ``first_share`` to ``last_share`` in ``annealing_steps``, and stays.

    Sparse are the tables with a row for each item (those of input and target items; AttMix may
    have one for both). What is left dense, a few matrices of dim x dim and, where the backbone
    has them, item biases, is small beside them.

    The budget. ALKDRec compares with DSL and states neither dimension nor density. This method
    makes sparse the student that it is given: at the default density a student of ``student.dim``
    10 ends with half the weights of the other methods' students. To compare at equal numbers of
    weights set ``student.dim: 20`` with density .5, or ``student.dim: 100`` (the teacher's size)
    with density .1; the student is then pretrained at that size. Only weights are counted: where
    they stand takes memory as well, and a checkpoint holds the zeros.

    The method was written for users; a user is a session here, its embedding Encode(window),
    worked out from the sparse tables.

    Departures from the paper and its code:
    - it starts from the pretrained student, as all methods here, where the authors train from
      scratch; the dense weights never count as a result, the masked ones are the first that do;
    - the code masks every parameter of a model, small ones and biases too;
    - rho falls within a fixed number of steps, not until the last step there may be: early stopping
      would end the training while half of the weights are still exchanged each time;
    - an item keeps at least one weight in each table, its largest;
    - as many weights are dropped as the share says, where the code drops more on ties, and which
      weights grow on ties is defined: see :meth:`SparseTables.explore`;
    - in-batch losses have gradients at the batch's items alone, where the authors' graph model
      has them at all: what grows is sought among those items first.
    """

    class Config(PluginConfig):
        """Options; the defaults are the authors'."""

        density: float = Field(0.5, gt=0, le=1, description="share of the weights in use")
        interval: int = Field(
            100,
            ge=1,
            description="steps between two changes of which weights are in use "
            "(the authors: 100 to 3000)",
        )
        first_share: float = Field(
            0.5, ge=0, le=1, description="share of the weights in use to exchange, at first"
        )
        last_share: float = Field(
            0.005, ge=0, le=1, description="the same at last, not above first_share"
        )
        annealing_steps: int = Field(
            1000, ge=1, description="steps in which that share falls; max_steps, if that is less"
        )

        @model_validator(mode="after")
        def _falling(self) -> DSL.Config:
            if self.last_share > self.first_share:
                raise ValueError("last_share must not be above first_share")
            return self

    needs_rankings: ClassVar[bool] = False

    def __init__(
        self,
        density: float,
        interval: int,
        first_share: float,
        last_share: float,
        annealing_steps: int,
    ) -> None:
        self.density = density
        self.interval = interval
        self.first_share = first_share
        self.last_share = last_share
        self.annealing_steps = annealing_steps

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
            InputError: settings that mean nothing here, or the student has no item table.
        """
        rows = session_rows_of(knowledge, training)
        draws = numpy_stream(seed, "distillation", "dsl", "mask")
        sparse = SparseTables(
            item_tables(student, "dsl:"), self.density, draws, device_of(training)
        )
        sparse.apply()
        annealing = min(self.annealing_steps, training.max_steps)
        steps = 0

        def after_step() -> None:
            nonlocal steps
            steps += 1
            sparse.apply()
            if steps % self.interval == 0:
                sparse.explore(self.share_at(steps / annealing))

        loss = make_loss(training, rows, student.num_items, seed, "distillation")
        return train_rows(
            student,
            rows,
            knowledge.valid,
            training,
            knowledge.window,
            seed,
            purpose="distillation",
            keep_start=True,  # the start is masked: see above
            objective=Objective(loss, after_step=after_step),
            progress=progress,
        )

    def share_at(self, part: float) -> float:
        """The share to exchange, rho, after a part of the annealing; 1 or more = at its end."""
        left = 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))  # from 1 to 0
        return self.last_share + (self.first_share - self.last_share) * left
