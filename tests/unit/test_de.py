"""DE: the experts' batched products are the published networks, and the gate the published one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alkd_ray import registry
from alkd_ray.distillation._entities import Embedded, Negatives
from alkd_ray.distillation._experts import NEGLIGIBLE, Experts, Temperature
from alkd_ray.distillation._joint import FrozenTeacher
from alkd_ray.distillation.de import DE, ExpertTerm
from alkd_ray.errors import InputError
from alkd_ray.seeds import numpy_stream, torch_stream
from tests import teacher_world
from tests.teacher_world import DIM, NUM_ITEMS, TEACHER_DIM, make, settings

COUNT, STUDENT, TEACHER = 6, 3, 5


def drawn(rows: int, columns: int, name: str) -> Tensor:
    return torch.randn(rows, columns, generator=torch_stream(1, name), dtype=torch.float64)


def made(count: int = COUNT, sizes: tuple[int, int] = (STUDENT, TEACHER), seed: int = 1) -> Experts:
    return Experts(count, sizes, seed, ("test",), "cpu").double()


def naive_outputs(experts: Experts, student: Tensor) -> Tensor:
    """``[n, K, d_t]``, one network after the other."""
    outputs = []
    for first, second, bias in zip(experts.first, experts.second, experts.second_bias, strict=True):
        hidden = functional.relu(student @ first[:-1] + first[-1])
        outputs.append(hidden @ second + bias)
    return torch.stack(outputs, 1)


def naive_shares(experts: Experts, teacher: Tensor, temperature: float, seed: int = 1) -> Tensor:
    """As published: the logarithm of a softmax, a Gumbel draw, a softmax at the temperature."""
    likely = torch.log_softmax(teacher @ experts.gate + experts.gate_bias, 1)
    exponential = numpy_stream(seed, "test", "gumbel").standard_exponential(likely.shape)
    gumbel = -np.log(exponential).astype(np.float32)
    return torch.softmax((likely + torch.from_numpy(gumbel)) / temperature, 1)


def test_the_temperature_falls_by_one_factor_and_stays() -> None:
    temperature = Temperature(1.0, 1e-10, 10)
    found = [temperature.next() for _ in range(13)]
    assert found == pytest.approx([10.0**-step for step in range(11)] + [1e-10] * 2)


def test_an_expert_is_as_wide_as_published() -> None:
    experts = Experts(30, (10, 100), 1, ("test",), "cpu")
    assert experts.first.shape == (30, 11, 55)
    assert experts.second.shape == (30, 55, 100)
    for parameter, inputs in [(experts.first, 10), (experts.second, 55), (experts.gate, 100)]:
        bound = inputs**-0.5
        assert 0.99 * bound < float(parameter.detach().abs().max()) <= bound


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05, 0.003, 1e-10])
def test_the_regression_is_that_of_networks_one_by_one(temperature: float) -> None:
    """From shares for all experts, through few, to one: value and all gradients."""
    rows = 40
    student, teacher = drawn(rows, STUDENT, "s").requires_grad_(), drawn(rows, TEACHER, "t")
    experts = made()
    inputs = [student, *experts.parameters()]
    found = experts.regression(Embedded(student, teacher), temperature)
    shares = naive_shares(experts, teacher, temperature)
    wanted = ((teacher - (shares[..., None] * naive_outputs(experts, student)).sum(1)) ** 2).sum()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    mine = torch.autograd.grad(found, inputs)
    for one, other in zip(mine, torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_both_ways_of_working_out_are_used_above() -> None:
    """The dense way while half the rows of an expert count, and the sparse one below."""
    teacher = drawn(40, TEACHER, "t")
    busiest = [int((made().shares(teacher, t) > 0).sum(0).max()) for t in (1.0, 0.3, 0.05, 0.003)]
    assert busiest[0] == 40
    assert busiest[1] > 20 > busiest[2] > busiest[3] > 1


def test_two_threads_give_the_same_bits_twice() -> None:
    """A row belongs to several experts, whose gradients must not be added in any order."""
    generator = torch_stream(1, "test", "two threads")
    rows, teacher = (torch.randn(2000, size, generator=generator) for size in (10, 100))
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for _ in range(3):
            student = rows.clone().requires_grad_()
            experts = Experts(30, (10, 100), 1, ("test",), "cpu")
            experts.regression(Embedded(student, teacher), 0.1).backward()
            assert student.grad is not None
            found.append(student.grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_negligible_shares_are_left_out_and_no_others() -> None:
    teacher, temperature = drawn(200, TEACHER, "t"), 0.1
    found = made().shares(teacher, temperature)
    wanted = naive_shares(made(), teacher, temperature)
    torch.testing.assert_close(found, wanted, rtol=0, atol=COUNT * NEGLIGIBLE)
    assert ((found == 0) == (wanted / wanted.amax(1, keepdim=True) < NEGLIGIBLE)).all()
    assert (found == 0).any()


def test_one_is_chosen_as_often_as_the_gate_says() -> None:
    """Gumbel's theorem: the largest noisy logarithm is one's with that one's probability."""
    rows = 20_000
    teacher = drawn(1, TEACHER, "t").expand(rows, TEACHER)
    experts = made()
    with torch.no_grad():
        chosen = experts.shares(teacher, 1e-10)
        likely = torch.softmax(teacher[0] @ experts.gate + experts.gate_bias, 0)
    assert set(chosen.unique().tolist()) == {0.0, 1.0}
    error = (likely * (1 - likely) / rows).sqrt()
    assert ((chosen.mean(0) - likely).abs() < 4.5 * error).all()
    assert int(likely.argmax()) == int(experts.groups(teacher[:1]))


