"""STAMP: attention over a window, driven by its last item and its mean."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.recommenders._parameters import append_bias, append_one, check_sizes, normal
from alkd_ray.registry import PluginConfig

_MATRIX_STD = 0.05
"""Standard deviation of the initial weight matrices, the paper's."""


class Stamp(nn.Module):
    """Short-term attention/memory priority.

    Liu, Zeng, Mokhosi and Zhang, "STAMP: Short-Term Attention/Memory Priority Model for
    Session-based Recommendation", KDD 2018. With e the embeddings of the window, e_t the last one
    and m_s their mean, the attention is
    ``a_i = w0 . sigmoid(W1 e_i + W2 e_t + W3 m_s + b_a)`` with no softmax over i, and
    ``m_a = sum_i a_i e_i``.

    ``trilinear`` is the paper's model: ``h_s = tanh(W_s m_a + b_s)``,
    ``h_t = tanh(W_t e_t + b_t)``, scores ``(h_s * h_t) . x_i``. Without it, the default, the score
    is ``(m_a + m_s) . x_i``: what the students published with ALKDRec (AAAI 2025) compute, whose
    trilinear layers are stored but unused.

    Departures from the paper: candidates have a table of their own, as in ALKDRec's published
    code, and scores are not passed through a sigmoid (it changes no order). In that code the sum
    of m_s runs over the padding as well, whose id 0 is also a real item; ``reference_padding``
    brings that back, which is needed to reproduce those checkpoints.

    Attributes:
        num_items: N.
        input_item_embedding: ``[N, dim]``, items as part of a window.
        target_item_embedding: ``[N, dim]``, items as candidates.
        w1, w2, w3: ``[dim, dim]``; w0: ``[dim]``; b_a: ``[dim]``, of the attention.
        item_bias: ``[N]`` or None, zero at first.
    """

    class Config(PluginConfig):
        """Options; the defaults are the published students' model."""

        trilinear: bool = Field(False, description="score by h_s * h_t, as the STAMP paper does")
        item_bias: bool = Field(
            False, description="add a learned number to each item's score (one more dimension)"
        )
        reference_padding: int = Field(
            0,
            ge=0,
            description="as published: windows shorter than this count as many embeddings of "
            "item 0 into the mean as they lack; 0 = do not",
        )
        init_std: float = Field(
            0.002, gt=0, description="standard deviation of the initial embeddings (the paper's)"
        )

    def __init__(
        self,
        *,
        trilinear: bool = False,
        item_bias: bool = False,
        reference_padding: int = 0,
        init_std: float = 0.002,
        num_items: int,
        dim: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_sizes("stamp", num_items, dim)
        self.num_items = num_items
        self.reference_padding = reference_padding
        device = generator.device
        self.input_item_embedding = normal((num_items, dim), init_std, generator)
        self.target_item_embedding = normal((num_items, dim), init_std, generator)
        self.w0 = normal((dim,), _MATRIX_STD, generator)
        self.w1 = normal((dim, dim), _MATRIX_STD, generator)
        self.w2 = normal((dim, dim), _MATRIX_STD, generator)
        self.w3 = normal((dim, dim), _MATRIX_STD, generator)
        self.b_a = nn.Parameter(torch.zeros(dim, device=device))
        self.item_bias = nn.Parameter(torch.zeros(num_items, device=device)) if item_bias else None
        self.trilinear = trilinear
        if trilinear:
            self.w_s = normal((dim, dim), _MATRIX_STD, generator)
            self.b_s = nn.Parameter(torch.zeros(dim, device=device))
            self.w_t = normal((dim, dim), _MATRIX_STD, generator)
            self.b_t = nn.Parameter(torch.zeros(dim, device=device))

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of windows; a window without items has that of zeros.

        Args:
            items: ``[B, L]`` int64, right-aligned windows.
            mask: ``[B, L]`` bool, True where ``items`` is an item.

        Returns:
            ``[B, dim]`` float32, or ``[B, dim + 1]`` with the item bias (the last column is 1).
        """
        shown = mask.unsqueeze(-1)  # [B, L, 1]
        embedded = functional.embedding(items, self.input_item_embedding) * shown  # [B, L, dim]
        last = embedded[:, -1]  # [B, dim]
        mean = self._mean(embedded, mask)  # [B, dim]
        shared = last @ self.w2.T + mean @ self.w3.T + self.b_a  # [B, dim]
        hidden = torch.sigmoid(embedded @ self.w1.T + shared.unsqueeze(1))  # [B, L, dim]
        attention = (hidden @ self.w0) * mask  # [B, L]
        attended = torch.bmm(attention.unsqueeze(1), embedded).squeeze(1)  # [B, dim]
        if self.trilinear:
            general = torch.tanh(functional.linear(attended, self.w_s, self.b_s))  # [B, dim]
            current = torch.tanh(functional.linear(last, self.w_t, self.b_t))  # [B, dim]
            session = general * current  # [B, dim]
        else:
            session = attended + mean  # [B, dim]
        return append_one(session, self.item_bias)

    def item_table(self) -> Tensor:
        """``[N, dim]`` float32, or ``[N, dim + 1]`` with the item bias as the last column."""
        return append_bias(self.target_item_embedding, self.item_bias)

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """``[B, N]`` float32 scores of all items, as the contract of the room says."""
        return self.encode(items, mask) @ self.item_table().T

    def _mean(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """``[B, dim]``, m_s of masked embeddings ``[B, L, dim]``."""
        lengths = mask.sum(1, keepdim=True)  # [B, 1]
        total = embedded.sum(1)  # [B, dim]
        if self.reference_padding:
            lacking = (self.reference_padding - lengths).clamp_min(0) * (lengths > 0)  # [B, 1]
            total = total + lacking * self.input_item_embedding[0]
        return total / lengths.clamp_min(1)
