"""HTD: groups, pairs within them and prototypes are the published sums, and so the gradients."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alkd_ray.distillation._entities import Embedded, Negatives, stacked
from alkd_ray.distillation._experts import Experts, Temperature
from alkd_ray.distillation._joint import FrozenTeacher
from alkd_ray.distillation.ftd import topology_gap
from alkd_ray.distillation.htd import HierarchicalTopology, Variant, pair_gap, prototype_gap
from alkd_ray.seeds import numpy_stream, torch_stream
from tests import teacher_world
from tests.teacher_world import DIM, NUM_ITEMS, TEACHER_DIM, make, settings

GROUPS, ROWS = 4, 15
VARIANTS = get_args(Variant)


def drawn(rows: int, columns: int, name: str) -> Tensor:
    return torch.randn(rows, columns, generator=torch_stream(1, name), dtype=torch.float64)


def example() -> tuple[Embedded, Tensor]:
    groups = torch.from_numpy(numpy_stream(1, "groups").integers(GROUPS - 1, size=ROWS))
    return Embedded(drawn(ROWS, 3, "s").requires_grad_(), drawn(ROWS, 6, "t")), groups


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return functional.cosine_similarity(one, other, dim=0)


def naive_pairs(embedded: Embedded, groups: Tensor) -> Tensor:
    total = torch.zeros((), dtype=embedded.student.dtype)
    for i in range(len(groups)):
        for j in range(len(groups)):
            wanted = cosine(embedded.teacher[i], embedded.teacher[j])
            if groups[i] == groups[j] and wanted > 0:
                found = cosine(embedded.student[i], embedded.student[j])
                total = total + (found - wanted) ** 2
    return total


def naive_prototypes(embedded: Embedded, groups: Tensor, variant: str) -> Tensor:
    total = torch.zeros((), dtype=embedded.student.dtype)
    present = groups.unique().tolist()

    def mean_of(embeddings: Tensor, group: int) -> Tensor:
        return embeddings[groups == group].mean(0)

    for group in present:
        of_teacher = mean_of(embedded.teacher, group)
        if variant == "first":
            of_student = mean_of(embedded.student, group)
            for other in present:
                found = cosine(of_student, mean_of(embedded.student, other))
                wanted = cosine(of_teacher, mean_of(embedded.teacher, other))
                total = total + (found - wanted) ** 2
        else:
            of_student = mean_of(embedded.student, group).detach()
            for student, teacher in zip(embedded.student, embedded.teacher, strict=True):
                gap = cosine(of_student, student) - cosine(of_teacher, teacher)
                total = total + gap**2
    return total


def assert_same(found: Tensor, wanted: Tensor, student: Tensor) -> None:
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    (mine,) = torch.autograd.grad(found, student)
    (theirs,) = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def test_three_pairs_by_hand() -> None:
    """One pair counts: of group 0, at 60 degrees for the teacher and at 90 for the student."""
    half = math.sqrt(3) / 2
    teacher = torch.tensor([[1.0, 0], [0.5, half], [-1, 0], [1, 0]])
    student = torch.tensor([[1.0, 0], [0, 3], [1, 0], [0, 1]])
    found = pair_gap(Embedded(student, teacher), torch.tensor([0, 0, 0, 1]))
    assert float(found) == pytest.approx(2 * 0.5**2, abs=1e-6)


def test_pairs_are_those_of_one_group_with_a_positive_cosine() -> None:
    embedded, groups = example()
    assert_same(pair_gap(embedded, groups), naive_pairs(embedded, groups), embedded.student)


def test_gradient_of_pairs_is_the_finite_difference() -> None:
    embedded, groups = example()

    def of_student(student: Tensor) -> Tensor:
        return 3 * pair_gap(Embedded(student, embedded.teacher), groups)

    assert torch.autograd.gradcheck(of_student, (embedded.student,))


def test_one_group_of_positive_cosines_is_the_full_topology() -> None:
    embedded, _ = example()
    positive = Embedded(embedded.student, embedded.teacher.abs())
    found = pair_gap(positive, torch.zeros(ROWS, dtype=torch.int64))
    assert_same(found, topology_gap(positive), embedded.student)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prototypes_are_means_of_groups(variant: Variant) -> None:
    """One of the groups has no member: it has no part in the sums."""
    embedded, groups = example()
    assert len(groups.unique()) == GROUPS - 1
    found = prototype_gap(embedded, groups, GROUPS, variant)
    assert_same(found, naive_prototypes(embedded, groups, variant), embedded.student)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_student_that_has_turned_the_teacher_is_at_rest(variant: Variant) -> None:
    """Not stretched: a group's mean would move."""
    _, groups = example()
    teacher = drawn(ROWS, 6, "t")
    student = (teacher @ torch.linalg.qr(drawn(6, 6, "turn"))[0]).requires_grad_()
    embedded = Embedded(student, teacher)
    gap = pair_gap(embedded, groups) + prototype_gap(embedded, groups, GROUPS, variant)
    assert float(gap.detach()) == pytest.approx(0.0, abs=1e-12)
    (gradient,) = torch.autograd.grad(gap, student)
    assert float(gradient.abs().max()) < 1e-9


