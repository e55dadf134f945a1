"""unKD: its groups, the teacher's lists, the draws, the term, and what a student learns of it."""

from __future__ import annotations

import itertools
import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alkd_ray import registry
from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge, _teacher_lists
from alkd_ray.distillation._teacher_lists import (
    TeacherLists,
    popularity_groups,
    teacher_lists,
)
from alkd_ray.distillation.unkd import GroupedPairs, UnKD, pairs_of_groups
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone, Recommender
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.training import examples
from alkd_ray.training.examples import RowBatch, sessions_of_rows
from alkd_ray.training.loop import train_rows
from alkd_ray.types import SessionSet

NUM_ITEMS, WINDOW = 40, 4
BACKBONES = ["fpmc", "stamp", "attmix"]


def world(sessions: int = 300, num_items: int = NUM_ITEMS) -> SessionSet:
    """Walks around a ring, most of them among its first items; some inputs exceed the window."""
    rng = numpy_stream(3, "unkd world")
    starts = np.minimum(rng.geometric(0.12, sessions) - 1, num_items - 1)
    lengths = rng.integers(1, WINDOW + 3, sessions)
    walks = [(s + np.arange(n + 1)) % num_items for s, n in zip(starts, lengths, strict=True)]
    return from_lists(
        np.arange(sessions),
        [walk[:-1].tolist() for walk in walks],
        [int(walk[-1]) for walk in walks],
        positional_split(sessions),
    )


def backbone(name: str = "fpmc", dim: int = 4, seed: int = 1, std: float = 0.5) -> Backbone:
    return registry.build(
        "recommenders",
        name,
        {"init_std": std},
        num_items=NUM_ITEMS,
        dim=dim,
        generator=torch_stream(seed, "initial weights"),
    )


def weights(model: Backbone) -> Tensor:
    return torch.cat([p.detach().flatten() for p in cast(nn.Module, model).parameters()])


def knowledge(teacher: Recommender) -> Knowledge:
    sessions = world()
    none = np.zeros(0, np.int64)
    return Knowledge(
        of_split(sessions, "train"), of_split(sessions, "valid"), WINDOW, none, (), teacher
    )


def training(**given: object) -> TrainingConfig:
    base = {"batch_size": 64, "learning_rate": 0.02, "max_steps": 40, "metric": "recall@5"}
    return TrainingConfig(**{**base, **given})  # type: ignore[arg-type]


def unkd(**options: object) -> UnKD:
    return registry.build("distillation", "unkd", options)


def term_for(
    kind: str = "last", pairs: int = 8, teacher: Backbone | None = None
) -> tuple[GroupedPairs, RowBatch]:
    """The term with 3 groups, and a batch of 20 windows."""
    train = of_split(world(), "train")
    rows = examples.of_sessions(train, kind, WINDOW)  # type: ignore[arg-type]
    lists = teacher_lists(
        teacher or backbone(dim=8, seed=9),
        train,
        rows,
        sessions_of_rows(train, kind),  # type: ignore[arg-type]
        popularity_groups(train, NUM_ITEMS, 3),
        3,
        50,
    )
    each = np.full(3, pairs)
    return GroupedPairs(lists, each, 3.0, numpy_stream(5, "t")), rows.take(torch.arange(20))


# Groups


def test_groups_have_equal_parts_of_the_interactions() -> None:
    # counts by item: 0: 2, 1: 4, 2: 8, 3: 1, 4: 1, 5: none; the first group is item 2 alone.
    flat = [2] * 8 + [1] * 3 + [0, 0, 3]
    train = from_lists([0, 1], [flat, []], [1, 4], ["train", "train"])
    assert popularity_groups(train, 6, 2).tolist() == [1, 1, 0, 1, 1, -1]
    assert popularity_groups(train, 6, 1).tolist() == [0, 0, 0, 0, 0, -1]
    # Of 4 groups: 8 of 16 are more than a quarter, their middle is its end; then 4, then the rest.
    assert popularity_groups(train, 6, 4).tolist() == [3, 2, 1, 3, 3, -1]


