"""Cross entropy over the whole catalogue, or over a sample of it when it is large.

The target of a row is a distribution: all of it on the positive, or a part of it on soft labels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alkd_ray.recommenders import Backbone
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.losses import row_shares

FULL_SOFTMAX_ITEMS = 100_000
"""Largest catalogue whose every item is scored for every row."""

SAMPLED_ITEMS = 8_192
"""Items expected in a sample of a larger catalogue."""

_CPU_BLOCK_ELEMENTS = 1 << 19
"""Logits held at a time on CPU (2 MiB): small enough to stay in a core's cache."""

_BLOCK_ELEMENTS = 1 << 26
"""Logits held at a time elsewhere (256 MiB): a GPU wants few large kernels."""


class FullSoftmax:
    """Cross entropy over all N items; memory does not grow with B x N.

    Logits are made, turned into gradients and dropped in blocks of rows: the gradient of a row's
    logits is ``softmax - target``, so no graph is kept.
    """

    def __init__(self, soft_weight: float = 0.0) -> None:
        self.soft_weight = soft_weight

    def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
        """See :class:`alkd_ray.training.losses.Loss`."""
        encoded = backbone.encode(batch.items, batch.mask)  # [B, d]
        table = backbone.item_table()  # [N, d]
        labels, parts = target_distribution(batch, self.soft_weight)  # [B, 1 + K] both
        with torch.no_grad():
            by_encoded, by_table, value = softmax_gradients(
                encoded, table, labels, parts, row_shares(batch), want_value
            )
        torch.autograd.backward([encoded, table], [by_encoded, by_table])
        return value