def term_of(
    teacher: FrozenTeacher,
    alpha: float = 0.5,
    variant: Variant = "second",
    loss: str = "pairwise",
    last: float = 0.1,
) -> HierarchicalTopology:
    sizes = (DIM, TEACHER_DIM)
    return HierarchicalTopology(
        teacher,
        Experts(GROUPS, sizes, 3, ("sessions",), "cpu"),
        Experts(GROUPS, sizes, 3, ("items",), "cpu"),
        Temperature(0.5, last, 200),
        Negatives(settings(loss=loss), NUM_ITEMS, 3, "htd"),
        alpha,
        variant,
    )


@pytest.mark.parametrize("loss", ["pairwise", "softmax"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_batch_counts_each_session_and_item_once(
    alpha: float, variant: Variant, loss: str
) -> None:
    """alpha weighs the topology against the assignment, whose groups do not mix kinds."""
    rows, teacher = teacher_world.rows_and_teacher(settings())
    batch, student = teacher_world.batch_with_repeats(rows), make()
    term, fresh = (term_of(teacher, alpha, variant, loss) for _ in range(2))
    found = term(student, batch)
    sessions = Embedded(student.encode(batch.items, batch.mask), teacher.windows[batch.window_of])
    listed = set(batch.positives.tolist())
    if loss != "pairwise":
        draws = numpy_stream(3, "distillation", "htd", "negatives")
        listed |= set(draws.integers(NUM_ITEMS, size=len(batch)).tolist())
    items = Embedded(student.item_table()[sorted(listed)], teacher.items[sorted(listed)])
    assignment = fresh.session_networks.regression(sessions, 0.5)
    assignment = assignment + fresh.item_networks.regression(items, 0.5)
    by_session = torch.softmax(
        sessions.teacher @ fresh.session_networks.gate + fresh.session_networks.gate_bias, 1
    ).argmax(1)
    by_item = torch.softmax(
        items.teacher @ fresh.item_networks.gate + fresh.item_networks.gate_bias, 1
    ).argmax(1)
    groups = torch.cat([by_session, by_item + GROUPS])
    both = stacked(sessions, items)
    topology = naive_pairs(both, groups) + naive_prototypes(both, groups, variant)
    wanted = (alpha * topology + (1 - alpha) * assignment) / len(batch)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_topology_teaches_no_group() -> None:
    """Groups change by the assignment alone."""
    rows, teacher = teacher_world.rows_and_teacher(settings())
    term, student = term_of(teacher, alpha=1.0), make()
    term(student, rows.take(torch.arange(50))).backward()
    assert all(not gradient.any() for gradient in teacher_world.gradients(term))
    assert all(gradient.any() for gradient in teacher_world.gradients(student))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fpmc", {}),
        ("stamp", {"examples": "prefixes"}),
        ("attmix", {"loss": "softmax"}),
        ("fpmc", {"loss": "sampled_bce", "weight_decay": 0.01}),
    ],
)
def test_without_weight_it_is_plain_training(name: str, given: dict[str, object]) -> None:
    teacher_world.check_without_weight("htd", name, settings(**given))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_gives_the_same_bits(variant: Variant) -> None:
    teacher_world.check_seeds("htd", variant=variant, weight=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_student_comes_to_have_the_teachers_topology(variant: Variant) -> None:
    rows, teacher = teacher_world.rows_and_teacher(settings())
    student = make()
    term = term_of(teacher, alpha=1.0, variant=variant)
    groups = term.item_networks.groups(teacher.items)

    def value() -> float:
        with torch.no_grad():
            items = Embedded(student.item_table(), teacher.items)
            gap = pair_gap(items, groups) + prototype_gap(items, groups, GROUPS, variant)
            return float(gap)

    before, after = teacher_world.trained_with(term, student, rows, 1.0, 150, value)
    assert after < 0.4 * before
