"""DLLM2Rec: the LLM's top items as further positives, and its text embeddings inside the items'.

Cui, Liu, Wang, Wang, Tang, Wan, Wang, Chen: Distillation Matters: Empowering Sequential
Recommenders to Match the Performance of Large Language Models. RecSys 2024; repository
istarryn/DLLM2Rec.

The file of ``text_embeddings_path`` is made once for a dataset, with any model that embeds
sentences. With the package sentence-transformers, say, which this project does not need otherwise,
and a dataset in the native form::

    titles = datasets.read(Path("my-data")).catalogue.titles.tolist()
    model = SentenceTransformer("all-MiniLM-L6-v2")
    numpy.save("titles.npy", model.encode(titles, normalize_embeddings=True).astype("float32"))

Row i belongs to item i of the catalogue. An endpoint's embeddings, or hidden states of an LLM, do
as well. Unit lengths suit the confidence's weight: distances are then between 0 and 2. The file's
content is part of what an output is found by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._joint import session_rows_of
from alkd_ray.distillation._list_loss import ListLoss
from alkd_ray.distillation._llm_lists import lists_of
from alkd_ray.distillation._rankings import nothing_to_learn
from alkd_ray.distillation._robust import propensities
from alkd_ray.distillation._text_term import TextTerm, read_texts
from alkd_ray.recommenders import Backbone
from alkd_ray.registry import PluginConfig
from alkd_ray.seeds import numpy_stream
from alkd_ray.training.loop import TrainingResult, train_rows
from alkd_ray.training.losses import Loss
from alkd_ray.training.stepper import Objective, make_loss


class Dllm2Rec:
    """Goes on training on all sessions, with the LLM's lists where there are any.

    With ``s`` the scores of a session (the paper's sequence; its state is Encode(session)), v its
    target, j one drawn negative, and R the robust loss over the catalogue
    (:func:`alkd_ray.distillation._robust.robust_gradients`, DROS)::

        base = -log sigma(s_v) - log(1 - sigma(s_j)) + alpha R(v)
        list = sum_r w_r [-log sigma(s_r) - log(1 - sigma(s_j)) + alpha R(r)]
        L    = mean over sessions of base + weight * list

    r runs over the LLM's first ``top`` items, and ``w ~ gamma_position softmax(-r) +
    gamma_confidence softmax(-distance) + gamma_consistency [r is in the student's own top]``,
    scaled to sum to 1. The student's top is worked out for each batch from the scores of that
    step. Items are ``e_cf + eta W e_text`` (:class:`alkd_ray.distillation._text_term.TextTerm`):
    a projection W of its own for each item table of the student, folded into it after each step.

    Which sessions have lists. The method wants a ranking of every training session. It reads what
    the run annotated, so ask for all that can be had (``selection.strategy: random`` and a budget
    of all sessions, or of all recorded ones); the report says what that cost. A session without a
    ranking has the base loss alone. With ``examples: prefixes`` a list belongs to the row whose
    input is the whole session.

    Published with ``training.batch_size: 256`` and ``learning_rate: 1.0e-3``. R reads the whole
    catalogue, so that a step costs about what one with the ``softmax`` loss does, and half as much
    again when every row has a list; smaller batches make it cheaper.

    Without ``text_embeddings_path``, the default, there is neither the text term nor the
    confidence's weight: what is left is the base and the lists, weighted by position and
    consistency.

    Departures. Training goes on from the pretrained student, so W starts at 0, without an offset,
    for the first student to be the given one; the published code starts everything at random. It
    adds the text to the inputs alone, its output layer being no item table; here items have one
    text wherever they have an embedding, so that every item table has the term. The confidence is
    the distance between an item's text and the text that the LLM generated; an LLM that answers
    with a ranking generates the title of its first item, so the distance is to that one. The
    negative is drawn from the whole catalogue, as in ``sampled_bce``; the published code leaves
    out the session.
    The published code multiplies weights ``[B, 1]`` by robust losses ``[B]`` of lists, which makes
    ``[B, B]`` products, all with all; here each row has its own weight, also with ``as_coded``.
    ``as_coded`` takes two forms of that code instead of those above. With ``base: training`` the
    list stands beside the loss of ``training.loss``, which is otherwise not read.
    """

    class Config(PluginConfig):
        """Options; the defaults are the published ones."""

        base: Literal["paper", "training"] = Field(
            "paper", description="base loss: the paper's, or the one that training.loss names"
        )
        weight: float = Field(0.8, ge=0, description="factor of the list's loss, lambda")
        alpha: float = Field(1.0, ge=0, description="factor of the robust losses; 0 = none")
        beta: float = Field(1.0, gt=0, description="radius of the robust losses")
        top: int = Field(10, ge=1, description="items read of a ranking, and the student's own top")
        gamma_position: float = Field(0.3, ge=0, description="weight of the position")
        gamma_confidence: float = Field(
            0.5, ge=0, description="weight of the confidence (with text_embeddings_path)"
        )
        gamma_consistency: float = Field(
            0.1, ge=0, description="weight of being in the student's own top"
        )
        text_embeddings_path: str = Field(
            "",
            description="a .npy file, [items, dimensions] float32 in the order of the catalogue; "
            "none = no text term and no confidence",
        )
        eta: float = Field(
            0.2, ge=0, description="factor of the text term (with text_embeddings_path)"
        )
        as_coded: bool = Field(
            False,
            description="as published: half the cross entropy in the paper's base, and "
            "-log sigma(1 - s) of the negative beside a list",
        )

        @model_validator(mode="after")
        def _weighing(self) -> Dllm2Rec.Config:
            confidence = self.gamma_confidence if self.text_embeddings_path else 0.0
            if not self.gamma_position + self.gamma_consistency + confidence:
                raise ValueError(
                    "gamma_position, gamma_consistency and (with text_embeddings_path) "
                    "gamma_confidence must not all be 0"
                )
            return self

    needs_rankings: ClassVar[bool] = True

    def __init__(
        self,
        base: Literal["paper", "training"],
        weight: float,
        alpha: float,
        beta: float,
        top: int,
        gamma_position: float,
        gamma_confidence: float,
        gamma_consistency: float,
        text_embeddings_path: str,
        eta: float,
        as_coded: bool,
    ) -> None:
        self.base = base
        self.weight = weight
        self.alpha = alpha
        self.beta = beta
        self.top = top
        self.gamma_position = gamma_position
        self.gamma_confidence = gamma_confidence
        self.gamma_consistency = gamma_consistency
        self.text_embeddings_path = text_embeddings_path
        self.eta = eta
        self.as_coded = as_coded

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
            InputError: no ranking holds an item of the catalogue, a ranked session is not among
                the training sessions, or the text embeddings cannot be had.
        """
        num_items = student.num_items
        rows = session_rows_of(knowledge, training)
        device = rows.windows.device
        texts = (
            read_texts(self.text_embeddings_path, num_items) if self.text_embeddings_path else None
        )
        lists = lists_of(
            knowledge,
            training.examples,
            len(rows.windows),
            num_items,
            self.top,
            self.gamma_position,
            self.gamma_confidence,
            texts,
        )
        if not len(lists):
            raise nothing_to_learn(knowledge)
        is_paper = self.base == "paper"
        purpose = "negatives" if is_paper else "list negatives"
        loss: Loss = ListLoss(
            lists.to(device),
            None if is_paper else make_loss(training, rows, num_items, seed, "distillation"),
            numpy_stream(seed, "distillation", purpose),
            (propensities(rows.counts(num_items)) / self.beta).sqrt().to(device),
            weight=self.weight,
            alpha=self.alpha,
            top=self.top,
            gamma_consistency=self.gamma_consistency,
            as_coded=self.as_coded,
        )
        objective = Objective(loss)
        if texts is not None and self.eta:
            term = TextTerm(student, texts.to(device), self.eta)
            objective = Objective(term.after(loss), term.moves, term.fold)
        return train_rows(
            student,
            rows,
            knowledge.valid,
            training,
            knowledge.window,
            seed,
            purpose="distillation",
            keep_start=True,
            objective=objective,
            progress=progress,
        )