def softmax_gradients(
    encoded: Tensor,
    table: Tensor,
    labels: Tensor,
    parts: Tensor,
    shares: Tensor,
    want_value: bool = False,
) -> tuple[Tensor, Tensor, float | None]:
    """Gradients of ``sum_i w_i sum_k q_ik (logsumexp_j(u_i t_j) - u_i t_label(i,k))``.

    Args:
        encoded: ``[B, d]`` windows, u.
        table: ``[N, d]`` items, t.
        labels: ``[B, K]`` int64 items with a part of the target.
        parts: ``[B, K]`` q, each row summing to 1.
        shares: ``[B]`` w, summing to 1.
        want_value: whether to work out the loss itself.

    Returns:
        ``[B, d]``, ``[N, d]`` and the loss or None.
    """
    by_encoded = torch.empty_like(encoded)
    by_table = torch.zeros_like(table.T, memory_format=torch.contiguous_format)  # [d, N]
    value = 0.0
    elements = _CPU_BLOCK_ELEMENTS if table.device.type == "cpu" else _BLOCK_ELEMENTS
    block = max(1, elements // len(table))
    for start in range(0, len(encoded), block):
        stop = start + block
        u, q, w = encoded[start:stop], parts[start:stop], shares[start:stop, None]
        wanted = labels[start:stop]
        logits = u @ table.T  # [b, N]
        logits -= logits.amax(1, keepdim=True)
        at_labels = logits.gather(1, wanted) if want_value else None  # [b, K]
        gradient = logits.exp_()
        normaliser = gradient.sum(1, keepdim=True)  # [b, 1]
        gradient *= w / normaliser
        # Apart, because the positive may be a soft label too: on a GPU two additions to one cell
        # meet in any order.
        gradient.scatter_add_(1, wanted[:, :1], -q[:, :1] * w)
        gradient.scatter_add_(1, wanted[:, 1:], -q[:, 1:] * w)
        # Products with few columns are up to 10 times slower on CPU than their transposes.
        by_encoded[start:stop] = (table.T @ gradient.T).T
        by_table.addmm_(u.T, gradient)
        if at_labels is not None:
            value += float((w * q * (normaliser.log() - at_labels)).sum())
    return by_encoded, by_table.T, value if want_value else None


class SampledSoftmax:
    """Cross entropy whose normaliser is estimated from a sample, for catalogues of any size.

    Items enter the sample independently with probability ``pi_j``, half of it by popularity and
    half equal, so that popular items are nearly always in it. Each sampled logit is corrected by
    ``-log pi_j`` (the logQ correction, Bengio & Senecal 2008), which makes the estimate of the
    normaliser unbiased; a row's own labels are scored exactly and left out of its sample.
    """

    def __init__(
        self,
        counts: np.ndarray,
        rng: np.random.Generator,
        soft_weight: float = 0.0,
        expected: int = SAMPLED_ITEMS,
    ) -> None:
        """Prepares the sampling.

        Args:
            counts: ``[N]`` how often each item is a positive.
            rng: draws the samples.
            soft_weight: part of the target on soft labels.
            expected: expected size of a sample.
        """
        popularity = counts / max(float(counts.sum()), 1.0)
        mixed = 0.5 * popularity + 0.5 / len(counts)
        self.inclusion = np.minimum(1.0, expected * mixed)  # [N]
        self.rng = rng
        self.soft_weight = soft_weight

    def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
        """See :class:`alkd_ray.training.losses.Loss`."""
        sample = np.flatnonzero(self.rng.random(len(self.inclusion)) < self.inclusion)
        device = batch.positives.device
        correction = torch.from_numpy(np.log(self.inclusion[sample]).astype(np.float32))
        sampled = torch.from_numpy(sample).to(device)  # [M]
        labels, parts = target_distribution(batch, self.soft_weight)  # [B, 1 + K] both
        encoded = backbone.encode(batch.items, batch.mask)  # [B, d]
        table = backbone.item_table()  # [N, d]
        own = torch.einsum("bd,bkd->bk", encoded, functional.embedding(labels, table))
        others = encoded @ functional.embedding(sampled, table).T - correction.to(device)  # [B, M]
        own_once = own.masked_fill(_repeated(labels, parts), -torch.inf)  # [B, 1 + K]
        others = others.masked_fill(_is_own(labels, parts, sampled, len(table)), -torch.inf)
        log_normaliser = torch.logsumexp(torch.cat([own_once, others], 1), 1)  # [B]
        by_row = log_normaliser - (parts * own).sum(1)  # [B]
        loss = (by_row * row_shares(batch)).sum()
        loss.backward()
        return float(loss.detach()) if want_value else None


def target_distribution(batch: RowBatch, soft_weight: float) -> tuple[Tensor, Tensor]:
    """The items that share a row's target, and their parts.

    Returns:
        ``[B, 1 + K]`` int64 items, the positive first, and ``[B, 1 + K]`` float32 parts, each row
        summing to 1; a row without soft labels has all on its positive.
    """
    if batch.soft_items is None or batch.soft_shares is None:
        positives = batch.positives[:, None]
        return positives, torch.ones_like(positives, dtype=torch.float32)
    soft = batch.soft_shares * soft_weight  # [B, K]
    hard = 1.0 - soft.sum(1, keepdim=True)  # [B, 1]
    return (
        torch.cat([batch.positives[:, None], batch.soft_items], 1),
        torch.cat([hard, soft], 1),
    )


def _repeated(labels: Tensor, parts: Tensor) -> Tensor:
    """``[B, 1 + K]`` bool: fillers, and the positive's second mention among the soft labels."""
    repeated = (labels == labels[:, :1]) | (parts == 0)
    repeated[:, 0] = False
    return repeated


def _is_own(labels: Tensor, parts: Tensor, sampled: Tensor, num_items: int) -> Tensor:
    """``[B, M]`` bool: the sampled item is one of the row's own labels."""
    slot = torch.full((num_items,), -1, device=labels.device)
    slot[sampled] = torch.arange(len(sampled), device=labels.device)
    found = slot[labels]  # [B, 1 + K]
    found = found.masked_fill(_repeated(labels, parts), -1)
    is_own = torch.zeros((len(labels), len(sampled) + 1), dtype=torch.bool, device=labels.device)
    is_own.scatter_(1, torch.where(found < 0, len(sampled), found), True)
    return is_own[:, :-1]
