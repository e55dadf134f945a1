"""A tiny world with an LLM's rankings, in which DLLM2Rec is tested."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from alkd_ray import registry
from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists, of_split
from alkd_ray.training.loop import TrainingResult
from alkd_ray.types import SessionSet

NUM_ITEMS, DIM, TEXT_DIM, WINDOW, TOP = 40, 4, 6, 5, 3
BACKBONES = ["fpmc", "stamp", "attmix"]
TRAINING = TrainingConfig(batch_size=16, max_steps=6, validate_every=3, device="cpu")


def make_student(backbone: str, **options: object) -> Backbone:
    draw = torch_stream(1, "test student")
    return registry.build(
        "recommenders",
        backbone,
        {"init_std": 0.3, **options},
        num_items=NUM_ITEMS,
        dim=DIM,
        generator=draw,
    )


def make_sessions(count: int = 60) -> SessionSet:
    rng = numpy_stream(2, "test sessions")
    return from_lists(
        np.arange(count) + 100,
        [rng.integers(NUM_ITEMS, size=rng.integers(1, 7)).tolist() for _ in range(count)],
        rng.integers(NUM_ITEMS, size=count),
        ["train", "train", "valid"] * (count // 3),
    )


def make_knowledge(ranked: int = 10, length: int = 5) -> Knowledge:
    sessions = make_sessions()
    rng = numpy_stream(3, "test rankings")
    train = of_split(sessions, "train")
    return Knowledge(
        train=train,
        valid=of_split(sessions, "valid"),
        window=WINDOW,
        ranked_ids=train.ids[::2][:ranked].copy(),
        rankings=tuple(rng.permutation(NUM_ITEMS)[:length] for _ in range(ranked)),
        teacher=make_student("fpmc"),
    )


def make_texts() -> Tensor:
    return torch.randn(NUM_ITEMS, TEXT_DIM, generator=torch_stream(4, "test texts"))


def distilled(
    student: Backbone,
    knowledge: Knowledge,
    training: TrainingConfig = TRAINING,
    **options: object,
) -> TrainingResult:
    method = registry.build("distillation", "dllm2rec", {"top": TOP, **options})
    return method.distill(student, knowledge, training, 7)


def state(student: Backbone) -> dict[str, Tensor]:
    return cast(nn.Module, student).state_dict()


def assert_same_state(one: Backbone, other: Backbone) -> None:
    for name, tensor in state(one).items():
        assert torch.equal(tensor, state(other)[name]), name


def robust_as_written(y: Tensor, p: Tensor, item: int, beta: float) -> Tensor:
    """R(item) of one row's scores y, its exponentials written out."""
    terms = torch.exp(p * y.square() / beta)
    wanted = torch.exp(p[item] * (y[item] - 1).square() / beta)
    others = torch.arange(len(y)) != item
    return torch.log(terms[others].sum() + wanted)
