"""FTD: the student's cosines between sessions and items become the teacher's, all of them.

Kang, Hwang, Kweon and Yu: Topology Distillation for Recommender System. KDD 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._entities import (
    Embedded,
    Negatives,
    embedded_items,
    embedded_sessions,
    stacked,
)
from alkd_ray.distillation._joint import FrozenTeacher, session_rows_of, train_with
from alkd_ray.recommenders import Backbone
from alkd_ray.registry import PluginConfig
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.loop import TrainingResult


class FTD:
    """Full topology distillation: ``L = L_base + lambda ||cos(t, t) - cos(s, s)||_F^2``.

    t and s are the teacher's and the student's embeddings of the batch's sessions and items, each
    once, in one stack; the norm is a sum over all their pairs, as published, worked out without
    the matrices of cosines (see :func:`topology_gap`). With a learned item bias an embedding is
    the one that is scored with, bias included.

    Departures from the paper and its code: a user there is an encoded session here, since sessions
    are anonymous, and with prefix examples each prefix is a session of its own. Their items are a
    batch's positives and negatives; with the in-batch pairwise loss these are one set, with other
    losses as many negatives as rows are drawn from the whole catalogue. The published base loss is
    a sum over the batch and the one here a mean, so the term is divided by the number of rows as
    well: lambda weighs the two as published. The student is a trained one that goes on training.
    The published Adam (1e-3, decay 1e-3, not decoupled) is not brought along:
    ``distillation.training`` says how to train.
    """

    class Config(PluginConfig):
        """Options."""

        weight: float = Field(1e-3, ge=0, description="lambda, of the term beside the base loss")

    needs_rankings: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        self.weight = weight

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
            InputError: the teacher has no embeddings, or soft labels are asked for.
        """
        rows = session_rows_of(knowledge, training)
        term = FullTopology(
            FrozenTeacher.of(knowledge.teacher, rows, "ftd"),
            Negatives(training, student.num_items, seed, "ftd"),
        )
        return train_with(student, rows, knowledge, training, seed, term, self.weight, progress)


class FullTopology:
    """The term of :class:`FTD`, for one batch."""

    def __init__(self, teacher: FrozenTeacher, negatives: Negatives) -> None:
        self.teacher = teacher
        self.negatives = negatives

    def __call__(self, backbone: Backbone, batch: RowBatch) -> Tensor:
        """See :class:`alkd_ray.distillation._joint.Term`."""
        sessions = embedded_sessions(backbone, batch, self.teacher)
        items = embedded_items(backbone, self.negatives.and_positives(batch), self.teacher)
        return topology_gap(stacked(sessions, items)) / len(batch)


def topology_gap(embedded: Embedded) -> Tensor:
    """``||cos(s, s) - cos(t, t)||_F^2``, a differentiable scalar, in O(n (d_s + d_t)^2).

    With S ``[n, d_s]`` and T ``[n, d_t]`` the embeddings scaled to length 1, it is
    ``||S S' - T T'||_F^2 = ||S' S||_F^2 - 2 ||T' S||_F^2 + ||T' T||_F^2``: no matrix over pairs.
    Rounding is relative to the three norms, so a gap of 0 may come out slightly off, below 0 too.
    """
    s = functional.normalize(embedded.student)
    t = functional.normalize(embedded.teacher)
    return _squared(s.T @ s) - 2 * _squared(t.T @ s) + _squared(t.T @ t)


def _squared(matrix: Tensor) -> Tensor:
    return matrix.square().sum()
