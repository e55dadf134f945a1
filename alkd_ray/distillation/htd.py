"""HTD: the teacher's topology taken apart, within groups of sessions and items and between them.

Kang, Hwang, Kweon and Yu: Topology Distillation for Recommender System. KDD 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
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
from alkd_ray.distillation._experts import Annealed, Experts, Temperature, two_of
from alkd_ray.distillation._joint import FrozenTeacher, session_rows_of, train_with
from alkd_ray.recommenders import Backbone
from alkd_ray.recommenders._lookup import added_up
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.loop import TrainingResult

Variant = Literal["second", "first"]


class HTD(Annealed):
    """Hierarchical topology distillation: ``L = L_base + lambda [alpha TD + (1 - alpha) GA]``.

    A session or item belongs to the group that its teacher embedding t is likeliest in,
    ``argmax softmax(V t)``; sessions and items have K groups each. GA, the group assignment, is
    what V learns from: DE's regression of t from the student's s by K networks, between which V
    chooses with Gumbel noise (:class:`alkd_ray.distillation._experts.Experts`). TD, the topology,
    is ``sum (cos_s - cos_t)^2`` over

    - the ordered pairs within a group whose cosine is positive for the teacher, and
    - each prototype (a group's mean embedding in the batch) and each session or item, whether of
      the group or not, with ``variant: second``; each two prototypes with ``first``.

    All sums run over the batch's sessions and items, each once, as published. With ``second`` no
    gradient flows through the prototypes. With a learned item bias an embedding is the one that is
    scored with, bias included.

    GA is a sum of squares, so that lambda and alpha mean something else with each backbone: a
    normalising AttMix encodes sessions to the length ``scale`` (1 in the paper preset; with 12, and
    items of length 1, a session's part of GA starts at 144 times an item's).

    Departures from the paper and its code: a user there is an encoded session here, since sessions
    are anonymous, and with prefix examples each prefix is a session of its own. With ``first`` the
    gradient does flow through the student's prototypes; the code holds them constant there too,
    which leaves the sum between prototypes without effect. Items are a batch's positives and
    negatives; with the in-batch pairwise loss these are one set, with other losses as many
    negatives as rows are drawn from the whole catalogue. The published base loss is a sum over the
    batch and the one here a mean, so the term is divided by the number of rows as well: lambda
    weighs the two as published. The student is a trained one that goes on training. The published
    temperature falls over all epochs of a training without early stopping; here over a number of
    steps of its own, since ``max_steps`` is rarely reached: a distillation tends to end after 500
    to 3,000 steps. The published Adam (1e-3, decay 1e-3, not decoupled) is not brought along:
    ``distillation.training`` says how to train.
    """

    class Config(Annealed.Config):
        """Options; the defaults are the published ones, but for the steps."""

        groups: int = Field(30, ge=1, description="K, of sessions and of items")
        weight: float = Field(1e-3, ge=0, description="lambda, of the term beside the base loss")
        alpha: float = Field(
            0.5, ge=0, le=1, description="share of TD in the term; GA has the rest"
        )
        variant: Variant = Field(
            "second",
            description="between groups, compare prototypes with every session and item (second) "
            "or with one another (first)",
        )

    needs_rankings: ClassVar[bool] = False

    def __init__(
        self,
        groups: int,
        weight: float,
        alpha: float,
        variant: Variant,
        start_temperature: float,
        end_temperature: float,
        annealing_steps: int,
    ) -> None:
        super().__init__(start_temperature, end_temperature, annealing_steps)
        self.groups = groups
        self.weight = weight
        self.alpha = alpha
        self.variant: Variant = variant

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
        teacher = FrozenTeacher.of(knowledge.teacher, rows, "htd")
        term = HierarchicalTopology(
            teacher,
            *two_of(self.groups, student, teacher, seed, "htd"),
            self.temperature(training),
            Negatives(training, student.num_items, seed, "htd"),
            self.alpha,
            self.variant,
        )
        return train_with(student, rows, knowledge, training, seed, term, self.weight, progress)


class HierarchicalTopology(nn.Module):
    """The term of :class:`HTD`, for one batch; each call is a step of the temperature."""

    def __init__(
        self,
        teacher: FrozenTeacher,
        session_networks: Experts,
        item_networks: Experts,
        temperature: Temperature,
        negatives: Negatives,
        alpha: float,
        variant: Variant,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.session_networks = session_networks
        self.item_networks = item_networks
        self.temperature = temperature
        self.negatives = negatives
        self.alpha = alpha
        self.variant: Variant = variant

    def forward(self, backbone: Backbone, batch: RowBatch) -> Tensor:
        """See :class:`alkd_ray.distillation._joint.Term`."""
        temperature = self.temperature.next()
        sessions = embedded_sessions(backbone, batch, self.teacher)
        items = embedded_items(backbone, self.negatives.and_positives(batch), self.teacher)
        assignment = self.session_networks.regression(sessions, temperature)
        assignment = assignment + self.item_networks.regression(items, temperature)
        session_groups = self.session_networks.groups(sessions.teacher)
        item_groups = self.item_networks.groups(items.teacher)
        topology = pair_gap(sessions, session_groups) + pair_gap(items, item_groups)
        groups = len(self.session_networks.gate_bias)
        topology = topology + prototype_gap(
            stacked(sessions, items),
            torch.cat([session_groups, item_groups + groups]),
            2 * groups,
            self.variant,
        )
        return (self.alpha * topology + (1 - self.alpha) * assignment) / len(batch)


def pair_gap(embedded: Embedded, groups: Tensor) -> Tensor:
    """``sum (cos_s - cos_t)^2`` over ordered pairs of one group with a positive teacher cosine.

    Args:
        embedded: sessions, or items.
        groups: ``[n]`` int64, the group of each.

    Returns:
        A scalar, differentiable once.
    """
    s = functional.normalize(embedded.student)
    t = functional.normalize(embedded.teacher)
    return _PairGap.apply(s, t, groups)  # type: ignore[no-any-return]


def prototype_gap(embedded: Embedded, groups: Tensor, count: int, variant: Variant) -> Tensor:
    """``sum (cos_s - cos_t)^2`` between prototypes and all of ``embedded``, or between prototypes.

    A group without members has a prototype of zeros, whose cosines are 0 for both models.

    Args:
        embedded: n sessions and items.
        groups: ``[n]`` int64, the group of each.
        count: number of groups.
        variant: ``second`` or ``first``, as in :class:`HTD`.

    Returns:
        A differentiable scalar.
    """
    ones = torch.ones(len(groups), 1, device=groups.device)
    members = added_up(count, groups, ones)  # [count, 1]

    def means(embeddings: Tensor) -> Tensor:
        total = added_up(count, groups, embeddings)  # [count, d]
        return functional.normalize(total / members.clamp_min(1))

    prototypes_t = means(embedded.teacher)
    if variant == "first":
        prototypes_s = means(embedded.student)
        gaps = prototypes_s @ prototypes_s.T - prototypes_t @ prototypes_t.T  # [count, count]
    else:
        prototypes_s = means(embedded.student.detach())
        s, t = functional.normalize(embedded.student), functional.normalize(embedded.teacher)
        gaps = prototypes_s @ s.T - prototypes_t @ t.T  # [count, n]
    return gaps.square().sum()


class _PairGap(torch.autograd.Function):
    """The sum of :func:`pair_gap` for vectors of length 1, S and T.

    With ``R = S S' - T T'``, zero where a pair does not count, it is ``||R||^2`` and its gradient
    ``4 R S``: worked out at once, no graph keeps matrices over pairs.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, groups: Tensor) -> Tensor:
        gaps = t @ t.T  # [n, n]
        leaves_out = (gaps <= 0).logical_or_(groups[:, None] != groups)  # [n, n]
        gaps.addmm_(s, s.T, beta=-1).masked_fill_(leaves_out, 0.0)  # R
        # A product with few columns is up to 10 times slower on CPU than its transpose; R' is R.
        ctx.save_for_backward((4 * s.T @ gaps).T)
        gaps = gaps.flatten()
        return gaps.dot(gaps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (by_s,) = ctx.saved_tensors
        return by_s * gradients[0], None, None
