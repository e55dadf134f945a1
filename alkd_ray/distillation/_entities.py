"""What a step's embedding terms look at: its sessions and items, as both models embed them.

The methods were written for users and items; a user is an encoded session here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation._joint import FrozenTeacher
from alkd_ray.recommenders import Backbone, embed_candidates
from alkd_ray.seeds import numpy_stream
from alkd_ray.training.examples import RowBatch


@dataclass(frozen=True, slots=True)
class Embedded:
    """n sessions or items, each once.

    Attributes:
        student: ``[n, d_s]`` float32, differentiable.
        teacher: ``[n, d_t]`` float32, constant.
    """

    student: Tensor
    teacher: Tensor


def embedded_sessions(backbone: Backbone, batch: RowBatch, teacher: FrozenTeacher) -> Embedded:
    """The sessions of a batch, in the order of its rows.

    Rows of :func:`alkd_ray.distillation._joint.session_rows_of` have a window each and are drawn
    without replacement, so that no session stands in a batch twice.
    """
    return Embedded(backbone.encode(batch.items, batch.mask), teacher.windows[batch.window_of])


def embedded_items(backbone: Backbone, items: Tensor, teacher: FrozenTeacher) -> Embedded:
    """The items of ``items`` (``[...]`` int64), as candidates; one that is repeated counts once."""
    once = torch.unique(items)
    return Embedded(embed_candidates(backbone, once), teacher.items[once])


def stacked(sessions: Embedded, items: Embedded) -> Embedded:
    """Sessions, then items, as one."""
    return Embedded(
        torch.cat([sessions.student, items.student]), torch.cat([sessions.teacher, items.teacher])
    )


class Negatives:
    """The negative items of a step.

    In-batch pairwise training takes the batch's positives as negatives: the two are one set. With
    any other base loss as many items as there are rows are drawn from the whole catalogue, each as
    likely, by draws of their own: the published methods have one negative a row.

    Attributes:
        are_positives: whether positive and negative items are one set.
    """

    def __init__(self, training: TrainingConfig, num_items: int, seed: int, method: str) -> None:
        self.are_positives = training.loss == "pairwise"
        self._num_items = num_items
        self._draws = numpy_stream(seed, "distillation", method, "negatives")

    def of(self, batch: RowBatch) -> Tensor:
        """``[B]`` int64, for one step."""
        if self.are_positives:
            return batch.positives
        drawn = torch.from_numpy(self._draws.integers(self._num_items, size=len(batch)))
        return drawn.to(batch.positives.device)

    def and_positives(self, batch: RowBatch) -> Tensor:
        """``[B]`` or ``[2 B]`` int64, all items of one step, repetitions included."""
        if self.are_positives:
            return batch.positives
        return torch.cat([batch.positives, self.of(batch)])