@pytest.mark.parametrize("groups", [2, 3, 4, 7])
def test_groups_are_stretches_of_the_popularity_order(groups: int) -> None:
    rng = numpy_stream(1, "popular items")
    items = rng.geometric(0.01, 20_000) - 1
    train = from_lists([0], [items[:-1].tolist()], items[-1:], ["train"])
    num_items = int(items.max()) + 5
    counts = np.bincount(items, minlength=num_items)
    found = popularity_groups(train, num_items, groups)
    assert ((found == -1) == (counts == 0)).all()
    for before, after in itertools.pairwise(range(groups)):
        assert counts[found == before].min() >= counts[found == after].max()
    parts = np.array([counts[found == group].sum() for group in range(groups)])
    assert abs(parts - counts.sum() / groups).max() <= counts.max()


def test_pairs_of_groups() -> None:
    equal = np.ones(4)
    assert pairs_of_groups(equal, 30).tolist() == [8, 8, 8, 8]  # 7.5, half to even
    assert pairs_of_groups(equal, 25).tolist() == [7, 6, 6, 6]  # 6.25: one is lacking
    assert pairs_of_groups(equal, 1).tolist() == [1, 0, 0, 0]
    assert pairs_of_groups(np.array([0.0, 1.0, 3.0]), 20).tolist() == [0, 5, 15]
    assert pairs_of_groups(np.array([0.0, 1.0, 1.0]), 1).tolist() == [0, 1, 0]


# Lists


@pytest.mark.parametrize("kind", ["last", "prefixes"])
@pytest.mark.parametrize("name", ["fpmc", "item-knn"])
def test_lists_are_the_teachers_order_of_unobserved_items(kind: str, name: str) -> None:
    train = of_split(world(), "train")
    if name == "fpmc":
        teacher = backbone(dim=8)
    else:  # it only counts: many scores are equal
        teacher = registry.build("recommenders", name, {}, num_items=NUM_ITEMS)
        teacher.fit(train)
    rows = examples.of_sessions(train, kind, WINDOW)  # type: ignore[arg-type]
    session_of = sessions_of_rows(train, kind)  # type: ignore[arg-type]
    assert len(session_of) == len(rows) == len(rows.windows)
    group_of = popularity_groups(train, NUM_ITEMS, 3)
    longest = 9
    lists = teacher_lists(teacher, train, rows, session_of, group_of, 3, longest)
    for row in range(0, len(rows), 7):
        window = rows.windows[row][rows.windows[row] >= 0].long()
        observed = {*train.items_of(session_of[row]).tolist(), int(train.targets[session_of[row]])}
        assert {*window.tolist(), int(rows.positives[row])} <= observed
        with torch.no_grad():
            scores = teacher.score(window[None], torch.ones(1, len(window), dtype=torch.bool))[0]
        for group in range(3):
            free = [i for i in np.flatnonzero(group_of == group).tolist() if i not in observed]
            length = int(lists.lengths[row, group])
            assert length == min(longest, len(free), sum(group_of == group))
            start = int(lists.starts[group])
            mine = lists.items[row, start : start + length].tolist()
            assert len(set(mine)) == length
            assert set(mine) <= set(free)
            best = torch.tensor(sorted(scores[free].tolist(), reverse=True)[:length])
            torch.testing.assert_close(scores[mine], best, rtol=1e-5, atol=1e-6)
            if name != "fpmc":  # whose scores are rounded otherwise when one by one
                assert mine == sorted(free, key=lambda i: (-float(scores[i]), i))[:length]


@pytest.mark.parametrize("count", [1, 4, 12, 15])
def test_equal_scores_are_ordered_by_item(count: int) -> None:
    """Ties within a list, at its end, and nowhere."""
    draws = numpy_stream(1, "ties")
    scores = np.stack([draws.integers(5, size=15), draws.permutation(15), np.zeros(15)] * 4)
    values, columns = _teacher_lists._best(torch.from_numpy(scores).float(), count)
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    assert columns.tolist() == wanted.tolist()
    assert values.tolist() == np.take_along_axis(scores, wanted, 1).tolist()


def test_lists_that_take_too_much_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = knowledge(backbone(dim=8))
    windows = len(examples.of_sessions(known.train, "last", WINDOW))
    in_groups = int((popularity_groups(known.train, NUM_ITEMS, 4) >= 0).sum())
    needed = 4 * windows * in_groups  # the lists are as long as their groups
    monkeypatch.setattr(_teacher_lists, "MOST_BYTES", needed)
    unkd().distill(backbone(), known, training(max_steps=1), 1)
    monkeypatch.setattr(_teacher_lists, "MOST_BYTES", needed - 1)
    with pytest.raises(
        InputError, match=rf"{needed} bytes.*kept or rank_scale.*training\.examples"
    ):
        unkd().distill(backbone(), known, training(), 1)


