"""The tops of the LLM's rankings by training window, and how much each of their items weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._rankings import flattened, session_rows
from alkd_ray.distillation._robust import block_rows
from alkd_ray.training.examples import last_rows

_GROUP = 64
"""Neighbouring scores of which only the largest is compared first."""

_DISTANCE_ROWS = 1_024
"""Lists whose text embeddings are gathered at a time."""

_BARELY_AGREED = 1e-8
"""As published: where agreement is all that counts, a session without any weighs all alike."""


@dataclass(frozen=True, slots=True)
class LLMLists:
    """M lists of at most K items. One device.

    Attributes:
        of_window: ``[W]`` int64, the list of each training window, -1 = none.
        items: ``[M, K]`` int64; a place without an item repeats one of the list.
        present: ``[M, K]`` bool, whether the place has an item.
        fixed: ``[M, K]`` float32, the part of an item's weight that training does not change.
    """

    of_window: Tensor
    items: Tensor
    present: Tensor
    fixed: Tensor

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device) -> LLMLists:
        """The same lists on ``device``."""
        return LLMLists(
            self.of_window.to(device),
            self.items.to(device),
            self.present.to(device),
            self.fixed.to(device),
        )

    def weights(self, number: Tensor, agreed: Tensor, gamma_consistency: float) -> Tensor:
        """``[R, K]`` float32, 0 where there is no item; a list's weights sum to 1.

        Args:
            number: ``[R]`` int64, lists.
            agreed: ``[R, K]`` bool, whether the item is in the student's own top.
            gamma_consistency: what that is worth.
        """
        raw = self.fixed[number] + gamma_consistency * (agreed + _BARELY_AGREED)
        raw = raw * self.present[number]
        return raw / raw.sum(1, keepdim=True)


def lists_of(
    knowledge: Knowledge,
    examples: Literal["last", "prefixes"],
    num_windows: int,
    num_items: int,
    top: int,
    gamma_position: float,
    gamma_confidence: float,
    texts: Tensor | None,
) -> LLMLists:
    """The first ``top`` places of the rankings in ``knowledge``; empty ones are left out.

    The fixed part of a weight is ``gamma_position softmax(-place) + gamma_confidence
    softmax(-distance)``, each softmax over the items of a list; the distance is that between the
    text embeddings of the item and of the first item of the list.

    Args:
        knowledge: the rankings and their sessions.
        examples: how training rows were made of the sessions. A ranking belongs to the row with
            the whole session as its input; a session without an input has no row.
        num_windows: W of those rows.
        num_items: N; ranked items outside the catalogue are left out.
        top: K, at least 1.
        gamma_position: factor of the position's weight.
        gamma_confidence: factor of the confidence's weight.
        texts: ``[N, D]`` float32 text embeddings; None = the confidence is left out.

    Raises:
        InputError: a ranked session is not among the training sessions.
    """
    row_of = last_rows(knowledge.train, examples)  # [S]
    window = row_of[session_rows(knowledge)]  # [rankings]
    number, place, ranked = flattened(knowledge.rankings, num_items)
    used = (place < top) & (window[number] >= 0)
    number, place, ranked = number[used], place[used], ranked[used]
    kept = np.unique(number)  # [M], the rankings with an item, ascending
    items = np.full((len(kept), top), -1, np.int64)
    items[np.searchsorted(kept, number), place] = ranked
    present = items >= 0
    first = items[np.arange(len(kept)), present.argmax(1)] if len(kept) else np.zeros(0, np.int64)
    items = np.where(present, items, first[:, None])
    of_window = np.full(num_windows, -1, np.int64)
    of_window[window[kept]] = np.arange(len(kept))
    listed, is_item = torch.from_numpy(items), torch.from_numpy(present)
    fixed = gamma_position * _softmax(-torch.arange(top).float().expand(items.shape), is_item)
    if texts is not None:
        distance = _distances(texts, listed, torch.from_numpy(first))
        fixed = fixed + gamma_confidence * _softmax(-distance, is_item)
    return LLMLists(torch.from_numpy(of_window), listed, is_item, fixed)


def in_top(encoded: Tensor, table: Tensor, items: Tensor, top: int) -> Tensor:
    """``[R, K]`` bool, whether ``items`` score among the ``top`` best of the catalogue.

    An item that ties with the last of them counts as one.

    Args:
        encoded: ``[R, d]`` windows.
        table: ``[N, d]``.
        items: ``[R, K]`` int64.
        top: length of the student's list.
    """
    found = torch.empty_like(items, dtype=torch.bool)
    columns = table.T.contiguous()  # [d, N]
    block = block_rows(table)
    for start in range(0, len(encoded), block):
        rows = slice(start, start + block)
        scores = encoded[rows] @ columns  # [r, N]
        found[rows] = scores.gather(1, items[rows]) >= _kth_largest(scores, min(top, len(table)))
    return found


def _kth_largest(scores: Tensor, k: int) -> Tensor:
    """``[r, 1]``, the k-th largest of each row of ``scores`` ``[r, N]``.

    The k largest lie in the k groups with the largest maxima (or tie with what lies there), so
    that a selection runs over those alone: twice as fast at 26,000 items as over all.
    """
    groups = scores.shape[1] // _GROUP
    if groups <= k:
        return scores.topk(k, 1).values[:, -1:]
    grouped = scores[:, : groups * _GROUP].unflatten(1, (groups, _GROUP))
    best = grouped.amax(2).topk(k, 1).indices  # [r, k]
    inside = grouped.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    left = scores[:, groups * _GROUP :]  # [r, < _GROUP]
    return torch.cat([inside, left], 1).topk(k, 1).values[:, -1:]


def _softmax(logits: Tensor, present: Tensor) -> Tensor:
    """``[M, K]`` float32, over the places with an item."""
    return logits.masked_fill(~present, -torch.inf).softmax(1)


def _distances(texts: Tensor, items: Tensor, first: Tensor) -> Tensor:
    """``[M, K]`` float32, Euclidean, from each item's text embedding to that of ``first[m]``."""
    found = torch.empty(items.shape)
    for start in range(0, len(items), _DISTANCE_ROWS):
        rows = slice(start, start + _DISTANCE_ROWS)
        found[rows] = (texts[items[rows]] - texts[first[rows], None]).norm(dim=2)
    return found
