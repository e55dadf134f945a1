"""DLLM2Rec: weights by hand, gradients against autograd on the loss as written, exact limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray import registry
from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge, _llm_lists, _robust
from alkd_ray.distillation._list_loss import ListLoss
from alkd_ray.distillation._llm_lists import LLMLists, in_top, lists_of
from alkd_ray.distillation._robust import propensities
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists
from alkd_ray.training import examples
from alkd_ray.training.examples import RowBatch, last_rows
from alkd_ray.training.loop import TrainingResult, train_rows
from alkd_ray.training.losses import InBatchPairwise, Loss
from tests.ranked_world import (
    BACKBONES,
    DIM,
    NUM_ITEMS,
    TOP,
    TRAINING,
    WINDOW,
    assert_same_state,
    distilled,
    make_knowledge,
    make_student,
    make_texts,
    robust_as_written,
    state,
)

# The lists and their weights.


@pytest.mark.parametrize("num_items", [5, 63, 64, 700, 1_000])
def test_in_top_is_what_a_sort_finds(num_items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_robust, "_CPU_BLOCK_ELEMENTS", 2 * num_items)
    draw = torch_stream(6, "top")
    encoded = torch.randn(7, DIM, generator=draw)
    table = torch.randn(num_items, DIM, generator=draw)
    order = (encoded @ table.T).argsort(1, descending=True)
    items = torch.cat([order[:, :6], order[:, -3:]], 1)
    for top in (1, 3, 10):
        best = order[:, :top]
        wanted = (items[:, :, None] == best[:, None, :]).any(2)
        assert torch.equal(in_top(encoded, table, items, top), wanted)


def test_weights_by_hand() -> None:
    """Item 9 is unknown, so the second ranking has places 1 and 3 alone."""
    train = from_lists([1, 2, 3], [[0], [1], [2]], [0, 0, 0], ["train"] * 3)
    knowledge = Knowledge(
        train, train, 5, np.array([3, 1]), (np.array([2, 0, 1, 3]), np.array([1, 9, 0])),
        make_student("fpmc"),
    )  # fmt: skip
    texts = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    lists = lists_of(knowledge, "last", 3, 4, 3, 0.3, 0.5, texts)
    assert lists.of_window.tolist() == [1, -1, 0]
    assert lists.items.tolist() == [[2, 0, 1], [1, 1, 0]]
    assert lists.present.tolist() == [[True] * 3, [True, False, True]]
    agreed = torch.tensor([[False, True, False], [False, False, False]])
    found = lists.weights(torch.tensor([0, 1]), agreed, 0.1)
    e = math.exp
    place = np.array([e(-1), e(-2), e(-3)]) / (e(-1) + e(-2) + e(-3))
    close = np.array([1, e(-1), e(-math.sqrt(18))]) / (1 + e(-1) + e(-math.sqrt(18)))
    first = 0.3 * place + 0.5 * close + 0.1 * np.array([0, 1, 0])
    second = 0.3 * np.array([e(-1), e(-3)]) / (e(-1) + e(-3))
    second = second + 0.5 * np.array([1, e(-5)]) / (1 + e(-5))
    np.testing.assert_allclose(found[0], first / first.sum(), rtol=1e-5)
    np.testing.assert_allclose(found[1][[0, 2]], second / second.sum(), rtol=1e-5)
    assert found[1, 1] == 0
    alone = lists_of(knowledge, "last", 3, 4, 3, 0.0, 0.5, None)  # nothing is left but agreement
    found = alone.weights(torch.tensor([0, 1]), agreed, 0.1)
    np.testing.assert_allclose(found, [[0, 1, 0], [0.5, 0, 0.5]], atol=1e-6)


@pytest.mark.parametrize(("kind", "wanted"), [("last", [0, -1, 1, 2]), ("prefixes", [1, -1, 2, 5])])
def test_lists_stand_at_the_rows_of_their_sessions(
    kind: Literal["last", "prefixes"], wanted: list[int]
) -> None:
    sessions = from_lists([5, 6, 7, 8], [[1, 2], [], [3], [4, 5, 6]], [9, 9, 9, 9], ["train"] * 4)
    rows = examples.of_sessions(sessions, kind, WINDOW)
    assert last_rows(sessions, kind).tolist() == wanted
    for number in (0, 2, 3):
        window = rows.windows[wanted[number]]
        assert window[window >= 0].tolist() == sessions.items_of(number).tolist()
    knowledge = Knowledge(
        sessions, sessions, WINDOW, np.array([8, 6, 7]),
        (np.array([1]), np.array([2]), np.array([], np.int64)), make_student("fpmc"),
    )  # fmt: skip
    # Session 6 has no row and the ranking of 7 no item.
    lists = lists_of(knowledge, kind, len(rows.windows), NUM_ITEMS, TOP, 1.0, 0.0, None)
    assert lists.items.tolist() == [[1, 1, 1]]
    assert torch.nonzero(lists.of_window >= 0).tolist() == [[wanted[3]]]


def test_distances_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge, texts = make_knowledge(), make_texts()
    whole = lists_of(knowledge, "last", 40, NUM_ITEMS, 5, 0.3, 0.5, texts)
    monkeypatch.setattr(_llm_lists, "_DISTANCE_ROWS", 3)
    parts = lists_of(knowledge, "last", 40, NUM_ITEMS, 5, 0.3, 0.5, texts)
    torch.testing.assert_close(whole.fixed, parts.fixed)


# The loss of a batch.


def loss_as_written(
    student: Backbone,
    batch: RowBatch,
    lists: LLMLists,
    p: Tensor,
    negatives: np.ndarray,
    *,
    weight: float,
    alpha: float,
    beta: float,
    as_coded: bool,
    with_base: bool,
) -> Tensor:
    """The class docstring of the method, row by row; ``negatives`` of the rows that are read."""
    total = torch.zeros(())
    drawn = iter(negatives.tolist())
    for row in range(len(batch)):
        number = int(lists.of_window[batch.window_of[row]])
        if number < 0 and not with_base:
            continue
        scores = student.score(batch.items[row : row + 1], batch.mask[row : row + 1])[0]
        negative = scores[next(drawn)]
        if with_base:
            target = int(batch.positives[row])
            entropy = -functional.logsigmoid(scores[target]) - functional.logsigmoid(-negative)
            total = total + (entropy / 2 if as_coded else entropy)
            total = total + alpha * robust_as_written(scores, p, target, beta)
        if number < 0:
            continue
        top = scores.argsort(descending=True)[:TOP].tolist()
        raw = [
            (float(lists.fixed[number, k]) + 0.1 * (int(lists.items[number, k]) in top))
            * float(lists.present[number, k])
            for k in range(TOP)
        ]
        for k in range(TOP):
            item = int(lists.items[number, k])
            push = torch.sigmoid(1 - negative) if as_coded else 1 - torch.sigmoid(negative)
            entropy = -functional.logsigmoid(scores[item]) - push.log()
            robust = robust_as_written(scores, p, item, beta)
            total = total + weight * raw[k] / sum(raw) * (entropy + alpha * robust)
    return total / len(batch)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("as_coded", [False, True])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_gradients_are_those_of_the_loss_as_written(
    backbone: str, as_coded: bool, with_base: bool, alpha: float
) -> None:
    options: dict[str, object] = {"scale": 2.0} if backbone == "attmix" else {}
    student = make_student(backbone, item_bias=True, **options)
    knowledge = make_knowledge()
    knowledge.rankings[0][0] = knowledge.train.targets[0]  # the target is in its own list
    rows = examples.of_sessions(knowledge.train, "last", WINDOW)
    batch = rows.take(torch.arange(12))
    texts, beta = make_texts(), 1.3
    lists = lists_of(knowledge, "last", len(rows), NUM_ITEMS, TOP, 0.3, 0.5, texts)
    p = propensities(rows.counts(NUM_ITEMS))

    class Nothing:
        def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
            return 0.0 if want_value else None

    loss = ListLoss(
        lists,
        None if with_base else cast(Loss, Nothing()),
        numpy_stream(1, "negatives"),
        (p / beta).sqrt(),
        weight=0.8,
        alpha=alpha,
        top=TOP,
        gamma_consistency=0.1,
        as_coded=as_coded,
    )
    read = 12 if with_base else int((lists.of_window[batch.window_of] >= 0).sum())
    assert read > 0
    negatives = numpy_stream(1, "negatives").integers(NUM_ITEMS, size=read)
    value = loss(student, batch, True)
    module = cast(nn.Module, student)
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    plain = loss_as_written(
        student, batch, lists, p, negatives,
        weight=0.8, alpha=alpha, beta=beta, as_coded=as_coded, with_base=with_base,
    )  # fmt: skip
    plain.backward()
    assert value == pytest.approx(float(plain.detach()), rel=1e-5)
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_base_of_the_training_is_added_whole() -> None:
    knowledge, student = make_knowledge(), make_student("fpmc")
    rows = examples.of_sessions(knowledge.train, "last", WINDOW)
    lists = lists_of(knowledge, "last", len(rows), NUM_ITEMS, TOP, 1.0, 0.0, None)
    roots = propensities(rows.counts(NUM_ITEMS)).sqrt()
    module, batch = cast(nn.Module, student), rows.take(torch.arange(len(rows)))

    def added(loss: Loss) -> list[Tensor]:
        module.zero_grad()
        loss(student, batch, False)
        return [cast(Tensor, p.grad).clone() for p in module.parameters()]

    def list_loss(base: Loss | None, weight: float) -> Loss:
        return ListLoss(
            lists, base, numpy_stream(1, "negatives"), roots,
            weight=weight, alpha=1.0, top=TOP, gamma_consistency=0.1, as_coded=False,
        )  # fmt: skip

    base = InBatchPairwise()
    alone, both = added(base), added(list_loss(base, 0.5))
    twice = added(list_loss(base, 1.0))
    for plain, half, whole in zip(alone, both, twice, strict=True):
        torch.testing.assert_close(whole - plain, 2 * (half - plain), rtol=1e-3, atol=1e-6)


# Limits of the whole method.


def continued(student: Backbone, knowledge: Knowledge, training: TrainingConfig) -> TrainingResult:
    rows = examples.of_sessions(knowledge.train, training.examples, knowledge.window)
    return train_rows(
        student,
        rows,
        knowledge.valid,
        training,
        knowledge.window,
        7,
        purpose="distillation",
        keep_start=True,
    )


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("pairwise", {"base": "training"}),
        ("softmax", {"base": "training"}),
        ("sampled_bce", {"base": "training"}),
        ("sampled_bce", {"base": "paper", "alpha": 0.0}),
    ],
)
def test_without_weight_it_is_plain_training(
    backbone: str, loss: Any, options: dict[str, Any]
) -> None:
    training = TRAINING.model_copy(update={"loss": loss, "examples": "prefixes"})
    plain, student = make_student(backbone), make_student(backbone)
    wanted = continued(plain, make_knowledge(), training)
    found = distilled(student, make_knowledge(), training, weight=0.0, **options)
    for one, other in zip(found.history, wanted.history, strict=True):
        assert one["metric"] == other["metric"]
        assert one.get("loss") == other.get("loss")  # there is none at the start
    assert_same_state(student, plain)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_start_that_is_best_stays(backbone: str, tmp_path: Path) -> None:
    """No step of this size changes a rank: what is kept is the given student, without any text."""
    np.save(tmp_path / "texts.npy", make_texts().numpy())
    student, start = make_student(backbone), make_student(backbone)
    training = TRAINING.model_copy(update={"learning_rate": 1e-9})
    options = {"text_embeddings_path": str(tmp_path / "texts.npy")}
    result = distilled(student, make_knowledge(), training, **options)
    assert result.best_step == 0
    assert_same_state(student, start)


def held_by(student: Backbone, knowledge: Knowledge) -> float:
    """The mean score of the first ranked items against all items', of the ranked sessions."""
    rows = last_rows(knowledge.train, "last")
    row_of = dict(zip(knowledge.train.ids.tolist(), rows.tolist(), strict=True))
    batch = examples.of_sessions(knowledge.train, "last", WINDOW).take(
        torch.tensor([row_of[int(i)] for i in knowledge.ranked_ids])
    )
    scores = student.score(batch.items, batch.mask).detach()
    first = torch.tensor([int(ranking[0]) for ranking in knowledge.rankings])
    return float((scores.gather(1, first[:, None])[:, 0] - scores.mean(1)).mean())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("base", ["paper", "training"])
