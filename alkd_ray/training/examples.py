"""What a backbone is trained on: rows of (window, positive, weight), resident on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alkd_ray import sessions as windows_of
from alkd_ray.errors import InputError
from alkd_ray.types import Batch, FloatArray, IntArray, SessionSet


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """For each row the items that other recommenders would have it rank, and their shares.

    Attributes:
        items: ``[R, K]`` int32; entries of share 0 mean nothing.
        shares: ``[R, K]`` float32, each row sums to 1, or to 0 where there are no labels.
    """

    items: Tensor
    shares: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """R training rows. Rows of one session share its window.

    Attributes:
        windows: ``[W, L]`` int32, right-aligned; -1 where there is no item.
        window_of: ``[R]`` int64, each row's window.
        positives: ``[R]`` int64, the item to be ranked first.
        weights: ``[R]`` float32, or None for equal weights.
        soft: soft labels of the R rows, or None.
    """

    windows: Tensor
    window_of: Tensor
    positives: Tensor
    weights: Tensor | None = None
    soft: SoftLabels | None = None

    def __len__(self) -> int:
        return len(self.positives)

    def to(self, device: str) -> Rows:
        """The same rows on ``device``."""
        soft = self.soft and SoftLabels(self.soft.items.to(device), self.soft.shares.to(device))
        weights = None if self.weights is None else self.weights.to(device)
        return Rows(
            self.windows.to(device),
            self.window_of.to(device),
            self.positives.to(device),
            weights,
            soft,
        )

    def counts(self, num_items: int) -> IntArray:
        """``[N]`` how often each item is a positive."""
        return np.bincount(self.positives.cpu().numpy(), minlength=num_items)

    def take(self, index: Tensor) -> RowBatch:
        """The rows of ``index`` (``[B]`` int64), as a backbone and a loss read them."""
        items = self.windows[self.window_of[index]].long()  # [B, L]
        mask = items >= 0  # [B, L]
        return RowBatch(
            items=items.clamp_min_(0),
            mask=mask,
            positives=self.positives[index],
            window_of=self.window_of[index],
            weights=None if self.weights is None else self.weights[index],
            soft_items=None if self.soft is None else self.soft.items[index].long(),
            soft_shares=None if self.soft is None else self.soft.shares[index],
        )


@dataclass(frozen=True, slots=True)
class RowBatch:
    """B rows.

    Attributes:
        items: ``[B, L]`` int64, right-aligned windows.
        mask: ``[B, L]`` bool, True where ``items`` is an item.
        positives: ``[B]`` int64.
        window_of: ``[B]`` int64, the number of each row's window among those of its rows.
        weights: ``[B]`` float32, or None for equal weights.
        soft_items: ``[B, K]`` int64, or None.
        soft_shares: ``[B, K]`` float32, or None.
    """

    items: Tensor
    mask: Tensor
    positives: Tensor
    window_of: Tensor
    weights: Tensor | None = None
    soft_items: Tensor | None = None
    soft_shares: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positives)


def of_sessions(sessions: SessionSet, kind: Literal["last", "prefixes"], window: int) -> Rows:
    """One row a session (``last``), or one for every prefix of it (``prefixes``).

    Raises:
        InputError: no session has an input item.
    """
    make = windows_of.windows if kind == "last" else windows_of.prefixes
    batch = make(sessions, window)
    some = batch.mask.any(1)  # a session without input teaches nothing
    if not some.any():
        raise InputError("no training session has an input item; check the split of the data")
    return Rows(
        windows=_packed(Batch(batch.items[some], batch.mask[some], batch.targets[some])),
        window_of=torch.arange(int(some.sum())),
        positives=torch.from_numpy(batch.targets[some]),
    )


def sessions_of_rows(sessions: SessionSet, kind: Literal["last", "prefixes"]) -> IntArray:
    """``[R]`` int64, the session of each row that :func:`of_sessions` makes."""
    if kind == "last":
        return np.flatnonzero(sessions.lengths > 0)
    return np.repeat(np.arange(len(sessions)), sessions.lengths)


def last_rows(sessions: SessionSet, kind: Literal["last", "prefixes"]) -> IntArray:
    """``[S]`` int64, the row of :func:`of_sessions` that has a whole session's input; -1 = none."""
    session_of = sessions_of_rows(sessions, kind)  # ascending; the longest prefix comes last
    found = np.full(len(sessions), -1, np.int64)
    np.maximum.at(found, session_of, np.arange(len(session_of)))
    return found


def of_rankings(
    sessions: SessionSet,
    session_rows: IntArray,
    positives: IntArray,
    weights: FloatArray | None,
    window: int,
) -> Rows:
    """One row for each ranked item of a session that has an input item.

    Args:
        sessions: the sessions that were ranked.
        session_rows: ``[R]`` int64, the session's row in ``sessions``.
        positives: ``[R]`` int64, the ranked item.
        weights: ``[R]``, or None for equal weights.
        window: input items a recommender sees.
    """
    some = sessions.lengths[session_rows] > 0  # [R]
    return Rows(
        windows=_packed(windows_of.windows(sessions, window)),
        window_of=torch.from_numpy(np.asarray(session_rows[some], np.int64)),
        positives=torch.from_numpy(np.asarray(positives[some], np.int64)),
        weights=None if weights is None else torch.from_numpy(weights[some].astype(np.float32)),
    )


def _packed(batch: Batch) -> Tensor:
    return torch.from_numpy(np.where(batch.mask, batch.items, -1).astype(np.int32))
