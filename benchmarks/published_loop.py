"""The arithmetic of ALKDRec's published training step, written down again for comparison.

Not their code: its facts. A batch is put together row by row in Python, padded with item 0; the
scores of the whole catalogue are worked out and not used; the in-batch pairwise loss goes through
a ``[B, B, d]`` product; gradients are autograd's, the optimiser is Adam. AttMix on HetRec is
trained by binary cross entropy with one sampled negative.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.types import SessionSet

LENGTH = 10
PADDING = 0


class PublishedFpmc(nn.Module):
    """The mean of the window's embeddings, over padded windows."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.inputs = nn.Embedding(num_items, dim, padding_idx=PADDING)
        self.candidates = nn.Embedding(num_items, dim)

    def forward(self, windows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, d]`` windows and ``[N, d]`` items."""
        encoded = self.inputs(windows).sum(1) / lengths.unsqueeze(1)  # [B, d]
        return encoded, self.candidates.weight


class PublishedStamp(nn.Module):
    """STAMP's attention without its trilinear layers, over padded windows."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.inputs = nn.Embedding(num_items, dim, padding_idx=PADDING)
        self.candidates = nn.Embedding(num_items, dim)
        self.w1 = nn.Linear(dim, dim, bias=False)
        self.w2 = nn.Linear(dim, dim, bias=False)
        self.w3 = nn.Linear(dim, dim, bias=False)
        self.w0 = nn.Linear(dim, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, windows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, d]`` windows and ``[N, d]`` items."""
        embedded = self.inputs(windows)  # [B, L, d]
        mean = embedded.sum(1) / lengths.unsqueeze(1)  # [B, d]
        rows = torch.arange(len(windows))
        last = embedded[rows, lengths.long() - 1]  # [B, d]
        shared = self.w2(last).unsqueeze(1) + self.w3(mean).unsqueeze(1) + self.bias
        attention = self.w0(torch.sigmoid(self.w1(embedded) + shared))  # [B, L, 1]
        attention = attention * (windows != PADDING).unsqueeze(2)
        return (attention * embedded).sum(1) + mean, self.candidates.weight


class PublishedAttMix(nn.Module):
    """AttMix as ``AttMix.py`` has it: ten levels, Lp pooling with p = 1, sessions of length 1."""

    dropout = 0.1

    def __init__(self, num_items: int, dim: int, levels: int = 10, heads: int = 2) -> None:
        super().__init__()
        self.levels, self.heads = levels, heads
        self.inputs = nn.Embedding(num_items, dim, padding_idx=PADDING)
        self.candidates = nn.Embedding(num_items, dim)
        self.by_level = nn.ModuleList(nn.Linear(at * dim, dim) for at in range(1, levels + 1))
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.layer_norm = nn.LayerNorm(dim, eps=1e-8)
        self.output = nn.Linear(2 * dim, dim)

    def forward(self, windows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, d]`` windows and ``[N, d]`` items."""
        count, dim = len(windows), self.inputs.embedding_dim
        shown = torch.arange(LENGTH) < lengths.unsqueeze(1)  # [B, L]
        embedded = functional.normalize(self.inputs(windows) * shown.unsqueeze(2), dim=2)
        embedded = functional.dropout(embedded, self.dropout)
        rows, ends = torch.arange(count), lengths.long() - 1
        recent = [embedded[rows, (ends - back).clamp_min(-1)] for back in range(self.levels)]
        queries = torch.stack(
            [layer(torch.cat(recent[: at + 1], 1)) for at, layer in enumerate(self.by_level)], 1
        )  # [B, levels, d]
        split = (self.heads, dim // self.heads)
        q = self.query(functional.normalize(queries, dim=1)).unflatten(2, split).transpose(1, 2)
        k = self.key(embedded).unflatten(2, split).transpose(1, 2)  # [B, heads, L, .]
        v = self.value(embedded).unflatten(2, split).transpose(1, 2)  # [B, heads, L, .]
        maps = torch.softmax(2 * torch.sigmoid(q @ k.transpose(2, 3)), 3)  # [B, heads, levels, L]
        pooled = functional.lp_pool1d(
            maps.permute(0, 1, 3, 2).flatten(0, 1), 1, self.levels, stride=self.levels
        ).view(count, self.heads, LENGTH)
        pooled = torch.softmax(2 * pooled.masked_fill(~shown[:, None], -torch.inf), 2)
        pooled = functional.dropout(pooled, self.dropout)
        attended = (pooled.unsqueeze(3) * v).sum(2).flatten(1)  # [B, d]
        session = self.output(torch.cat([self.layer_norm(attended), recent[0]], 1))  # [B, d]
        return functional.normalize(session, dim=1), self.candidates.weight


BACKBONES: dict[str, type[nn.Module]] = {
    "fpmc": PublishedFpmc,
    "stamp": PublishedStamp,
    "attmix": PublishedAttMix,
}


class PublishedLoop:
    """One model in training; :meth:`step` is what is timed."""

    def __init__(
        self,
        backbone: str,
        loss: str,
        dim: int,
        sessions: SessionSet,
        num_items: int,
        batch_size: int,
    ) -> None:
        starts, ends = sessions.offsets[:-1], sessions.offsets[1:]
        self.rows = [
            (sessions.flat_items[start:end].tolist(), int(target))
            for start, end, target in zip(starts, ends, sessions.targets, strict=True)
        ]
        self.num_items = num_items
        self.batch_size = batch_size
        self.model = BACKBONES[backbone](num_items, dim)
        self.is_pairwise = loss == "pairwise"
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.draws = random.Random(1)  # noqa: S311
        self.negatives = np.random.default_rng(1)

    def step(self) -> None:
        """Draws a batch and moves the weights once."""
        windows, lengths, targets = [], [], []
        for items, target in self.draws.sample(self.rows, self.batch_size):
            window = items[-LENGTH:]
            windows.append(window + [PADDING] * (LENGTH - len(window)))
            lengths.append(len(window))
            targets.append(target)
        positives = torch.LongTensor(targets)
        encoded, table = self.model(torch.LongTensor(windows), torch.FloatTensor(lengths))
        _unused_scores = encoded @ table.T  # [B, N]
        loss = self._loss(encoded, positives, table)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def _loss(self, encoded: Tensor, positives: Tensor, table: Tensor) -> Tensor:
        wanted = functional.embedding(positives, table)  # [B, d]
        positive = (encoded * wanted).sum(1)  # [B]
        if self.is_pairwise:
            others = (encoded.unsqueeze(1) * wanted.unsqueeze(0)).sum(2)  # [B, B] from [B, B, d]
            return -functional.logsigmoid(positive.unsqueeze(1) - others).mean()
        drawn = torch.from_numpy(self.negatives.integers(self.num_items, size=len(positives)))
        negative = (encoded * functional.embedding(drawn, table)).sum(1)  # [B]
        both = torch.cat([positive, negative])
        labels = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
        return functional.binary_cross_entropy_with_logits(both, labels)
