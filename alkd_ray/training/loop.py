"""Fitting a backbone: rows in batches, early stopping on validation, the best weights kept.

Everything is resident on one device; nothing is done per row in Python.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from alkd_ray.config import TrainingConfig
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.evaluation.first_ranks import first_ranks
from alkd_ray.evaluation.metrics import cutoff_of, metric_values
from alkd_ray.recommenders import Backbone
from alkd_ray.training import examples, soft_labels
from alkd_ray.training.examples import Rows
from alkd_ray.training.stepper import Objective, Stepper
from alkd_ray.types import SessionSet

Progress = Callable[[int, int, float], None]
"""Told (step, most steps, best metric so far, 0 before the first validation) after each validation,
and between two of them about every ``TELL_SECONDS``."""

TELL_SECONDS = 2.0
"""Longest silence towards a progress callback, unless one step takes longer."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a fit went.

    Attributes:
        best_step: the step whose weights were kept; 0 = those it started from.
        best_metric: the validation metric there.
        steps: steps made.
        history: one mapping a validation: ``step``, ``loss`` (of that step's batch; there is none
            at step 0), ``metric``, ``seconds`` since the start.
        seconds: wall time.
    """

    best_step: int
    best_metric: float
    steps: int
    history: tuple[dict[str, float], ...]
    seconds: float


def fit(
    backbone: Backbone,
    train: SessionSet,
    valid: SessionSet,
    training: TrainingConfig,
    window: int,
    seed: int,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains ``backbone`` on whole sessions, in place.

    Args:
        backbone: freshly made.
        train: training sessions.
        valid: validation sessions, for early stopping alone.
        training: how.
        window: input items a recommender sees.
        seed: the run's seed.
        progress: see ``Progress``.

    Returns:
        The course of it; ``backbone`` holds the weights that were best on validation.

    Raises:
        InputError: soft labels with a loss that has none, or a metric that cannot be had.
        AlkdError: the loss or a parameter is no longer a number.
    """
    if training.soft_labels and training.loss != "softmax":
        raise InputError(
            f"training.soft_labels needs training.loss softmax, not {training.loss}; "
            "empty the list or change the loss"
        )
    rows = examples.of_sessions(train, training.examples, window)
    if training.soft_labels:
        models = soft_labels.fitted(training.soft_labels, train, backbone.num_items)
        labels = soft_labels.of_rows(models, rows, backbone.num_items)
        rows = Rows(rows.windows, rows.window_of, rows.positives, rows.weights, labels)
    start_bias_from_popularity(backbone, rows)
    return train_rows(
        backbone, rows, valid, training, window, seed, purpose="pretraining", progress=progress
    )


