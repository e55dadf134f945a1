"""By how much windows score one item above another, for many pairs a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from alkd_ray.recommenders._lookup import added_up


def score_gaps(encoded: Tensor, table: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """``[B, n]``, ``encoded_b . (table[better_bn] - table[worse_bn])``; differentiable once.

    The same as plain indexing and a product; its gradients are added straight into place, which
    takes a third of the time on a CPU.

    Args:
        encoded: ``[B, d]`` windows.
        table: ``[M, d]`` embeddings of items.
        better: ``[B, n]`` int64, rows of ``table``.
        worse: ``[B, n]`` int64, rows of ``table``.
    """
    return _Gaps.apply(encoded, table, better, worse)  # type: ignore[no-any-return]


class _Gaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoded: Tensor, table: Tensor, better: Tensor, worse: Tensor) -> Tensor:
        apart = functional.embedding(better, table)  # [B, n, d]
        apart -= functional.embedding(worse, table)
        ctx.save_for_backward(encoded, apart, better, worse)
        ctx.count = len(table)
        return torch.bmm(apart, encoded.unsqueeze(2)).squeeze(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        encoded, apart, better, worse = ctx.saved_tensors
        by_gap = gradients[0]  # [B, n]
        by_encoded = torch.bmm(by_gap.unsqueeze(1), apart).squeeze(1)  # [B, d]
        # Column by column, as the gradients of unKD lie in memory: its mask is gathered so.
        parts = by_gap.T.unsqueeze(2) * encoded  # [n, B, d]
        both, signed = torch.stack([better.T, worse.T]), torch.stack([parts, -parts])
        by_table = added_up(ctx.count, both, signed)  # [M, d]
        return by_encoded, by_table, None, None
