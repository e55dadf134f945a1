"""FPMC without users: a window is the mean of its items' embeddings."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.recommenders._lookup import means_of
from alkd_ray.recommenders._parameters import (
    append_bias,
    append_one,
    check_sizes,
    normal,
    xavier_std,
)
from alkd_ray.registry import PluginConfig


class Fpmc(nn.Module):
    """Factorised Markov chain from the items of a window to the next item.

    Rendle, Freudenthaler and Schmidt-Thieme, "Factorizing Personalized Markov Chains for
    Next-Basket Recommendation", WWW 2010, with the window as the basket:
    ``score(x, i) = mean_{j in x} input_item_embedding[j] . target_item_embedding[i]``.

    Departures from the paper: no user factor (sessions are anonymous), as in Du et al., ALKDRec,
    AAAI 2025. ALKDRec's published training holds the input embedding of item 0, its padding id,
    at zero; here padding is the mask and item 0 is an item as any other. The options
    ``position_weights``, ``tanh_layer`` and ``item_bias`` are additions, off by default.

    Attributes:
        num_items: N.
        input_item_embedding: ``[N, dim]``, items as part of a window.
        target_item_embedding: ``[N, dim]``, items as candidates.
        position_logits: ``[positions]`` or None, entry p is for the p-th item from the end.
        mixing: ``[dim, dim]`` or None, the weights of the tanh layer, W in ``tanh(W m + b)``;
            the identity at first.
        mixing_bias: ``[dim]`` or None, b; zero at first.
        item_bias: ``[N]`` or None, zero at first.
    """

    class Config(PluginConfig):
        """Options; the defaults are the paper's model."""

        position_weights: bool = Field(
            False, description="weigh items by their position from the end, learned (softmax)"
        )
        positions: int = Field(
            10, ge=1, description="positions with a weight of their own; older items share the last"
        )
        tanh_layer: bool = Field(False, description="pass the mean through tanh(W m + b)")
        item_bias: bool = Field(
            False, description="add a learned number to each item's score (one more dimension)"
        )
        init_std: float | None = Field(
            None,
            gt=0,
            description="standard deviation of the initial embeddings; "
            "none = sqrt(2 / (N + dim)), as the published code (Xavier)",
        )

    def __init__(
        self,
        *,
        position_weights: bool = False,
        positions: int = 10,
        tanh_layer: bool = False,
        item_bias: bool = False,
        init_std: float | None = None,
        num_items: int,
        dim: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_sizes("fpmc", num_items, dim)
        self.num_items = num_items
        std = xavier_std(num_items, dim) if init_std is None else init_std
        device = generator.device
        self.input_item_embedding = normal((num_items, dim), std, generator)
        self.target_item_embedding = normal((num_items, dim), std, generator)
        self.position_logits = (
            nn.Parameter(torch.zeros(positions, device=device)) if position_weights else None
        )
        self.mixing = nn.Parameter(torch.eye(dim, device=device)) if tanh_layer else None
        self.mixing_bias = nn.Parameter(torch.zeros(dim, device=device)) if tanh_layer else None
        self.item_bias = nn.Parameter(torch.zeros(num_items, device=device)) if item_bias else None

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of windows; a window without items has the embedding of a zero mean.

        Args:
            items: ``[B, L]`` int64, right-aligned windows.
            mask: ``[B, L]`` bool, True where ``items`` is an item.

        Returns:
            ``[B, dim]`` float32, or ``[B, dim + 1]`` with the item bias (the last column is 1).
        """
        weights = self._weights(mask)
        if weights is None:
            mean = means_of(self.input_item_embedding, items, mask)  # [B, dim]
        else:
            lengths = mask.sum(1)  # [B]
            # Bags without their padding: half the time of a padded bag at dim 100.
            mean = functional.embedding_bag(
                items[mask],
                self.input_item_embedding,
                lengths.cumsum(0) - lengths,
                per_sample_weights=weights,
                mode="sum",
            )  # [B, dim]
        if self.mixing is not None:
            mean = torch.tanh(functional.linear(mean, self.mixing, self.mixing_bias))
        return append_one(mean, self.item_bias)

    def item_table(self) -> Tensor:
        """``[N, dim]`` float32, or ``[N, dim + 1]`` with the item bias as the last column."""
        return append_bias(self.target_item_embedding, self.item_bias)

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """``[B, N]`` float32 scores of all items, as the contract of the room says."""
        return self.encode(items, mask) @ self.item_table().T

    def _weights(self, mask: Tensor) -> Tensor | None:
        """``[mask.sum()]`` float32, of the items in order; a row's sum is 1. None = all equal."""
        if self.position_logits is None:
            return None
        from_end = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)  # [L]
        logits = self.position_logits[from_end.clamp_max(len(self.position_logits) - 1)]  # [L]
        # A finite stand-in for -inf: a window without items must not become NaN.
        return torch.softmax(torch.where(mask, logits, -1e30), dim=1)[mask]
