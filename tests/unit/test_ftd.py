"""FTD: the closed form is the published sum over pairs, over each session and item once."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray import registry
from alkd_ray.distillation._entities import Embedded, Negatives, stacked
from alkd_ray.distillation._joint import on_device
from alkd_ray.distillation.ftd import FTD, FullTopology, topology_gap
from alkd_ray.errors import InputError
from alkd_ray.seeds import numpy_stream, torch_stream
from tests import teacher_world
from tests.teacher_world import NUM_ITEMS, make, settings


def drawn(rows: int, columns: int, name: str) -> Tensor:
    return torch.randn(rows, columns, generator=torch_stream(1, name), dtype=torch.float64)


def naive_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """As the paper writes it, pair by pair."""
    total = torch.zeros((), dtype=student.dtype)
    for i in range(len(student)):
        for j in range(len(student)):
            wanted = functional.cosine_similarity(teacher[i], teacher[j], dim=0)
            found = functional.cosine_similarity(student[i], student[j], dim=0)
            total = total + (wanted - found) ** 2
    return total


def test_two_pairs_by_hand() -> None:
    """The student's two are at right angles, the teacher's at 45 degrees: twice (1 / sqrt 2)^2."""
    embedded = Embedded(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 0, 0], [1, 1, 0]]))
    assert float(topology_gap(embedded)) == pytest.approx(1.0, abs=1e-6)


def test_closed_form_is_the_sum_over_pairs_and_so_is_its_gradient() -> None:
    student, teacher = drawn(17, 4, "s").requires_grad_(), drawn(17, 9, "t")
    found, wanted = topology_gap(Embedded(student, teacher)), naive_gap(student, teacher)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    (mine,) = torch.autograd.grad(found, student)
    (theirs,) = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_a_student_that_has_turned_and_stretched_the_teacher_is_at_rest() -> None:
    teacher = drawn(12, 5, "t")
    turned = teacher @ torch.linalg.qr(drawn(5, 5, "turn"))[0]
    lengths = drawn(12, 1, "lengths").abs() + 0.1
    student = (turned * lengths).requires_grad_()
    gap = topology_gap(Embedded(student, teacher))
    assert float(gap.detach()) == pytest.approx(0.0, abs=1e-9)
    (gradient,) = torch.autograd.grad(gap, student)
    assert float(gradient.abs().max()) < 1e-9


@pytest.mark.parametrize("loss", ["pairwise", "sampled_bce", "softmax"])
def test_a_batch_counts_each_session_and_item_once(loss: str) -> None:
    training = settings(loss=loss)
    rows, teacher = teacher_world.rows_and_teacher(training)
    batch, student = teacher_world.batch_with_repeats(rows), make()
    term = FullTopology(teacher, Negatives(training, NUM_ITEMS, 3, "ftd"))
    found = term(student, batch)
    items = set(batch.positives.tolist())
    if loss != "pairwise":
        draws = numpy_stream(3, "distillation", "ftd", "negatives")
        items |= set(draws.integers(NUM_ITEMS, size=len(batch)).tolist())
    listed = sorted(items)
    both = stacked(
        Embedded(student.encode(batch.items, batch.mask), teacher.windows[batch.window_of]),
        Embedded(student.item_table()[listed], teacher.items[listed]),
    )
    wanted = naive_gap(both.student, both.teacher) / len(batch)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    found.backward()
    mine = teacher_world.gradients(student)
    wanted.backward()
    for one, other in zip(mine, teacher_world.gradients(student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


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
    teacher_world.check_without_weight("ftd", name, settings(**given))


def test_a_seed_gives_the_same_bits() -> None:
    teacher_world.check_seeds("ftd", weight=0.1)


def test_the_student_comes_to_have_the_teachers_topology() -> None:
    rows, teacher = teacher_world.rows_and_teacher(settings())
    student = make()
    everything = rows.take(torch.arange(len(rows)))
    term = FullTopology(teacher, Negatives(settings(), NUM_ITEMS, 1, "ftd"))
    before, after = teacher_world.trained_with(
        term, student, rows, 1.0, 150, lambda: float(term(student, everything).detach())
    )
    assert after < 0.5 * before


@pytest.mark.parametrize("training", [True, False])
def test_a_teacher_is_as_it_was_also_after_an_error(training: bool) -> None:
    teacher = make()
    module = cast(nn.Module, teacher).train(training)

    def fails() -> None:
        assert not module.training
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), on_device(teacher, torch.device("cpu")):
        fails()
    assert module.training == training


def test_a_teacher_without_embeddings_is_refused() -> None:
    plain = registry.build("recommenders", "popularity", {}, num_items=NUM_ITEMS)
    with pytest.raises(InputError, match="ftd needs a teacher with embeddings"):
        FTD(1e-3).distill(make(), teacher_world.knowledge_of(plain), settings(), 1)