def test_one_expert_is_plain_regression() -> None:
    student, teacher, experts = drawn(8, STUDENT, "s"), drawn(8, TEACHER, "t"), made(count=1)
    wanted = (teacher - naive_outputs(experts, student)[:, 0]).square().sum()
    found = experts.regression(Embedded(student, teacher), 0.5)
    torch.testing.assert_close(found, wanted)


def term_of(
    teacher: FrozenTeacher, training: object, temperature: Temperature, seed: int = 3
) -> ExpertTerm:
    sizes = (DIM, TEACHER_DIM)
    return ExpertTerm(
        teacher,
        Experts(COUNT, sizes, seed, ("sessions",), "cpu"),
        Experts(COUNT, sizes, seed, ("items",), "cpu"),
        temperature,
        Negatives(training, NUM_ITEMS, seed, "de"),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("loss", ["pairwise", "sampled_bce", "softmax"])
def test_a_batch_counts_each_session_and_item_once(loss: str) -> None:
    training = settings(loss=loss)
    rows, teacher = teacher_world.rows_and_teacher(training)
    batch, student = teacher_world.batch_with_repeats(rows), make()
    term, fresh = (term_of(teacher, training, Temperature(0.5, 0.1, 10)) for _ in range(2))
    found = term(student, batch)

    def of_items(items: list[int]) -> Tensor:
        listed = sorted(set(items))
        embedded = Embedded(student.item_table()[listed], teacher.items[listed])
        return fresh.item_experts.regression(embedded, 0.5)

    sessions = Embedded(student.encode(batch.items, batch.mask), teacher.windows[batch.window_of])
    of_sessions = fresh.session_experts.regression(sessions, 0.5)
    wanted = of_items(batch.positives.tolist())
    if loss != "pairwise":
        draws = numpy_stream(3, "distillation", "de", "negatives")
        negatives = draws.integers(NUM_ITEMS, size=len(batch)).tolist()
        wanted = (wanted + of_items(negatives)) / 2
    torch.testing.assert_close(found, (of_sessions + wanted) / len(batch))


def test_each_call_is_a_step_of_the_temperature() -> None:
    rows, teacher = teacher_world.rows_and_teacher(settings())
    batch, student = teacher_world.batch_with_repeats(rows), make()
    term = term_of(teacher, settings(), Temperature(1.0, 0.25, 2))
    asked = [term.temperature.next()]
    term(student, batch)
    asked.append(term.temperature.next())
    assert asked == [1.0, 0.25]


def test_the_temperature_is_low_in_time_for_a_short_training() -> None:
    method = DE(**options(annealing_steps=1000))
    seen: list[Temperature] = []
    original = Temperature.next

    def spied(self: Temperature) -> float:
        seen.append(self)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Temperature, "next", spied)
        method.distill(make(), teacher_world.knowledge_of(), settings(max_steps=8), 1)
    assert len(seen) == 8
    assert seen[0].steps == 8


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
    teacher_world.check_without_weight("de", name, settings(**given))


def test_a_seed_gives_the_same_bits() -> None:
    teacher_world.check_seeds("de")


def test_the_student_comes_to_tell_what_the_teacher_knows() -> None:
    """D falls, below what the best constant would leave, though noise chooses the expert."""
    rows, teacher = teacher_world.rows_and_teacher(settings())
    student = make()
    term = term_of(teacher, settings(), Temperature(1.0, 1e-3, 200))

    def value() -> float:
        items = Embedded(student.item_table(), teacher.items)
        return float(term.item_experts.regression(items, 1e-10).detach())

    before, after = teacher_world.trained_with(term, student, rows, 0.1, 300, value)
    constant = float((teacher.items - teacher.items.mean(0)).square().sum())
    assert after < 0.8 * min(before, constant)


@pytest.mark.parametrize("method", ["de", "htd"])
def test_a_temperature_that_would_rise_is_refused(method: str) -> None:
    registry.options("distillation", method, {"start_temperature": 0.5, "end_temperature": 0.5})
    with pytest.raises(InputError, match="end_temperature must not be above start_temperature"):
        registry.options("distillation", method, {"start_temperature": 0.5, "end_temperature": 0.6})


def options(**given: Any) -> dict[str, Any]:
    return DE.Config(**given).model_dump()
