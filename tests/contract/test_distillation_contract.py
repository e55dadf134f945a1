"""What every method of the room keeps: by seed, never worse on validation, for each backbone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from alkd_ray import config, registry
from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.errors import InputError
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import rank_targets, top_items
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.training import loop
from alkd_ray.training.loop import TrainingResult
from alkd_ray.types import SessionSet


def preset_options(backbone: str) -> dict[str, Any]:
    """What the paper preset gives a backbone."""
    return config.make({"preset": "paper", "student": {"backbone": backbone}}).student.options


NAMES = registry.names("distillation")
BACKBONES = [("attmix", {}), ("attmix", preset_options("attmix")), ("fpmc", {}), ("stamp", {})]
NUM_ITEMS, WINDOW, STUDENT_DIM, TEACHER_DIM = 50, 4, 4, 12
TRAINING = TrainingConfig(
    batch_size=64,
    learning_rate=0.01,
    max_steps=30,
    validate_every=10,
    patience=5,
    metric="ndcg@10",
    device="cpu",
)


def world() -> SessionSet:
    """Item i is followed by i + 1, or now and then by i + 2."""
    rng = numpy_stream(3, "contract", "ring")
    walks = []
    for start, length in zip(
        rng.integers(NUM_ITEMS, size=400), rng.integers(2, 6, size=400), strict=True
    ):
        steps = 1 + (rng.random(length) < 0.2)
        walks.append((start + np.concatenate([[0], np.cumsum(steps)])) % NUM_ITEMS)
    return from_lists(
        np.arange(400) * 3,
        [walk[:-1] for walk in walks],
        [int(walk[-1]) for walk in walks],
        positional_split(400),
    )


def pretrained(backbone: str, options: dict[str, Any], dim: int, steps: int) -> Backbone:
    model = registry.build(
        "recommenders",
        backbone,
        options,
        num_items=NUM_ITEMS,
        dim=dim,
        generator=torch_stream(1, "initial weights", str(dim)),
    )
    training = TRAINING.model_copy(update={"max_steps": steps, "patience": 100})
    sessions = world()
    loop.fit(
        model, of_split(sessions, "train"), of_split(sessions, "valid"), training, WINDOW, seed=1
    )
    return model


@pytest.fixture(
    scope="module",
    params=BACKBONES,
    ids=lambda given: f"{given[0]}{', as the paper' if given[1] else ''}",
)
def pair(request: pytest.FixtureRequest) -> tuple[Backbone, Knowledge]:
    """A student that has begun to learn, and what its teachers know."""
    student = pretrained(*request.param, STUDENT_DIM, 20)
    teacher = pretrained(*request.param, TEACHER_DIM, 60)
    sessions = world()
    train = of_split(sessions, "train")
    ranked = np.arange(0, len(train), 3)
    rankings = top_items(teacher, train, WINDOW, 20)[ranked]
    return student, Knowledge(
        train=train,
        valid=of_split(sessions, "valid"),
        window=WINDOW,
        ranked_ids=train.ids[ranked],
        rankings=tuple(row[row >= 0] for row in rankings),
        teacher=teacher,
    )


def distilled(
    name: str,
    pair: tuple[Backbone, Knowledge],
    seed: int = 1,
    training: TrainingConfig = TRAINING,
    **options: Any,
) -> tuple[Backbone, TrainingResult]:
    student = copy.deepcopy(pair[0])
    result = registry.build("distillation", name, options).distill(student, pair[1], training, seed)
    return student, result


def weights(model: Backbone) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in cast(nn.Module, model).parameters()]


def same(first: Backbone, second: Backbone) -> bool:
    return all(map(torch.equal, weights(first), weights(second)))


def validation(model: Backbone, knowledge: Knowledge) -> float:
    ranks = rank_targets(model, knowledge.valid, WINDOW)
    return float(metric_values(ranks, TRAINING.metric).mean())


def test_the_room() -> None:
    known = {"alkdrec", "de", "dllm2rec", "dsl", "ftd", "htd", "teacher-ranking", "unkd"}
    assert known <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_is_distilled(name: str, pair: tuple[Backbone, Knowledge]) -> None:
    """The result tells what happened, and the best weights on validation are what stays."""
    before = [weight.clone() for weight in weights(pair[0])]
    teacher = [weight.clone() for weight in weights(cast(Backbone, pair[1].teacher))]
    awake = copy.deepcopy(cast(nn.Module, pair[1].teacher)).train()  # a mode that has to be kept
    knowledge = replace(pair[1], teacher=cast(Backbone, awake))
    student, result = distilled(name, (pair[0], knowledge))
    assert 0 < result.steps <= TRAINING.max_steps
    assert [entry["step"] for entry in result.history][-1] == result.steps
    assert all(math.isfinite(entry["loss"]) for entry in result.history if entry["step"])
    assert result.best_metric == pytest.approx(validation(student, pair[1]))
    assert result.best_metric == max(entry["metric"] for entry in result.history)
    if name != "dsl":  # whose student ends sparse, which the one it began with is not
        assert result.best_metric >= validation(pair[0], pair[1])
    assert all(map(torch.equal, before, weights(pair[0])))  # the copy was changed, not the fixture
    assert all(map(torch.equal, teacher, awake.parameters()))
    assert {weight.device.type for weight in awake.parameters()} == {"cpu"}
    assert awake.training
    assert [w.shape for w in weights(student)] == [w.shape for w in before]
    assert not cast(nn.Module, student).training


@pytest.mark.parametrize("name", NAMES)
def test_by_seed(name: str, pair: tuple[Backbone, Knowledge]) -> None:
    one_step_more = TRAINING.model_copy(update={"max_steps": 3, "validate_every": 3})
    first, result = distilled(name, pair, 1, one_step_more)
    again, same_result = distilled(name, pair, 1, one_step_more)
    assert same(first, again)
    losses = [one.history[-1]["loss"] for one in (result, same_result)]
    assert losses[0] == losses[1]
    _, other = distilled(name, pair, 2, one_step_more)
    assert other.history[-1]["loss"] != losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generators_are_left_alone(name: str, pair: tuple[Backbone, Knowledge]) -> None:
    state, legacy = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    distilled(name, pair, training=TRAINING.model_copy(update={"max_steps": 2}))
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_equal(np.random.get_state(), legacy)  # noqa: NPY002


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["pairwise", "sampled_bce", "softmax"])
def test_any_base_loss_and_prefixes(name: str, loss: str, pair: tuple[Backbone, Knowledge]) -> None:
    training = TRAINING.model_copy(
        update={"loss": loss, "examples": "prefixes", "max_steps": 4, "validate_every": 2}
    )
    _, result = distilled(name, pair, training=training)
    assert result.steps == 4
    assert all(math.isfinite(entry["loss"]) for entry in result.history if entry["step"])


@pytest.mark.parametrize("name", NAMES)
def test_soft_labels_are_refused(name: str, pair: tuple[Backbone, Knowledge]) -> None:
    training = TRAINING.model_copy(update={"loss": "softmax", "soft_labels": ["item-knn"]})
    with pytest.raises(InputError, match=r"distillation\.training\.soft_labels"):
        distilled(name, pair, training=training)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_without_embeddings(name: str, pair: tuple[Backbone, Knowledge]) -> None:
    """A method that reads embeddings says that it needs them; others take any recommender."""
    counts = registry.build("recommenders", "sequential-rules", {}, num_items=NUM_ITEMS)
    counts.fit(pair[1].train)
    both = (pair[0], replace(pair[1], teacher=counts))
    refusal = ""
    try:
        _, result = distilled(name, both, training=TRAINING.model_copy(update={"max_steps": 2}))
        assert result.steps == 2
    except InputError as error:
        refusal = str(error)
    assert not refusal or "needs a teacher with embeddings" in refusal


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_errors(name: str) -> None:
    with pytest.raises(InputError, match="no such field"):
        registry.options("distillation", name, {"lambada": 1})
