"""By how much windows score one item above another, for many pairs a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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
        parts = by_gap.unsqueeze(2) * encoded.unsqueeze(1)  # [B, n, d]
        by_table = encoded.new_zeros(ctx.count, encoded.shape[1])  # [M, d]
        by_table.index_put_((better,), parts, accumulate=True)
        by_table.index_put_((worse,), parts.neg_(), accumulate=True)
        return by_encoded, by_table, None, None
