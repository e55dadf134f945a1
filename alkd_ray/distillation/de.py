"""DE: experts learn to make the teacher's embeddings out of the student's.

Kang, Hwang, Kweon and Yu: DE-RRD: A Knowledge Distillation Framework for Recommender System.
CIKM 2020, the first of its two methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._entities import Negatives, embedded_items, embedded_sessions
from alkd_ray.distillation._experts import Annealed, Experts, Temperature, two_of
from alkd_ray.distillation._joint import FrozenTeacher, session_rows_of, train_with
from alkd_ray.recommenders import Backbone
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.loop import TrainingResult


class DE(Annealed):
    """Distillation experts: ``L = L_base + lambda [D(sessions) + (D(pos. items) + D(neg.)) / 2]``.

    ``D = sum ||t - sum_m z_m E_m(s)||^2`` over the batch's sessions or items, each once; t and s
    are the frozen teacher's and the student's embeddings, and z chooses among the experts by t,
    with Gumbel noise at a falling temperature (:class:`alkd_ray.distillation._experts.Experts`).
    Sessions and items have experts and gates of their own. They are trained beside the student,
    with the same optimiser, and end with the training. With a learned item bias an embedding is the
    one that is scored with, bias included.

    The sums are of squares, so that lambda means something else with each backbone: a normalising
    AttMix encodes sessions to the length ``scale`` (1 in the paper preset; with 12, and items of
    length 1, a session's part of D starts at 144 times an item's).

    Departures from the paper and its code: a user there is an encoded session here, since sessions
    are anonymous, and with prefix examples each prefix is a session of its own. An expert's hidden
    layer is as wide as d_s and d_t on average; where both are one d, the code takes d // 2. With
    the in-batch pairwise loss the negative items are the batch's positives, so that ``D(pos.)`` and
    ``D(neg.)`` are one; with other losses as many negatives as rows are drawn from the whole
    catalogue. The published base loss is a sum over the batch and the one here a mean, so the term
    is divided by the number of rows as well: lambda weighs the two as published. The student is a
    trained one that goes on training. The published temperature falls over all epochs of a training
    without early stopping; here over a number of steps of its own, since ``max_steps`` is rarely
    reached: a distillation tends to end after 500 to 3,000 steps.
    """

    class Config(Annealed.Config):
        """Options; the defaults are the published ones, but for the steps."""

        experts: int = Field(30, ge=1, description="M, for sessions and for items")
        weight: float = Field(0.01, ge=0, description="lambda, of the term beside the base loss")

    needs_rankings: ClassVar[bool] = False

    def __init__(
        self,
        experts: int,
        weight: float,
        start_temperature: float,
        end_temperature: float,
        annealing_steps: int,
    ) -> None:
        super().__init__(start_temperature, end_temperature, annealing_steps)
        self.experts = experts
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
        teacher = FrozenTeacher.of(knowledge.teacher, rows, "de")
        term = ExpertTerm(
            teacher,
            *two_of(self.experts, student, teacher, seed, "de"),
            self.temperature(training),
            Negatives(training, student.num_items, seed, "de"),
        )
        return train_with(student, rows, knowledge, training, seed, term, self.weight, progress)


class ExpertTerm(nn.Module):
    """The term of :class:`DE`, for one batch; each call is a step of the temperature."""

    def __init__(
        self,
        teacher: FrozenTeacher,
        session_experts: Experts,
        item_experts: Experts,
        temperature: Temperature,
        negatives: Negatives,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.session_experts = session_experts
        self.item_experts = item_experts
        self.temperature = temperature
        self.negatives = negatives

    def forward(self, backbone: Backbone, batch: RowBatch) -> Tensor:
        """See :class:`alkd_ray.distillation._joint.Term`."""
        temperature = self.temperature.next()
        sessions = embedded_sessions(backbone, batch, self.teacher)
        items = embedded_items(backbone, batch.positives, self.teacher)
        of_sessions = self.session_experts.regression(sessions, temperature)
        of_items = self.item_experts.regression(items, temperature)
        if not self.negatives.are_positives:
            others = embedded_items(backbone, self.negatives.of(batch), self.teacher)
            of_items = (of_items + self.item_experts.regression(others, temperature)) / 2
        return (of_sessions + of_items) / len(batch)
