"""A tiny world in which methods that read a teacher's embeddings are tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from alkd_ray import registry
from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._joint import FrozenTeacher, JointLoss, session_rows_of
from alkd_ray.recommenders import Backbone, Recommender
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.training.examples import RowBatch, Rows
from alkd_ray.training.loop import TrainingResult, train_rows
from alkd_ray.training.stepper import Objective, Stepper, make_loss
from alkd_ray.types import SessionSet

NUM_ITEMS, WINDOW, DIM, TEACHER_DIM = 40, 5, 4, 9


def ring_world(sessions: int = 400) -> SessionSet:
    """Item i is followed by i + 1."""
    rng = numpy_stream(11, "ring world")
    starts, lengths = rng.integers(NUM_ITEMS, size=sessions), rng.integers(1, 7, size=sessions)
    walks = [(s + np.arange(n + 1)) % NUM_ITEMS for s, n in zip(starts, lengths, strict=True)]
    return from_lists(
        np.arange(sessions),
        [walk[:-1] for walk in walks],
        [int(walk[-1]) for walk in walks],
        positional_split(sessions),
    )


def make(name: str = "fpmc", dim: int = DIM, seed: int = 1, **options: object) -> Backbone:
    """A student, or with ``TEACHER_DIM`` a teacher, whose embeddings have a length of about 1."""
    return registry.build(
        "recommenders",
        name,
        {"init_std": dim**-0.5, **options},
        num_items=NUM_ITEMS,
        dim=dim,
        generator=torch_stream(seed, "initial weights"),
    )


def knowledge_of(teacher: Recommender | None = None) -> Knowledge:
    world = ring_world()
    return Knowledge(
        train=of_split(world, "train"),
        valid=of_split(world, "valid"),
        window=WINDOW,
        ranked_ids=np.zeros(0, np.int64),
        rankings=(),
        teacher=teacher or make(dim=TEACHER_DIM, seed=2),
    )


def settings(**given: Any) -> TrainingConfig:
    base = {"batch_size": 64, "learning_rate": 0.01, "max_steps": 12, "validate_every": 4}
    return TrainingConfig(**{**base, "metric": "recall@5", **given})


def weights(model: object) -> Tensor:
    return torch.cat([p.detach().flatten() for p in cast(nn.Module, model).parameters()])


def gradients(model: object) -> list[Tensor]:
    """The gradients of the parameters that have one; they are taken away."""
    module = cast(nn.Module, model)
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return found


def distilled(
    method: str, student: Backbone, training: TrainingConfig, seed: int = 1, **options: object
) -> TrainingResult:
    built = registry.build("distillation", method, options)
    return built.distill(student, knowledge_of(), training, seed)


def check_without_weight(method: str, name: str, training: TrainingConfig) -> None:
    """With lambda 0 the method is training on the sessions, to the bit."""
    knowledge, plain = knowledge_of(), make(name, item_bias=True)
    rows = session_rows_of(knowledge, training)
    wanted = train_rows(
        plain, rows, knowledge.valid, training, WINDOW, 1, purpose="distillation", keep_start=True
    )
    student = make(name, item_bias=True)
    found = distilled(method, student, training, weight=0.0)
    assert wanted.best_step > 0
    assert [entry["metric"] for entry in found.history] == [e["metric"] for e in wanted.history]
    assert torch.equal(weights(student), weights(plain))


def check_seeds(method: str, **options: object) -> None:
    """A seed means the same bits, and another seed others."""
    found = []
    for seed in (1, 1, 2):
        student = make()
        training = settings(learning_rate=0.03, max_steps=40)
        result = distilled(method, student, training, seed, **options)
        assert result.best_step > 0
        found.append(weights(student))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def trained_with(
    term: Any, student: Backbone, rows: Rows, weight: float, steps: int, value: Callable[[], float]
) -> tuple[float, float]:
    """``value`` before and after some steps of the base loss and the term."""
    before = value()
    training = settings()
    base = make_loss(training, rows, NUM_ITEMS, 1, "distillation")
    own = tuple(term.parameters()) if isinstance(term, nn.Module) else ()
    objective = Objective(JointLoss(base, term, weight), own)
    stepper = Stepper(student, rows, training, 1, "distillation", objective)
    for _ in range(steps):
        stepper.step(want_value=False)
    return before, value()


def rows_and_teacher(training: TrainingConfig) -> tuple[Rows, FrozenTeacher]:
    knowledge = knowledge_of()
    rows = session_rows_of(knowledge, training)
    return rows, FrozenTeacher.of(knowledge.teacher, rows, "a test")


def batch_with_repeats(rows: Rows) -> RowBatch:
    """Six rows; some have the same positive."""
    batch = rows.take(torch.tensor([3, 1, 7, 20, 30, 31]))
    return replace(batch, positives=batch.positives.index_fill(0, torch.tensor([4, 5]), 5))