def test_sessions_without_input_have_no_row() -> None:
    train = from_lists([4, 5, 6], [[1, 2], [], [3]], [3, 4, 5], ["train"] * 3)
    assert sessions_of_rows(train, "last").tolist() == [0, 2]
    assert sessions_of_rows(train, "prefixes").tolist() == [0, 0, 2]


# Draws


def empty_lists() -> TeacherLists:
    return TeacherLists(torch.zeros(0, 0), np.zeros(0, np.int64), np.zeros((0, 0), np.int64))


@pytest.mark.parametrize(("length", "scale"), [(2, 20.0), (4, 1.5), (6, 20.0), (9, 2.0)])
def test_pairs_of_ranks_have_the_papers_probabilities(length: int, scale: float) -> None:
    term = GroupedPairs(empty_lists(), np.ones(1, np.int64), scale, numpy_stream(length, "ranks"))
    draws = 40_000
    better, worse = term.drawn_ranks(np.full((draws // 100, 100), length))
    assert (better < worse).all()
    assert better.min() >= 0
    assert worse.max() < length
    p = np.exp(-(np.arange(length) + 1) / scale)
    both = 2 * np.outer(p, p)[np.triu_indices(length, 1)]
    expected = draws * both / both.sum()
    counts = np.zeros((length, length))
    np.add.at(counts, (better.ravel(), worse.ravel()), 1)
    found = counts[np.triu_indices(length, 1)]
    chi_square = (((found - expected) ** 2) / expected).sum()
    freedom = len(expected) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)


def test_the_ranks_left_out_are_hardly_ever_drawn() -> None:
    method = unkd()
    assert method.longest == 277
    p = np.exp(-(np.arange(1000) + 1) / 20)
    assert p[method.longest :].sum() / p.sum() <= 1e-6
    assert unkd(kept=100).longest == 100
    assert unkd(rank_scale=1.0).longest == 14


def test_each_pair_is_of_one_group_and_in_the_teachers_order() -> None:
    term, batch = term_for()
    pairs, is_pair = term.drawn(batch.window_of)
    assert pairs.shape == (2, 20, 24)
    for row, column in itertools.product(range(20), range(24)):
        group = column // 8
        window = int(batch.window_of[row])
        assert bool(is_pair[row, column]) == (term.lists.lengths[window, group] >= 2)
        if not is_pair[row, column]:
            continue
        start, length = int(term.lists.starts[group]), int(term.lists.lengths[window, group])
        listed = term.lists.items[window, start : start + length].tolist()
        better, worse = pairs[:, row, column].tolist()
        assert listed.index(better) < listed.index(worse)


def test_lists_too_short_for_a_pair_are_left_out() -> None:
    items = torch.tensor([[3, 7, 0], [5, 0, 2]], dtype=torch.int32)
    lists = TeacherLists(items, np.array([0, 2]), np.array([[2, 0], [1, 1]]))
    term = GroupedPairs(lists, np.array([2, 1]), 20.0, numpy_stream(1, "t"))
    pairs, is_pair = term.drawn(torch.tensor([1, 0]))
    assert is_pair.tolist() == [[False, False, False], [True, True, False]]
    assert pairs[:, 1, :2].tolist() == [[3, 3], [7, 7]]
    model = backbone()
    window = torch.tensor([[0, 1, 2, 3]] * 2)
    batch = RowBatch(window, window >= 0, torch.tensor([4, 4]), torch.tensor([1, 0]))
    scores = model.score(window[:1], window[:1] >= 0)[0]
    expected = torch.log1p(torch.exp(scores[7] - scores[3]))  # not divided by pairs there are not
    torch.testing.assert_close(term(model, batch), expected)
    alone = RowBatch(window[:1], window[:1] >= 0, batch.positives[:1], torch.tensor([1]))
    assert float(term(model, alone).detach()) == 0.0


# The term


@pytest.mark.parametrize("kind", ["last", "prefixes"])
@pytest.mark.parametrize("name", BACKBONES)
def test_value_and_gradients_are_those_of_a_loop_over_pairs(name: str, kind: str) -> None:
    model = cast(nn.Module, backbone(name)).double()
    student = cast(Backbone, model)
    term, batch = term_for(kind)
    found = term(student, batch)
    found.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    again, _ = term_for(kind)  # the same draws
    (better, worse), is_pair = again.drawn(batch.window_of)
    assert not is_pair.all()
    model.zero_grad()
    scores = student.score(batch.items, batch.mask)
    losses = [
        -torch.log(torch.sigmoid(scores[row, better[row, n]] - scores[row, worse[row, n]]))
        for row, n in is_pair.nonzero().tolist()
    ]
    expected = sum(losses, torch.tensor(0.0)) / len(losses)
    expected.backward()
    torch.testing.assert_close(found, expected)
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients, wanted)


# The method


def test_a_weight_of_0_is_plain_training_to_the_bit() -> None:
    taught, plain = backbone(), backbone()
    known = knowledge(backbone(dim=8, seed=9))
    result = unkd(weight=0.0).distill(taught, known, training(), seed=2)
    rows = examples.of_sessions(known.train, "last", WINDOW)
    expected = train_rows(
        plain, rows, known.valid, training(), WINDOW, 2, purpose="distillation", keep_start=True
    )
    assert torch.equal(weights(taught), weights(plain))
    assert result.best_metric == expected.best_metric
    unkd(weight=0.5).distill(taught := backbone(), known, training(), seed=2)
    assert not torch.equal(weights(taught), weights(plain))


@pytest.mark.parametrize("kind", ["last", "prefixes"])
def test_a_seed_gives_the_same_bits(kind: str) -> None:
    runs = []
    for seed in (1, 1, 2):
        student = backbone()
        unkd().distill(student, knowledge(backbone(dim=8)), training(examples=kind), seed)
        runs.append(weights(student))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def trained_teacher() -> Backbone:
    teacher, known = backbone(dim=8, seed=9), knowledge(backbone())
    rows = examples.of_sessions(known.train, "last", WINDOW)
    train_rows(teacher, rows, known.valid, training(), WINDOW, 1, purpose="pretraining")
    return teacher


@pytest.mark.parametrize("name", BACKBONES)
def test_the_student_learns_the_teachers_order(name: str) -> None:
    """The term falls, and further than in training without it."""
    teacher, terms = trained_teacher(), {}
    for weight in (None, 0.0, 5.0):
        student = backbone(name)
        if weight is not None:
            method = unkd(weight=weight, groups=3, rank_scale=3.0)
            result = method.distill(student, knowledge(teacher), training(), 1)
            assert result.best_step > 0
        term, batch = term_for(pairs=50, teacher=teacher)
        terms[weight] = float(term(student, batch).detach())
    assert terms[5.0] < 0.8 * min(terms[None], terms[0.0])


def test_bad_settings_are_refused() -> None:
    for options in ({"shares": [1.0, 2.0]}, {"shares": [0.0] * 4}, {"shares": [1, 1, 1, -1]}):
        with pytest.raises(InputError, match="shares must"):
            registry.options("distillation", "unkd", options)
    known = knowledge(backbone(dim=8))
    with pytest.raises(InputError, match="soft_labels must be empty"):
        unkd().distill(backbone(), known, training(loss="softmax", soft_labels=["item-knn"]), 1)


def test_a_group_without_pairs_leaves_its_part_to_the_others() -> None:
    """One item has nearly all interactions: it is the middle group, and the first one is empty."""
    walks = [[0] * 30 + [i] for i in range(1, 12)]
    train = from_lists(range(11), walks, list(range(12, 23)), ["train"] * 11)
    assert (popularity_groups(train, NUM_ITEMS, 3) == 0).sum() == 0
    known = knowledge(backbone(dim=8))
    known = Knowledge(train, known.valid, WINDOW, known.ranked_ids, (), known.teacher)
    result = unkd(groups=3, shares=[1.0, 1.0, 1.0]).distill(backbone(), known, training(), 1)
    assert result.steps == 40
    with pytest.raises(InputError, match="with a share has two items"):
        unkd(groups=3, shares=[1.0, 1.0, 0.0]).distill(backbone(), known, training(), 1)
