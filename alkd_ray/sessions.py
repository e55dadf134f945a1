"""From sessions to what a recommender reads: windows, prefixes, splits, fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from alkd_ray.types import SPLITS, Batch, IntArray, SessionSet, SplitName


def from_lists(
    ids: Sequence[int] | IntArray,
    items: Sequence[Sequence[int]],
    targets: Sequence[int] | IntArray,
    split: Sequence[str] | np.ndarray,
) -> SessionSet:
    """A :class:`SessionSet` from per-session lists, with its fingerprint.

    Args:
        ids: ``[S]`` session ids.
        items: S lists of input items, oldest first.
        targets: ``[S]`` the item after each input.
        split: ``[S]`` names out of :data:`~alkd_ray.types.SPLITS`.
    """
    offsets = np.zeros(len(items) + 1, np.int64)
    np.cumsum([len(row) for row in items], out=offsets[1:])
    flat = (
        np.concatenate([np.asarray(row, np.int64) for row in items])
        if len(items)
        else np.zeros(0, np.int64)
    )
    codes = {name: code for code, name in enumerate(SPLITS)}
    return with_fingerprint(
        SessionSet(
            ids=np.asarray(ids, np.int64),
            flat_items=flat.astype(np.int64),
            offsets=offsets,
            targets=np.asarray(targets, np.int64),
            split=np.array([codes[name] for name in split], np.int8),
        )
    )


def with_fingerprint(sessions: SessionSet) -> SessionSet:
    """The same sessions with the SHA-256 (first 16 hex digits) of their content."""
    digest = hashlib.sha256()
    for array in (
        sessions.ids,
        sessions.flat_items,
        sessions.offsets,
        sessions.targets,
        sessions.split,
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    return SessionSet(
        sessions.ids,
        sessions.flat_items,
        sessions.offsets,
        sessions.targets,
        sessions.split,
        digest.hexdigest()[:16],
    )


def take(sessions: SessionSet, rows: IntArray) -> SessionSet:
    """The sessions of ``rows`` (``[R]`` row numbers), in that order."""
    lengths = sessions.lengths[rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    flat = sessions.flat_items[_flat_positions(sessions.offsets[rows], lengths)]
    return SessionSet(
        sessions.ids[rows], flat, offsets, sessions.targets[rows], sessions.split[rows]
    )


def of_split(sessions: SessionSet, split: SplitName) -> SessionSet:
    """The sessions of one split, in file order."""
    return take(sessions, np.flatnonzero(sessions.split == SPLITS.index(split)))


def rows_of_ids(sessions: SessionSet, ids: IntArray) -> IntArray:
    """Row numbers of session ``ids``, ``[len(ids)]``; -1 where an id is not there."""
    order = np.argsort(sessions.ids, kind="stable")
    position = np.searchsorted(sessions.ids[order], ids)
    position = np.minimum(position, len(order) - 1)
    rows = order[position]
    return np.where(sessions.ids[rows] == ids, rows, -1)


def windows(sessions: SessionSet, window: int) -> Batch:
    """One example a session: its last ``window`` input items and its target.

    Returns:
        A batch of S rows, L = ``window``, right-aligned.
    """
    return _right_aligned(sessions, np.arange(len(sessions)), sessions.offsets[1:], window)


def prefixes(sessions: SessionSet, window: int) -> Batch:
    """Every prefix of every session (target included as the last item) as one example.

    Session ``a b c -> d`` yields ``a -> b``, ``a b -> c`` and ``a b c -> d``.

    Returns:
        A batch of sum(lengths) rows, L = ``window``, right-aligned, sessions in order.
    """
    lengths = sessions.lengths
    row = np.repeat(np.arange(len(sessions)), lengths)
    end = np.arange(len(sessions.flat_items)) + 1
    batch = _right_aligned(sessions, row, end, window)
    is_last = end == sessions.offsets[row + 1]
    following = sessions.flat_items[np.minimum(end, len(sessions.flat_items) - 1)]
    targets = np.where(is_last, sessions.targets[row], following)
    return Batch(batch.items, batch.mask, targets)


def random_split(count: int, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """``[count]`` split names, drawn so that the shares (train, valid, test) hold exactly."""
    return positional_split(count, shares)[rng.permutation(count)]


def positional_split(count: int, shares: Sequence[float] = (0.6, 0.2, 0.2)) -> np.ndarray:
    """``[count]`` split names by row: the first share trains, the last one tests."""
    first, second = int(count * shares[0]), int(count * (shares[0] + shares[1]))
    names = np.empty(count, dtype=object)
    names[:first], names[first:second], names[second:] = SPLITS
    return names


def _right_aligned(sessions: SessionSet, row: IntArray, end: IntArray, window: int) -> Batch:
    start = sessions.offsets[row]
    position = end[:, None] - window + np.arange(window)[None, :]  # [B, L]
    mask = position >= start[:, None]
    items = np.where(mask, sessions.flat_items[np.where(mask, position, 0)], 0)
    return Batch(items, mask, sessions.targets[row])


def _flat_positions(starts: IntArray, lengths: IntArray) -> IntArray:
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within
