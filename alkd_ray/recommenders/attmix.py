"""Atten-Mixer: attention maps of several levels of intent, pooled into one."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.errors import InputError
from alkd_ray.recommenders._parameters import append_bias, append_one, check_sizes, normal
from alkd_ray.registry import PluginConfig

_TINY = 1e-30
"""Keeps quotients and roots differentiable where an attention is 0."""


class AttMix(nn.Module):
    """Multi-level attention mixture network.

    Zhang, Guo, Li, Xie, Kim, Zhang, Xie, Wang and Kim, "Efficiently Leveraging Multi-level User
    Intent for Session-based Recommendation via Atten-Mixer Network", WSDM 2023, without a graph
    network before it. With x the (normalised) embeddings of the window:

    - the query of level l, an intent held for the last l items, is a deep set over them:
      ``q_l = W_l mean(last l x) + b_l`` (of fewer where the window is shorter);
    - head h of level l attends to the items:
      ``a_lh = softmax_i((q_l Q_h) . (x_i K_h) / sqrt(dim / heads))``;
    - the maps of a head are mixed over the levels by Lp pooling,
      ``a_h,i = (mean_l a_lh,i ^ p)^(1/p)``, and scaled to sum to 1 over the items; p = 1 is their
      mean, a large p their maximum;
    - the session is ``W_o [sum_i a_h,i x_i V_h over the heads ; x_last]``;
    - ``score(i) = scale * cos(session, x_i)`` with ``normalise``, else the dot product.

    One item table serves windows and candidates, as in the paper.

    Departures from the published code: the dot products are not squashed by a sigmoid before the
    softmax, the pooled map is scaled to sum to 1 instead of passing a second softmax, W_l acts on
    the mean of the last l items instead of their concatenation, and there is no dropout (this
    project draws from named streams alone). The scale 12 is that code's.

    Attributes:
        num_items: N.
        item_embedding: ``[N, dim]``.
        level_weights: ``[levels, dim, dim]``, W_l; level_bias: ``[levels, dim]``, b_l.
        query, key, value: ``[dim, dim]``, Q, K and V, whose blocks of rows are the heads.
        output: ``[dim, 2 dim]``, W_o; output_bias: ``[dim]``.
        item_bias: ``[N]`` or None, zero at first.
    """

    class Config(PluginConfig):
        """Options."""

        levels: int = Field(3, ge=1, description="longest run of last items that makes a query")
        heads: int = Field(2, ge=1, description="attention heads; must divide dim")
        lp: float = Field(4.0, ge=1, description="power of the pooling over levels")
        normalise: bool = Field(True, description="score by the cosine instead of the dot product")
        scale: float = Field(12.0, gt=0, description="factor of the cosine (the paper's w_k)")
        item_bias: bool = Field(
            False, description="add a learned number to each item's score (one more dimension)"
        )
        init_std: float | None = Field(
            None,
            gt=0,
            description="standard deviation of the initial embeddings and matrices; "
            "none = 1 / sqrt(dim)",
        )

    def __init__(
        self,
        *,
        levels: int = 3,
        heads: int = 2,
        lp: float = 4.0,
        normalise: bool = True,
        scale: float = 12.0,
        item_bias: bool = False,
        init_std: float | None = None,
        num_items: int,
        dim: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_sizes("attmix", num_items, dim)
        if dim % heads:
            raise InputError(f"attmix: dim is {dim}, which its {heads} heads do not divide")
        self.num_items = num_items
        self.heads = heads
        self.lp = lp
        self.normalise = normalise
        self.scale = scale
        std = 1.0 / math.sqrt(dim) if init_std is None else init_std
        device = generator.device
        self.item_embedding = normal((num_items, dim), std, generator)
        self.level_weights = normal((levels, dim, dim), std, generator)
        self.level_bias = nn.Parameter(torch.zeros(levels, dim, device=device))
        self.query = normal((dim, dim), std, generator)
        self.key = normal((dim, dim), std, generator)
        self.value = normal((dim, dim), std, generator)
        self.output = normal((dim, 2 * dim), std, generator)
        self.output_bias = nn.Parameter(torch.zeros(dim, device=device))
        self.item_bias = nn.Parameter(torch.zeros(num_items, device=device)) if item_bias else None

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of windows, their length ``scale`` with ``normalise``.

        Args:
            items: ``[B, L]`` int64, right-aligned windows.
            mask: ``[B, L]`` bool, True where ``items`` is an item.

        Returns:
            ``[B, dim]`` float32, or ``[B, dim + 1]`` with the item bias (the last column is 1).
        """
        embedded = functional.embedding(items, self.item_embedding)  # [B, L, dim]
        embedded = self._normalised(embedded) * mask.unsqueeze(-1)
        attention = self._mixed_attention(embedded, mask)  # [B, heads, L]
        values = self._by_head(embedded @ self.value.T)  # [B, heads, L, dim / heads]
        attended = torch.matmul(attention.unsqueeze(2), values).flatten(1)  # [B, dim]
        both = torch.cat([attended, embedded[:, -1]], dim=1)  # [B, 2 dim]
        session = functional.linear(both, self.output, self.output_bias)  # [B, dim]
        if self.normalise:
            session = self._normalised(session) * self.scale
        return append_one(session, self.item_bias)

    def item_table(self) -> Tensor:
        """``[N, dim]`` float32, or ``[N, dim + 1]`` with the item bias as the last column."""
        return append_bias(self._normalised(self.item_embedding), self.item_bias)

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """``[B, N]`` float32 scores of all items, as the contract of the room says."""
        return self.encode(items, mask) @ self.item_table().T

    def _mixed_attention(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """``[B, heads, L]``, summing to 1 over the items of a window that has any."""
        queries = self._by_head(self._queries(embedded, mask) @ self.query.T)  # [B, heads, l, .]
        keys = self._by_head(embedded @ self.key.T)  # [B, heads, L, dim / heads]
        logits = queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[3])  # [B, heads, l, L]
        shown = mask[:, None, None, :]  # [B, 1, 1, L]
        # A finite stand-in for -inf: a window without items must not become NaN.
        maps = torch.softmax(logits.masked_fill(~shown, -1e30), dim=3) * shown
        # Relative to the largest, so that no power of a small attention leaves float32.
        largest = maps.amax(2, keepdim=True).clamp_min(_TINY)  # [B, heads, 1, L]
        powers = (maps / largest).pow(self.lp).mean(2).clamp_min(_TINY)  # [B, heads, L]
        pooled = powers.pow(1 / self.lp) * largest.squeeze(2) * mask.unsqueeze(1)
        return pooled / pooled.sum(2, keepdim=True).clamp_min(_TINY)

    def _queries(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """``[B, levels, dim]``, q_l for l = 1 .. levels, of masked embeddings."""
        levels = len(self.level_weights)
        lacking = max(0, levels - mask.shape[1])
        recent = functional.pad(embedded, (0, 0, lacking, 0))[:, -levels:].flip(1)  # [B, l, dim]
        shown = functional.pad(mask, (lacking, 0))[:, -levels:].flip(1)  # [B, l]
        counts = shown.cumsum(1).clamp_min(1).unsqueeze(-1)  # [B, l, 1]
        means = recent.cumsum(1) / counts  # [B, l, dim]
        return torch.einsum("bld,led->ble", means, self.level_weights) + self.level_bias

    def _by_head(self, vectors: Tensor) -> Tensor:
        """``[B, X, dim]`` as ``[B, heads, X, dim / heads]``."""
        return vectors.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _normalised(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.normalise else vectors
