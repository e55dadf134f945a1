"""Atten-Mixer: attention maps of several levels of intent, pooled into one."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.errors import InputError
from alkd_ray.recommenders._lookup import rows_of
from alkd_ray.recommenders._parameters import (
    append_bias,
    append_one,
    check_sizes,
    normal,
    uniform,
)
from alkd_ray.registry import PluginConfig

Normalise = Literal["both", "session", "none"]
Initial = Literal["normal", "uniform"]

_TINY = 1e-12
"""Least length that a vector is divided by."""


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
    - ``score(i) = scale * cos(session, x_i)`` with ``normalise: both``; candidates keep their
      length with ``session``, and nothing is normalised with ``none``.

    One item table serves windows and candidates, as in the paper, unless ``two_tables``.

    What Du et al., ALKDRec, AAAI 2025, trained under this name (``AttMix.py`` of their repository,
    commit 8ce3ac2) differs where it matters: candidates have a table of their own and are not
    normalised, so that their lengths can learn popularity, and the session has length 1. That is
    ``two_tables: true, normalise: session, scale: 1, levels: 10, lp: 1, init: uniform``, which
    ``preset: paper`` sets. With cosines of one table instead, 10 dimensions learn so slowly that
    the paper's stopping rule ends them at nothing (docs/reproduction.md).

    Departures from both codes: the dot products are divided by sqrt(dim / heads) instead of passing
    a sigmoid and a factor 2, the pooled map is scaled to sum to 1 instead of passing a second
    softmax, W_l acts on the mean of the last l items instead of their concatenation, queries are
    not normalised over the levels nor the attended vector over its dimensions (LayerNorm), Q, K and
    V have no biases, biases start at 0, and item 0 is an item as any other instead of padding. Both
    codes have dropout (ALKDRec's: .1); here it is off by default and in ``preset: paper``. The
    scale 12 is the Atten-Mixer code's.

    Attributes:
        num_items: N.
        item_embedding: ``[N, dim]``, items as part of a window, and as candidates unless these
            have their own.
        target_item_embedding: ``[N, dim]`` or None.
        level_weights: ``[levels, dim, dim]``, W_l; level_bias: ``[levels, dim]``, b_l.
        query, key, value: ``[dim, dim]``, Q, K and V, whose blocks of rows are the heads.
        output: ``[dim, 2 dim]``, W_o; output_bias: ``[dim]``.
        item_bias: ``[N]`` or None, zero at first.
        training_draws: see :class:`alkd_ray.recommenders.DrawsInTraining`.
    """

    training_draws: torch.Generator | None

    class Config(PluginConfig):
        """Options."""

        levels: int = Field(3, ge=1, description="longest run of last items that makes a query")
        heads: int = Field(2, ge=1, description="attention heads; must divide dim")
        lp: float = Field(4.0, ge=1, description="power of the pooling over levels")
        normalise: Normalise = Field(
            "both",
            description="give windows' items and candidates length 1 and sessions `scale` (both), "
            "candidates the length they have (session), or do so to all (none)",
        )
        scale: float = Field(
            12.0, gt=0, description="length of a normalised session (the paper's w_k)"
        )
        two_tables: bool = Field(
            False, description="give candidates an item table of their own, as ALKDRec's code does"
        )
        item_bias: bool = Field(
            False, description="add a learned number to each item's score (one more dimension)"
        )
        dropout: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="share of the numbers of windows' normalised items, and of attention's "
            "weights, that is set to 0 in training",
        )
        init: Initial = Field(
            "normal", description="distribution of the initial embeddings and matrices"
        )
        init_std: float | None = Field(
            None,
            gt=0,
            description="standard deviation of normal initial values, largest of uniform ones; "
            "none = 1 / sqrt(dim)",
        )

    def __init__(
        self,
        *,
        levels: int = 3,
        heads: int = 2,
        lp: float = 4.0,
        normalise: Normalise = "both",
        scale: float = 12.0,
        two_tables: bool = False,
        item_bias: bool = False,
        dropout: float = 0.0,
        init: Initial = "normal",
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
        self.normalise: Normalise = normalise
        self.scale = scale
        self.dropout = dropout
        self.training_draws = None
        std = 1.0 / math.sqrt(dim) if init_std is None else init_std
        device = generator.device
        drawn = normal if init == "normal" else uniform
        self.item_embedding = drawn((num_items, dim), std, generator)
        self.level_weights = drawn((levels, dim, dim), std, generator)
        self.level_bias = nn.Parameter(torch.zeros(levels, dim, device=device))
        self.query = drawn((dim, dim), std, generator)
        self.key = drawn((dim, dim), std, generator)
        self.value = drawn((dim, dim), std, generator)
        self.output = drawn((dim, 2 * dim), std, generator)
        self.output_bias = nn.Parameter(torch.zeros(dim, device=device))
        self.item_bias = nn.Parameter(torch.zeros(num_items, device=device)) if item_bias else None
        self.target_item_embedding = drawn((num_items, dim), std, generator) if two_tables else None

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of windows, their length ``scale`` unless ``normalise`` is ``none``.

        Args:
            items: ``[B, L]`` int64, right-aligned windows.
            mask: ``[B, L]`` bool, True where ``items`` is an item.

        Returns:
            ``[B, dim]`` float32, or ``[B, dim + 1]`` with the item bias (the last column is 1).
        """
        embedded = functional.embedding(items, self.item_embedding)  # [B, L, dim]
        # x = factors * embedded; the factors are applied where there are fewer numbers.
        factors = self._factors(embedded) * mask  # [B, L]
        embedded = self._thinned(embedded)
        means = torch.bmm(self._shares(mask) * factors.unsqueeze(1), embedded)  # [B, levels, dim]
        queries = self._queries(means).transpose(1, 2)  # [B, dim, levels heads]
        logits = torch.bmm(embedded, queries) * factors.unsqueeze(2)  # [B, L, levels heads]
        attention = self._thinned(self._mixed(logits, mask)) * factors.unsqueeze(2)  # [B, L, heads]
        attended = torch.bmm(attention.transpose(1, 2), embedded)  # [B, heads, dim]
        # V and the first half of W_o are one matrix for each head: sum_i a_i x_i comes first.
        by_head = self.value.unflatten(0, (self.heads, -1))  # [heads, dim / heads, dim]
        first = self.output[:, : len(self.value)].unflatten(1, (self.heads, -1)).transpose(0, 1)
        joined = torch.bmm(first, by_head).transpose(0, 1).flatten(1)  # [dim, heads dim]
        weights = torch.cat([joined, self.output[:, len(self.value) :]], 1)
        both = torch.cat([attended.flatten(1), means[:, 0]], 1)  # [B, (heads + 1) dim]
        session = functional.linear(both, weights, self.output_bias)  # [B, dim]
        if self.normalise != "none":
            session = session * self._factors(session).unsqueeze(-1) * self.scale
        return append_one(session, self.item_bias)

    def item_table(self) -> Tensor:
        """``[N, dim]`` float32, or ``[N, dim + 1]`` with the item bias as the last column."""
        return append_bias(self._as_candidates(self._candidates()), self.item_bias)

    def embed_candidates(self, items: Tensor) -> Tensor:
        """``item_table()[items]`` without working out the rest of the table."""
        vectors = self._as_candidates(rows_of(self._candidates(), items))
        if self.item_bias is None:
            return vectors
        return torch.cat([vectors, rows_of(self.item_bias.unsqueeze(1), items)], -1)

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """``[B, N]`` float32 scores of all items, as the contract of the room says."""
        return self.encode(items, mask) @ self.item_table().T

    def _shares(self, mask: Tensor) -> Tensor:
        """``[B, levels, L]`` float32, each item's share in the mean of the last l items."""
        levels = torch.arange(1, len(self.level_weights) + 1, device=mask.device)  # [levels]
        from_end = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)  # [L]
        within = (from_end < levels.unsqueeze(1)) & mask.unsqueeze(1)  # [B, levels, L]
        return within / within.sum(2, keepdim=True).clamp_min(1)

    def _queries(self, means: Tensor) -> Tensor:
        """``[B, levels heads, dim]``, what an item's embedding is multiplied with for its logits.

        W_l, Q and K act on the queries alone, as one matrix for each level and head: there are
        fewer queries than items.
        """
        by_head = (self.heads, -1)
        root = math.sqrt(len(self.query) / self.heads)
        query = self.query.unflatten(0, by_head) / root  # [heads, dim / heads, dim]
        pairs = torch.bmm(self.key.unflatten(0, by_head).transpose(1, 2), query)  # K^T Q
        pairs = pairs.flatten(0, 1)  # [heads dim, dim]
        weights = torch.matmul(pairs, self.level_weights)  # [levels, heads dim, dim]
        bias = self.level_bias @ pairs.T  # [levels, heads dim]
        queries = torch.baddbmm(bias.unsqueeze(1), means.transpose(0, 1), weights.transpose(1, 2))
        return queries.transpose(0, 1).reshape(len(means), -1, means.shape[2])

    def _mixed(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``[B, L, heads]``, summing to 1 over the items of a window that has any.

        Lp pooling of softmax maps, scaled to sum to 1, is
        ``softmax_i((1/p) logsumexp_l p log a_lh,i)``, where no power can leave float32.
        """
        # A softmax over the last dimension, of few items, takes three times as long as this one.
        # A finite stand-in for -inf: a window without items must not become NaN.
        logits = logits.masked_fill(~mask.unsqueeze(2), -1e9)
        by_level = (-1, self.heads)
        if self.lp == 1.0:  # the mean, which sums to 1 as it is
            pooled = logits.softmax(1).unflatten(2, by_level).mean(2)  # [B, L, heads]
        else:
            maps = logits.log_softmax(1).unflatten(2, by_level)  # [B, L, levels, heads]
            pooled = (torch.logsumexp(self.lp * maps, 2) / self.lp).softmax(1)
        return pooled * mask.unsqueeze(2)

    def _thinned(self, numbers: Tensor) -> Tensor:
        """Dropout (Srivastava et al. 2014): some become 0, the others grow to the same mean."""
        if not (self.dropout and self.training and self.training_draws):
            return numbers
        drawn = torch.rand(numbers.shape, generator=self.training_draws)
        kept = (drawn >= self.dropout).to(numbers.device)
        return numbers * (kept / (1.0 - self.dropout))

    def _candidates(self) -> Tensor:
        """``[N, dim]``, the table that candidates are looked up in."""
        own = self.target_item_embedding
        return self.item_embedding if own is None else own

    def _as_candidates(self, vectors: Tensor) -> Tensor:
        """``[..., dim]`` rows of that table as they are scored with."""
        if self.normalise != "both":
            return vectors
        return vectors * self._factors(vectors).unsqueeze(-1)

    def _factors(self, vectors: Tensor) -> Tensor:
        """``[...]``, 1 / length of ``[..., dim]`` vectors, or 1 where none is normalised."""
        if self.normalise == "none":
            return vectors.new_ones(vectors.shape[:-1])
        return vectors.norm(dim=-1).clamp_min(_TINY).reciprocal()
