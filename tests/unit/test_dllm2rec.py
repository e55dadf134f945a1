"""DLLM2Rec: weights by hand, gradients against autograd on the loss as written, exact limits."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from alkd_ray.distillation._llm_lists import LLMLists, in_top, last_rows, lists_of
from alkd_ray.distillation._robust import propensities, robust_gradients
from alkd_ray.distillation._text_term import TextTerm, read_texts
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists, of_split
from alkd_ray.training import examples
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.loop import TrainingResult, train_rows
from alkd_ray.training.losses import InBatchPairwise, Loss
from alkd_ray.training.stepper import Objective, Stepper
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


# The robust loss.


def robust_as_written(y: Tensor, p: Tensor, item: int, beta: float) -> Tensor:
    terms = torch.exp(p * y.square() / beta)
    wanted = torch.exp(p[item] * (y[item] - 1).square() / beta)
    others = torch.arange(len(y)) != item
    return torch.log(terms[others].sum() + wanted)


@pytest.mark.parametrize("num_items", [23, 4])  # at 4, a row may leave no further item
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_robust_gradients_are_those_of_the_loss_as_written(
    num_items: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_robust, "_CPU_BLOCK_ELEMENTS", 3 * num_items)
    draw, beta = torch_stream(5, "robust"), 0.7
    u = torch.randn(8, DIM, generator=draw, dtype=torch.float64).mul_(scale).requires_grad_()
    table = torch.randn(num_items, DIM, generator=draw, dtype=torch.float64).requires_grad_()
    p = torch.rand(num_items, generator=draw, dtype=torch.float64) * 0.3 + 0.4
    items = torch.randint(num_items, (8, 4), generator=draw)  # some rows name an item twice
    items[0] = torch.arange(4)
    items[1] = 2
    weights = torch.rand(8, 4, generator=draw, dtype=torch.float64)
    weights[2] = 0
    with torch.no_grad():
        found = robust_gradients(u, table, (p / beta).sqrt(), items, weights, True)
    wanted = torch.stack(
        [
            weights[b, k] * robust_as_written(u[b] @ table.T, p, int(items[b, k]), beta)
            for b in range(8)
            for k in range(4)
        ]
    ).sum()
    wanted.backward()
    assert found.value == pytest.approx(float(wanted.detach()))
    torch.testing.assert_close(found.by_encoded, u.grad)
    torch.testing.assert_close(found.by_table, table.grad)


def test_robust_loss_by_hand() -> None:
    """Two items with scores 2 and 1, p = 1: R(0) = log(e^1 + e^1), R(1) = log(e^0 + e^4)."""
    u, table = torch.ones(1, 1), torch.tensor([[2.0], [1.0]])
    for item, value in ((0, math.log(2 * math.e)), (1, math.log(1 + math.e**4))):
        found = robust_gradients(
            u, table, torch.ones(2), torch.tensor([[item]]), torch.ones(1, 1), True
        )
        assert found.value == pytest.approx(value, rel=1e-6)


def test_robust_loss_stands_large_scores() -> None:
    u, table = torch.full((1, 1), 1.0), torch.tensor([[-300.0], [300.0], [1.0]])
    found = robust_gradients(
        u, table, torch.ones(3), torch.tensor([[1]]), torch.ones(1, 1), want_value=True
    )
    assert found.value == pytest.approx(300.0**2)
    # Item 0 alone is as wrong as can be: dR/dy_0 = 2 y_0, and u's gradient is that times t_0.
    torch.testing.assert_close(found.by_table[0], torch.tensor([-600.0]))
    assert torch.isfinite(found.by_encoded).all()


def test_propensities_by_hand() -> None:
    torch.testing.assert_close(
        propensities(np.array([0, 3, 6])),
        torch.tensor([(1 / 12) ** 0.05, (4 / 12) ** 0.05, (7 / 12) ** 0.05]),
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
        np.testing.assert_equal(one["loss"], other["loss"])  # NaN at the start
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


# The text term.


class Explicit(nn.Module):
    """A backbone whose tables are what the paper writes: two parameters, added up when read."""

    def __init__(self, inner: Backbone, texts: Tensor, eta: float) -> None:
        super().__init__()
        self.inner = cast(nn.Module, inner)
        self.texts = texts
        self.eta = eta
        self.names = [n for n, _ in self.inner.named_parameters() if n.endswith("item_embedding")]
        self.free = nn.ParameterDict(
            {n: p for n, p in self.inner.named_parameters() if n not in self.names}
        )
        self.own = nn.ParameterDict(
            {n: self.inner.get_parameter(n).detach().clone() for n in self.names}
        )
        self.projection = nn.ParameterDict(
            {n: torch.zeros(DIM, texts.shape[1]) for n in self.names}
        )
        for name in self.names:
            delattr(self.inner, name)

    def trained(self) -> list[nn.Parameter]:
        parts = (self.free, self.own, self.projection)
        return [p for part in parts for p in part.parameters()]

    def put_together(self) -> Backbone:
        for name in self.names:
            text = self.eta * self.texts @ self.projection[name].T
            setattr(self.inner, name, self.own[name] + text)
        return cast(Backbone, self.inner)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_folded_steps_are_steps_on_both_parameters(backbone: str, weight_decay: float) -> None:
    texts, eta = make_texts(), 0.2
    knowledge = make_knowledge()
    training = TRAINING.model_copy(
        update={"weight_decay": weight_decay, "learning_rate": 0.01, "schedule": "cosine"}
    )
    rows = examples.of_sessions(knowledge.train, "last", WINDOW)
    student, explicit = make_student(backbone), Explicit(make_student(backbone), texts, eta)
    term = TextTerm(student, texts, eta)
    assert len(term.tables) == (1 if backbone == "attmix" else 2)
    stepper = Stepper(
        student, rows, training, 7, "x",
        Objective(term.after(InBatchPairwise()), term.moves, term.fold),
    )  # fmt: skip
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimiser = kind(explicit.trained(), lr=0.01, weight_decay=weight_decay)
    draws = numpy_stream(7, "x", "batches")
    for step in range(training.max_steps):
        stepper.step(want_value=False)
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / training.max_steps))
        index = draws.choice(len(rows), training.batch_size, replace=False, shuffle=False)
        optimiser.zero_grad()
        batch = rows.take(torch.from_numpy(index))
        whole = explicit.put_together()
        u = whole.encode(batch.items, batch.mask)
        scores = u @ whole.item_table()[batch.positives].T  # [B, B]
        functional.softplus(scores - scores.diagonal()[:, None]).mean().backward()
        optimiser.step()
        assert not any(move.any() for move in term.moves)
    wanted = cast(Any, explicit.put_together())
    for name in explicit.names:
        assert explicit.projection[name].abs().max() > 1e-3
        found = cast(nn.Module, student).get_parameter(name)
        torch.testing.assert_close(found, getattr(wanted, name), rtol=1e-4, atol=1e-5)


def test_moves_have_the_gradients_of_the_projection() -> None:
    """Adam hides a wrong factor, so the gradient is looked at itself."""
    student, texts, eta = make_student("stamp"), make_texts(), 0.2
    factors = torch.randn(NUM_ITEMS, DIM, generator=torch_stream(8, "factors"))
    term = TextTerm(student, texts, eta)
    (student.item_table().square() * factors).sum().backward()
    term.set_gradients()
    projection = torch.zeros(DIM, TEXT_DIM, requires_grad=True)
    items = student.item_table().detach() + eta * texts @ projection.T
    (items.square() * factors).sum().backward()
    inputs, targets = term.moves
    torch.testing.assert_close(targets.grad, projection.grad)
    assert inputs.grad is None  # no window was encoded


def test_text_embeddings_of_another_form_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "texts.npy"

    def refused(write: Callable[[], object]) -> str:
        write()
        with pytest.raises(InputError) as caught:
            read_texts(str(file), NUM_ITEMS)
        assert str(file) in str(caught.value)
        return str(caught.value)

    assert "cannot be read" in refused(lambda: None)
    assert "cannot be read" in refused(lambda: file.write_bytes(b"not numbers"))
    assert "cannot be read" in refused(lambda: file.write_bytes(b""))
    assert "cannot be read" in refused(
        lambda: np.save(file, np.array([{}], object), allow_pickle=True)
    )
    message = refused(lambda: np.save(file, np.zeros((3, 8), np.float32)))
    assert "[3, 8]" in message
    assert f"[{NUM_ITEMS}, dimensions]" in message
    assert "shape" in refused(lambda: np.save(file, np.zeros(NUM_ITEMS, np.float32)))
    assert "float32" in refused(lambda: np.save(file, np.zeros((NUM_ITEMS, 2), np.int64)))
    spoiled = np.zeros((NUM_ITEMS, 2), np.float32)
    spoiled[3, 1] = np.nan
    assert "row 3" in refused(lambda: np.save(file, spoiled))


def test_a_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "texts.npy", make_texts().numpy())
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(read_texts("texts.npy", NUM_ITEMS), make_texts())


def test_a_backbone_without_named_tables_is_refused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(NUM_ITEMS, DIM))

    with pytest.raises(InputError, match="item_embedding"):
        TextTerm(cast(Backbone, Other()), make_texts(), 0.2)


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
