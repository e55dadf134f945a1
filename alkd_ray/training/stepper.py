"""One training step after another: draw rows, add the loss's gradients, move the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from alkd_ray.config import TrainingConfig
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone, DrawsInTraining
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.training.examples import Rows
from alkd_ray.training.losses import InBatchPairwise, Loss, SampledBCE
from alkd_ray.training.softmax import FULL_SOFTMAX_ITEMS, FullSoftmax, SampledSoftmax


def _nothing() -> None:
    """What happens after a step unless a method says otherwise."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a distillation method makes of a step.

    Attributes:
        loss: adds the gradients, in place of the loss that the training's settings name.
        parameters: trained beside the backbone's, on its device; they end with the training.
        after_step: called after each step of the optimiser, before any validation.
    """

    loss: Loss
    parameters: Sequence[nn.Parameter] = ()
    after_step: Callable[[], None] = _nothing


class Stepper:
    """A backbone, its rows, its loss and an Adam of its own.

    Each step draws ``batch_size`` rows without replacement from all rows, afresh, as published
    (all of them when there are fewer). The draws come from numpy streams on the host, so that a
    seed means the same batches on every device.

    Attributes:
        steps: steps made so far.
    """

    def __init__(
        self,
        backbone: Backbone,
        rows: Rows,
        training: TrainingConfig,
        seed: int,
        purpose: str,
        objective: Objective | None = None,
    ) -> None:
        """Prepares the first step.

        Args:
            backbone: what is trained, in place.
            rows: the training rows, on the backbone's device.
            training: loss, optimiser, schedule and batch size.
            seed: the run's seed.
            purpose: names the streams of random draws.
            objective: a method's own; None = the loss of ``training``.
        """
        if objective is None:
            objective = Objective(make_loss(training, rows, backbone.num_items, seed, purpose))
        self.steps = 0
        self._backbone = backbone
        self._rows = rows
        self._training = training
        self._objective = objective
        module = cast(nn.Module, backbone)
        self._optimiser = _optimiser([*module.parameters(), *objective.parameters], training)
        self._draws = numpy_stream(seed, purpose, "batches")
        if isinstance(backbone, DrawsInTraining):
            backbone.training_draws = torch_stream(seed, purpose, "dropout")

    def step(self, want_value: bool) -> float | None:
        """Makes one step.

        Returns:
            The batch's loss before the step, or None when ``want_value`` is False.
        """
        if self._training.schedule == "cosine":
            share = self.steps / self._training.max_steps
            rate = self._training.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
            for group in self._optimiser.param_groups:
                group["lr"] = rate
        self.steps += 1
        index = draw(self._draws, len(self._rows), self._training.batch_size)  # [B]
        self._optimiser.zero_grad()
        batch = self._rows.take(index.to(self._rows.positives.device))
        value = self._objective.loss(self._backbone, batch, want_value)
        self._optimiser.step()
        self._objective.after_step()
        return value


def make_loss(
    training: TrainingConfig, rows: Rows, num_items: int, seed: int, purpose: str
) -> Loss:
    """The loss that ``training`` names, for rows whose positives are ``rows.positives``.

    Raises:
        InputError: the pairwise loss has nothing to compare.
    """
    if training.loss == "pairwise":
        if min(len(rows), training.batch_size) < 2:
            raise InputError(
                f"{purpose}: the pairwise loss compares the rows of a batch, and there is one "
                f"({len(rows)} rows, training.batch_size {training.batch_size}); give it more rows "
                "or another training.loss"
            )
        return InBatchPairwise()
    draws = numpy_stream(seed, purpose, "negatives")
    if training.loss == "sampled_bce":
        return SampledBCE(num_items, draws)
    if num_items <= FULL_SOFTMAX_ITEMS:
        return FullSoftmax(training.soft_weight)
    return SampledSoftmax(rows.counts(num_items), draws, training.soft_weight)


def draw(draws: np.random.Generator, rows: int, wanted: int) -> Tensor:
    """``[min(rows, wanted)]`` int64, different row numbers; all in order when there are few."""
    if rows <= wanted:
        return torch.arange(rows)
    return torch.from_numpy(draws.choice(rows, wanted, replace=False, shuffle=False))


def _optimiser(
    parameters: Sequence[nn.Parameter], training: TrainingConfig
) -> torch.optim.Optimizer:
    """Adam; with decoupled weight decay (Loshchilov & Hutter 2019) where there is any.

    Dense and fused: row-sparse updates were slower up to tens of thousands of items.
    """
    if training.weight_decay:
        return torch.optim.AdamW(
            parameters,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
        )
    return torch.optim.Adam(parameters, lr=training.learning_rate, fused=True)