def test_it_learns_the_rankings(backbone: str, base: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.npy"
    np.save(file, make_texts().numpy())
    knowledge = make_knowledge()
    # What is validated is what the rankings say, so that the weights at the end are kept.
    valid = from_lists(
        knowledge.ranked_ids,
        [knowledge.train.items_of(2 * row).tolist() for row in range(len(knowledge.ranked_ids))],
        [int(ranking[0]) for ranking in knowledge.rankings],
        ["valid"] * len(knowledge.ranked_ids),
    )
    knowledge = Knowledge(
        knowledge.train, valid, WINDOW, knowledge.ranked_ids, knowledge.rankings, knowledge.teacher
    )
    training = TrainingConfig(
        batch_size=40, max_steps=60, learning_rate=0.05, metric="mrr@40", validate_every=30
    )
    students = [make_student(backbone) for _ in range(2)]
    before = held_by(students[0], knowledge)
    for student in students:
        distilled(
            student, knowledge, training, base=base, weight=4.0, text_embeddings_path=str(file)
        )
    assert_same_state(*students)  # the same seed, the same weights
    assert set(state(students[0])) == set(state(make_student(backbone)))
    assert held_by(students[0], knowledge) > before + 0.3


# What is refused.


def test_rankings_without_items_are_refused() -> None:
    knowledge = make_knowledge(ranked=2)
    empty = (np.zeros(0, np.int64), np.array([NUM_ITEMS, -1]))
    knowledge = Knowledge(
        knowledge.train, knowledge.valid, WINDOW, knowledge.ranked_ids, empty, knowledge.teacher
    )
    with pytest.raises(InputError, match="none of the 2 rankings"):
        distilled(make_student("fpmc"), knowledge)


def test_soft_labels_are_refused() -> None:
    training = TrainingConfig(loss="softmax", soft_labels=["item-knn"])
    with pytest.raises(InputError, match="soft_labels"):
        distilled(make_student("fpmc"), make_knowledge(), training)


def test_weights_that_all_vanish_are_refused() -> None:
    nothing = {"gamma_position": 0, "gamma_consistency": 0}
    with pytest.raises(InputError, match="must not all be 0"):
        registry.options("distillation", "dllm2rec", nothing)
    registry.options("distillation", "dllm2rec", {**nothing, "text_embeddings_path": "texts.npy"})
