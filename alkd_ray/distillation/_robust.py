"""The distributionally robust part of DLLM2Rec's losses, and its gradients in closed form.

DROS (Yang, He, Zhang, Wu, Xin, Chen, Wang: A Generic Learning Framework for Sequential
Recommendation with Distribution Shifts, SIGIR 2023), in the form of DLLM2Rec's published code
(istarryn/DLLM2Rec): every score is asked to be 0 but the wanted item's, which is asked to be 1,
and the logarithm of the sum of exponentials lets the worst square count most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alkd_ray.types import IntArray

PROPENSITY_POWER = 0.05
"""Of the published code: a popular item weighs a little more than a rare one."""

_LEAST = -1e30
"""Stands for the logarithm of 0; finite, so that a row without further items is no NaN."""

_FAR = -40.0
_TINY = 1e-15
"""Least logarithm of a share and least factor of a row that are told from others. Both are far
below float32's precision; their products must stay above its smallest normal number, since a CPU
multiplies smaller ones 10 times slower, and scores of a cosine times 12 would have many."""

_CPU_BLOCK_ELEMENTS = 1 << 18
"""Scores held at a time on CPU (1 MiB, and their squares): they stay in a core's cache."""

_BLOCK_ELEMENTS = 1 << 26
"""Scores held at a time elsewhere (256 MiB): a GPU wants few large kernels."""


class RobustGradients(NamedTuple):
    """What :func:`robust_gradients` finds.

    Attributes:
        by_encoded: ``[B, d]`` float32.
        by_table: ``[N, d]`` float32.
        value: the loss, or None.
    """

    by_encoded: Tensor
    by_table: Tensor
    value: float | None


def block_rows(table: Tensor) -> int:
    """Rows whose scores for all items of ``table`` (``[N, d]``) are held at a time."""
    elements = _CPU_BLOCK_ELEMENTS if table.device.type == "cpu" else _BLOCK_ELEMENTS
    return max(1, elements // len(table))


def propensities(counts: IntArray) -> Tensor:
    """``[N]`` float32, ``((n_i + 1) / sum_j (n_j + 1)) ^ .05``.

    Args:
        counts: ``[N]`` n, how often each item is a positive.
    """
    shares = (counts + 1) / (counts + 1).sum()
    return torch.from_numpy((shares**PROPENSITY_POWER).astype(np.float32))


def robust_gradients(
    encoded: Tensor,
    table: Tensor,
    roots: Tensor,
    items: Tensor,
    weights: Tensor,
    want_value: bool = False,
) -> RobustGradients:
    """Gradients of ``sum_b sum_k w_bk R(b, items_bk)``.

    With ``y_j = u_b . t_j``, p the propensities and beta the robustness radius,
    ``R(b, i) = log(exp(p_i (y_i - 1)^2 / beta) + sum_{j != i} exp(p_j y_j^2 / beta))``.
    The items of a row that have a weight are left out of the large sum and added back one by one,
    so that nothing is ever subtracted from it; it is worked out and dropped in blocks of rows.

    Args:
        encoded: ``[B, d]`` windows, u.
        table: ``[N, d]`` items, t.
        roots: ``[N]`` sqrt(p / beta).
        items: ``[B, K]`` int64; an item may stand in a row more than once.
        weights: ``[B, K]`` w, not negative.
        want_value: whether to work out the loss itself.
    """
    same = items[:, :, None] == items[:, None, :]  # [B, K, K]
    repeated = same.tril(-1).any(2)  # [B, K], an earlier column has the item
    merged = (same * weights[:, None, :]).sum(2).masked_fill(repeated, 0.0)  # [B, K]
    by_encoded = torch.empty_like(encoded)
    scaled = (table * roots[:, None]).T.contiguous()  # [d, N]
    by_scaled = torch.zeros_like(scaled)
    value = 0.0
    block = block_rows(table)
    for start in range(0, len(encoded), block):
        rows = slice(start, start + block)
        u, listed = encoded[rows], items[rows]
        scores = u @ scaled  # [b, N], y sqrt(p / beta)
        own, wanted = scores.gather(1, listed), roots[listed]  # [b, K] both
        others = scores.square().scatter_(1, listed, _LEAST)
        largest = others.amax(1, keepdim=True)  # [b, 1]
        others = others.sub_(largest).clamp_min_(_FAR).exp_()
        total = others.sum(1, keepdim=True)  # [b, 1]
        rest = largest + total.log()
        by_rest, by_own, losses = _of_listed(rest, own, wanted, repeated[rows], merged[rows])
        factor = 2.0 * by_rest / total  # [b, 1]
        factor.masked_fill_(factor < _TINY, 0.0)
        gradient = scores.mul_(others).mul_(factor)
        gradient.scatter_add_(1, listed, by_own)
        # Products with few columns are up to 10 times slower on CPU than their transposes.
        by_encoded[rows] = (scaled @ gradient.T).T
        by_scaled.addmm_(u.T, gradient)
        if want_value:
            value += float(losses)
    return RobustGradients(by_encoded, by_scaled.T * roots[:, None], value if want_value else None)


def _of_listed(
    rest: Tensor, own: Tensor, wanted: Tensor, repeated: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients from what is left of a row and its own K items.

    Args:
        rest: ``[b, 1]`` logarithm of the sum over all other items.
        own: ``[b, K]`` scaled scores of the row's items.
        wanted: ``[b, K]`` sqrt(p / beta), their scaled scores if they were 1.
        repeated: ``[b, K]`` bool, columns that count as nothing.
        weights: ``[b, K]``, 0 where ``repeated``.

    Returns:
        ``[b, 1]`` gradient of ``rest``, ``[b, K]`` gradient of ``own``, and the sum of losses.
    """
    as_other = own.square().masked_fill(repeated, _LEAST)  # [b, K]
    as_wanted = (own - wanted).square()  # [b, K]
    pairs = as_other[:, None, :].repeat(1, own.shape[1], 1)  # [b, K wanted, K]
    pairs.diagonal(dim1=1, dim2=2).copy_(as_wanted)
    logits = torch.cat([pairs, rest[:, None, :].expand(-1, own.shape[1], -1)], 2)  # [b, K, K + 1]
    losses = logits.logsumexp(2, keepdim=True)  # [b, K, 1]
    shares = (logits - losses).exp_() * weights[:, :, None]
    by_wanted = shares[:, :, :-1].diagonal(dim1=1, dim2=2)  # [b, K]
    by_other = shares[:, :, :-1].sum(1) - by_wanted  # [b, K]
    by_own = 2.0 * (own * by_other + (own - wanted) * by_wanted)
    return shares[:, :, -1].sum(1, keepdim=True), by_own, (losses[:, :, 0] * weights).sum()