def train_rows(
    backbone: Backbone,
    rows: Rows,
    valid: SessionSet,
    training: TrainingConfig,
    window: int,
    seed: int,
    *,
    purpose: str,
    keep_start: bool = False,
    objective: Objective | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains ``backbone`` on ``rows`` with an Adam of its own, in place.

    A step is that of :class:`alkd_ray.training.stepper.Stepper`. A validation that does not beat
    the best one so far counts against ``patience``.

    Args:
        backbone: what is trained; it ends on the device it began on.
        rows: the training rows.
        valid: validation sessions, for early stopping alone.
        training: how; ``examples`` and ``soft_labels`` are not read here, the rows are given.
        window: input items a recommender sees.
        seed: the run's seed.
        purpose: names the streams of random draws.
        keep_start: whether the weights it starts from may be the best ones.
        objective: a method's own; None = the loss that ``training`` names.
        progress: see ``Progress``.

    Returns:
        The course of it; ``backbone`` holds the weights that were best on validation.

    Raises:
        InputError: there are no rows, no validation sessions, or no such device.
        AlkdError: the loss or a parameter is no longer a number.
    """
    if not len(rows):
        raise InputError(f"{purpose}: there are no rows to train on")
    if not len(valid):
        raise InputError(
            f"{purpose}: there are no validation sessions; check the split of the data"
        )
    started = time.perf_counter()
    module = cast(nn.Module, backbone)
    home = next(module.parameters()).device
    device = device_of(training)
    module.to(device)
    stepper = Stepper(backbone, rows.to(device), training, seed, purpose, objective)
    course = _Course(backbone, valid, training, window, started, progress)
    if keep_start:
        course.validate(0, math.nan)
    module.train()
    while stepper.steps < training.max_steps and not course.patience_is_over:
        step = stepper.steps + 1
        is_checked = step % training.validate_every == 0 or step == training.max_steps
        value = stepper.step(want_value=is_checked)
        if is_checked:
            course.validate(step, math.nan if value is None else value)
        else:
            course.tell(step)
    course.restore_best()
    module.to(home).eval()
    return TrainingResult(
        best_step=course.best_step,
        best_metric=course.best_metric,
        steps=stepper.steps,
        history=tuple(course.history),
        seconds=time.perf_counter() - started,
    )


def start_bias_from_popularity(backbone: Backbone, rows: Rows) -> None:
    """Sets a backbone's ``item_bias`` (``[N]``), where it has one, to centred log popularity.

    One is added to every count, so that items never seen start lowest but finite.
    """
    bias = getattr(backbone, "item_bias", None)
    if isinstance(bias, nn.Parameter):
        popularity = np.log1p(rows.counts(backbone.num_items))
        with torch.no_grad():
            bias.copy_(torch.from_numpy((popularity - popularity.mean()).astype(np.float32)))


class _Course:
    """The validations of one fit and the best weights so far."""

    def __init__(
        self,
        backbone: Backbone,
        valid: SessionSet,
        training: TrainingConfig,
        window: int,
        started: float,
        progress: Progress | None,
    ) -> None:
        self.backbone = backbone
        self.module = cast(nn.Module, backbone)
        self.valid = valid
        self.training = training
        self.window = window
        self.started = started
        self.progress = progress
        self.told = started
        self.best_metric = -math.inf
        self.best_step = 0
        self.without_gain = 0
        self.best: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []

    @property
    def patience_is_over(self) -> bool:
        return self.without_gain >= self.training.patience

    def validate(self, step: int, loss: float) -> None:
        self._check_numbers(step, loss)
        self.module.eval()
        metric = self.training.metric
        ranks = first_ranks(self.backbone, self.valid, self.window, cutoff_of(metric))
        self.module.train()
        value = float(metric_values(ranks, metric).mean())
        seconds = round(time.perf_counter() - self.started, 3)
        of_batch = {"loss": loss} if step else {}
        self.history.append({"step": step, **of_batch, "metric": value, "seconds": seconds})
        if value > self.best_metric:
            self.best_metric, self.best_step, self.without_gain = value, step, 0
            self.best = {
                name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()
            }
        else:
            self.without_gain += 1
        self.tell(step, at_once=True)

    def tell(self, step: int, *, at_once: bool = False) -> None:
        if self.progress is None:
            return
        now = time.perf_counter()
        if at_once or now - self.told >= TELL_SECONDS:
            self.told = now
            self.progress(step, self.training.max_steps, max(self.best_metric, 0.0))

    def restore_best(self) -> None:
        self.module.load_state_dict(self.best)

    def _check_numbers(self, step: int, loss: float) -> None:
        if step and not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
            what = "a parameter is not a finite number"
        else:
            return
        raise AlkdError(
            f"training diverged: {what} at step {step}; lower training.learning_rate "
            f"(it is {self.training.learning_rate:g})"
        )


def device_of(training: TrainingConfig) -> str:
    """The device that a training runs on.

    Raises:
        InputError: there is no such device.
    """
    wanted = training.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device is cuda, but torch finds no GPU here; use auto or cpu")
    return wanted
