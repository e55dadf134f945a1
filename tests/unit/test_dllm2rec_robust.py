"""DLLM2Rec's robust loss: by hand, and its gradients against autograd on the loss as written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alkd_ray.distillation import _robust
from alkd_ray.distillation._robust import propensities, robust_gradients
from alkd_ray.seeds import torch_stream
from tests.ranked_world import DIM, robust_as_written


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
