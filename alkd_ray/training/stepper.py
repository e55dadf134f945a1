"""One training step after another: draw rows, add the loss's gradients, move the weights."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from alkd_ray.config import TrainingConfig
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream
from alkd_ray.training.examples import Rows
from alkd_ray.training.losses import InBatchPairwise, Loss, SampledBCE
from alkd_ray.training.softmax import FULL_SOFTMAX_ITEMS, FullSoftmax, SampledSoftmax


class Stepper:
    """A backbone, its rows, its loss and an Adam of its own.

    Each step draws ``batch_size`` rows without replacement from all rows, afresh, as published
    (all of them when there are fewer). The draws come from numpy streams on the host, so that a
    seed means the same batches on every device.

    Attributes:
        steps: steps made so far.
    """

    def __init__(
        self, backbone: Backbone, rows: Rows, training: TrainingConfig, seed: int, purpose: str
    ) -> None:
        """Prepares the first step.

        Args:
            backbone: what is trained, in place.
            rows: the training rows, on the backbone's device.
            training: loss, optimiser, schedule and batch size.
            seed: the run's seed.
            purpose: names the streams of random draws.
        """
        self.steps = 0
        self._backbone = backbone
        self._rows = rows
        self._training = training
        self._loss = make_loss(training, rows, backbone.num_items, seed, purpose)
        self._optimiser = _optimiser(cast(nn.Module, backbone), training)
        self._draws = numpy_stream(seed, purpose, "batches")

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
        value = self._loss(self._backbone, batch, want_value)
        self._optimiser.step()
        return value


def make_loss(
    training: TrainingConfig, rows: Rows, num_items: int, seed: int, purpose: str
) -> Loss:
    """The loss that ``training`` names, for rows whose positives are ``rows.positives``."""
    if training.loss == "pairwise":
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


def _optimiser(module: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Adam; with decoupled weight decay (Loshchilov & Hutter 2019) where there is any.

    Dense and fused: row-sparse updates were slower up to tens of thousands of items.
    """
    if training.weight_decay:
        return torch.optim.AdamW(
            module.parameters(),
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
        )
    return torch.optim.Adam(module.parameters(), lr=training.learning_rate, fused=True)
