"""Losses with lean gradients, which they add to the parameters; the value only on demand.

A loss gets a backbone and a batch, encodes the B windows to ``u`` ``[B, d]``, and differentiates
with respect to ``u`` and the item embeddings in closed form where that avoids a large graph. The
mean is taken over the batch (weighted by the rows' weights), so that Adam's epsilon has the same
part at every batch size.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alkd_ray.recommenders import Backbone, embed_candidates
from alkd_ray.training.examples import RowBatch


class Loss(Protocol):
    """What the loop calls at every step."""

    def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
        """Adds the gradients of the batch's loss to the parameters of ``backbone``.

        Returns:
            The loss, or None when ``want_value`` is False (it costs a synchronisation).
        """
        ...


def row_shares(batch: RowBatch) -> Tensor:
    """``[B]`` float32, each row's part of the mean; sums to 1."""
    if batch.weights is None:
        count = len(batch)
        return torch.full((count,), 1.0 / count, device=batch.positives.device)
    return batch.weights / batch.weights.sum().clamp_min(1e-12)


def pairwise_gradients(
    encoded: Tensor, positives: Tensor, shares: Tensor, want_value: bool = False
) -> tuple[Tensor, Tensor, float | None]:
    """Gradients of the in-batch pairwise loss with respect to ``u`` and ``p``.

    With ``S = u @ p.T`` the loss is ``sum_i w_i mean_j -log sigmoid(S_ii - S_ij)``: the positives
    of the other rows are the negatives (BPR, Rendle et al. 2009; paper eq. 1 with ``w`` = alpha).
    The diagonal ``j = i`` is in the mean, as published; it adds a constant and no gradient. With
    ``G_ij = w_i sigmoid(S_ij - S_ii) / B`` the gradients are ``G p - rowsum(G) p`` and
    ``G^T u - rowsum(G) u``.

    Args:
        encoded: ``[B, d]`` windows, u.
        positives: ``[B, d]`` embeddings of the rows' positives, p.
        shares: ``[B]`` w, summing to 1.
        want_value: whether to work out the loss itself.

    Returns:
        ``[B, d]``, ``[B, d]`` and the loss or None.
    """
    # A further column takes S_ii off in the product itself, and a further row of ones adds up the
    # rows of G in the one after it: two passes over [B, B] less.
    own = (encoded * positives).sum(1, keepdim=True)  # [B, 1]
    extended = functional.pad(positives, (0, 1), value=1.0)  # [B, d + 1]
    gaps = torch.cat([encoded, -own], 1) @ extended.T  # [B, B]
    value = None
    if want_value:
        value = float((functional.softplus(gaps).mean(1) * shares).sum())
    pull = gaps.sigmoid_()  # [B, B], G without its factors w_i / B
    factors = (shares / len(shares))[:, None]  # [B, 1]
    # Products with few columns are up to 10 times slower on CPU than their transposes.
    pulled, total = ((extended.T @ pull.T).T * factors).tensor_split([positives.shape[1]], 1)
    pulled_back = ((encoded * factors).T @ pull).T  # [B, d]
    return (
        torch.addcmul(pulled, total, positives, value=-1),  # [B, d]
        torch.addcmul(pulled_back, total, encoded, value=-1),  # [B, d]
        value,
    )


class InBatchPairwise:
    """The paper's loss (eq. 1): see :func:`pairwise_gradients`. O(B^2) memory, no O(B^2 d)."""

    def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
        """See :class:`Loss`."""
        encoded = backbone.encode(batch.items, batch.mask)  # [B, d]
        positives = embed_candidates(backbone, batch.positives)  # [B, d]
        with torch.no_grad():
            by_encoded, by_positives, value = pairwise_gradients(
                encoded, positives, row_shares(batch), want_value
            )
        torch.autograd.backward([encoded, positives], [by_encoded, by_positives])
        return value


class SampledBCE:
    """Binary cross entropy with one negative a row, drawn from the whole catalogue.

    What the published code trains AttMix's student with on HetRec; its teacher has ten negatives a
    row there, the mean of whose losses has the same expectation. A negative may happen to be the
    positive, or an item of the window, as there.
    """

    def __init__(self, num_items: int, rng: np.random.Generator) -> None:
        self.num_items = num_items
        self.rng = rng

    def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
        """See :class:`Loss`."""
        drawn = torch.from_numpy(self.rng.integers(self.num_items, size=len(batch)))
        negatives = drawn.to(batch.positives.device)  # [B]
        encoded = backbone.encode(batch.items, batch.mask)  # [B, d]
        both = embed_candidates(backbone, torch.stack([batch.positives, negatives]))  # [2, B, d]
        scores = (both * encoded).sum(-1)  # [2, B]
        by_row = functional.softplus(-scores[0]) + functional.softplus(scores[1])  # [B]
        loss = (by_row * row_shares(batch)).sum()
        loss.backward()
        return float(loss.detach()) if want_value else None
