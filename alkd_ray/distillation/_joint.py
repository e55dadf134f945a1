"""Methods that go on training on the sessions, with a term of knowledge beside the loss.

``L = L_base + weight * term``: the base is what the distillation's training settings say, over
all training sessions; the term reads the frozen teacher. Each method is the term alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._rankings import check_training
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone, Recommender
from alkd_ray.training import examples
from alkd_ray.training.examples import RowBatch, Rows
from alkd_ray.training.loop import TrainingResult, device_of, train_rows
from alkd_ray.training.losses import Loss
from alkd_ray.training.stepper import Objective, make_loss

ENCODED_ROWS = 4_096
"""Windows that a teacher encodes at a time."""


@contextmanager
def on_device(recommender: Recommender, device: torch.device) -> Iterator[None]:
    """A recommender that only answers, on ``device`` if it is a module; then as it was before."""
    if not isinstance(recommender, nn.Module):
        yield
        return
    was_training = recommender.training
    home = next((p.device for p in recommender.parameters()), device)
    try:
        recommender.to(device).eval()
        yield
    finally:
        recommender.to(home).train(was_training)


@dataclass(frozen=True, slots=True)
class FrozenTeacher:
    """A teacher's embeddings, worked out once.

    Attributes:
        windows: ``[W, d_t]`` float32, of the windows of the training rows.
        items: ``[N, d_t]`` float32, of all items as candidates.
    """

    windows: Tensor
    items: Tensor

    @classmethod
    def of(cls, teacher: Recommender, rows: Rows, method: str) -> FrozenTeacher:
        """The embeddings for ``rows``, on their device.

        Raises:
            InputError: the teacher has none.
        """
        if not isinstance(teacher, Backbone):
            raise InputError(
                f"{method} needs a teacher with embeddings (a backbone), but the conventional "
                f"teacher is a {type(teacher).__name__}; choose another teacher.backbone"
            )
        encoded = []
        with on_device(teacher, rows.windows.device), torch.no_grad():
            for part in rows.windows.split(ENCODED_ROWS):
                items = part.long()
                encoded.append(teacher.encode(items.clamp_min(0), items >= 0))
            return cls(torch.cat(encoded), teacher.item_table().clone())


class Term(Protocol):
    """A method's part of the loss. An ``nn.Module``, if it has parameters of its own."""

    def __call__(self, backbone: Backbone, batch: RowBatch) -> Tensor:
        """A differentiable scalar; ``batch.window_of`` numbers the windows of all rows."""
        ...


class JointLoss:
    """The loss of the rows, and a term times its weight."""

    def __init__(self, base: Loss, term: Term, weight: float) -> None:
        self.base = base
        self.term = term
        self.weight = weight

    def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
        """See :class:`alkd_ray.training.losses.Loss`."""
        value = self.base(backbone, batch, want_value)
        addition = self.term(backbone, batch) * self.weight
        addition.backward()
        return None if value is None else value + float(addition.detach())


def session_rows_of(knowledge: Knowledge, training: TrainingConfig) -> Rows:
    """The training rows of all sessions, on the training's device.

    Raises:
        InputError: settings that mean nothing here.
    """
    check_training(training)
    rows = examples.of_sessions(knowledge.train, training.examples, knowledge.window)
    return rows.to(device_of(training))


def train_with(
    student: Backbone,
    rows: Rows,
    knowledge: Knowledge,
    training: TrainingConfig,
    seed: int,
    term: Term,
    weight: float,
    progress: Callable[[int, int, float], None] | None,
) -> TrainingResult:
    """Goes on training ``student`` with ``L_base + weight * term``, from the weights it has.

    Args:
        student: changed in place.
        rows: of :func:`session_rows_of`.
        knowledge: for its validation sessions.
        training: the base loss, and how to train.
        seed: the run's seed.
        term: the method's part; its parameters, if it has any, are trained as well.
        weight: lambda.
        progress: see :class:`alkd_ray.distillation.Distiller`.
    """
    base = make_loss(training, rows, student.num_items, seed, "distillation")
    own = tuple(term.parameters()) if isinstance(term, nn.Module) else ()
    return train_rows(
        student,
        rows,
        knowledge.valid,
        training,
        knowledge.window,
        seed,
        purpose="distillation",
        keep_start=True,
        objective=Objective(JointLoss(base, term, weight), own),
        progress=progress,
    )
