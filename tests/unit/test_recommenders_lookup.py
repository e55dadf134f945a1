"""Sums by row: those of a loop, differentiable, and of the same bits at any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from alkd_ray.recommenders._lookup import added_up
from alkd_ray.seeds import torch_stream


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def parts_of(rows: int, count: int, columns: int) -> tuple[Tensor, Tensor]:
    draws = torch_stream(1, "parts")
    row_of = torch.randint(count, (rows,), generator=draws)
    return row_of, torch.randn(rows, columns, generator=draws)


def test_sums_are_those_of_a_loop_and_so_are_their_gradients() -> None:
    rows, parts = parts_of(24, 5, 3)
    parts = parts.double().requires_grad_()
    wanted = torch.zeros(5, 3, dtype=torch.float64)
    for row, part in zip(rows.tolist(), parts, strict=True):
        wanted = wanted + torch.eye(5, dtype=part.dtype)[row, :, None] * part
    found = added_up(5, rows.view(4, 6), parts.view(4, 6, 3))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    factors = torch.randn(5, 3, generator=torch_stream(2, "factors"), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * factors).sum(), parts)
    assert torch.equal(gradient, factors[rows])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [40, 3000])
def test_two_threads_give_the_same_bits_each_time(count: int) -> None:
    rows, parts = parts_of(32_768, count, 10)
    first = added_up(count, rows, parts)
    for _ in range(5):
        assert torch.equal(added_up(count, rows, parts), first)
    torch.set_num_threads(1)
    assert torch.equal(added_up(count, rows, parts), first)
