"""From records, one row each, to numbered sessions with targets and splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from alkd_ray.seeds import numpy_stream
from alkd_ray.sessions import positional_split, random_split, with_fingerprint
from alkd_ray.sources._times import MICROSECONDS
from alkd_ray.types import SPLITS, BoolArray, IntArray, SessionSet

SplitKind = Literal["random", "time", "positional"]
SHARES = (0.6, 0.2, 0.2)
_DAY = 24 * 60 * 60 * MICROSECONDS


@dataclass(frozen=True, slots=True)
class Records:
    """Records in the order of their sessions, oldest first within one.

    Attributes:
        items: ``[R]`` int64.
        times: ``[R]`` int64 microseconds; zeros where the source has no times.
        begins: ``[R]`` True at the first record of each session.
    """

    items: IntArray
    times: IntArray
    begins: BoolArray

    def lengths(self) -> IntArray:
        """``[S]`` records of each session."""
        return np.diff(np.append(np.flatnonzero(self.begins), len(self.begins)))

    def where(self, keep: BoolArray) -> Records:
        """Without some records; whole sessions, or none that begins one."""
        return Records(self.items[keep], self.times[keep], self.begins[keep])


def by_owner(owners: IntArray, items: IntArray, times: IntArray) -> Records:
    """One session an owner (a session id, or a user), ordered by time, then by row.

    Owners come in the order of their numbers.

    Args:
        owners: ``[R]`` int64.
        items: ``[R]`` int64.
        times: ``[R]`` int64 microseconds.
    """
    order = np.lexsort((times, owners))  # stable: equal times stay in row order
    owners = owners[order]
    begins = np.ones(len(order), bool)
    begins[1:] = owners[1:] != owners[:-1]
    return Records(items[order], times[order], begins)


def cut_by_day(records: Records) -> Records:
    """A new session at each UTC day."""
    days = records.times // _DAY
    begins = records.begins.copy()
    begins[1:] |= days[1:] != days[:-1]
    return Records(records.items, records.times, begins)


def cut_by_gap(records: Records, minutes: float) -> Records:
    """A new session after more than ``minutes`` without a record."""
    begins = records.begins.copy()
    begins[1:] |= np.diff(records.times) > minutes * 60 * MICROSECONDS
    return Records(records.items, records.times, begins)


def merge_repeats(records: Records) -> Records:
    """Records of the same item one after another in a session become one, the first."""
    keep = records.begins.copy()
    keep[1:] |= records.items[1:] != records.items[:-1]
    return records.where(keep)


def drop_short(records: Records, min_length: int) -> Records:
    """Without sessions of fewer than ``min_length`` records."""
    lengths = records.lengths()
    return records.where(np.repeat(lengths >= min_length, lengths))


def number_items(records: Records) -> tuple[Records, IntArray]:
    """Items numbered 0..N-1 in the order of the sessions, and ``[N]`` the old number of each."""
    codes, old = pd.factorize(records.items)
    return Records(codes.astype(np.int64), records.times, records.begins), np.asarray(old, np.int64)


def hold_out_last(records: Records, split: SplitKind, seed: int) -> SessionSet:
    """The last item of each session is its target, those before it are the input.

    Args:
        records: sessions of two or more records.
        split: ``random``; ``positional`` (the order of the sessions); ``time`` (the order of their
            last records' times, ties by position). Always 60% train, 20% valid, 20% test.
        seed: of the random split.
    """
    lengths = records.lengths()
    last = np.cumsum(lengths) - 1  # [S]
    is_input = np.ones(len(records.items), bool)
    is_input[last] = False
    count = len(lengths)
    if split == "random":
        names = random_split(count, numpy_stream(seed, "split"), SHARES)
    else:
        names = positional_split(count, SHARES)
        if split == "time":
            by_time = np.argsort(records.times[last], kind="stable")
            names[by_time] = names.copy()
    return assemble(records.items[is_input], lengths - 1, records.items[last], names)


def assemble(flat: IntArray, lengths: IntArray, targets: IntArray, names: np.ndarray) -> SessionSet:
    """Sessions numbered by row, from the concatenated inputs ``flat`` and their ``lengths``.

    Args:
        flat: ``[sum of lengths]`` int64 input items.
        lengths: ``[S]`` int64.
        targets: ``[S]`` int64.
        names: ``[S]`` names out of :data:`~alkd_ray.types.SPLITS`.
    """
    split = np.zeros(len(names), np.int8)
    for code, name in enumerate(SPLITS):
        split[names == name] = code
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return with_fingerprint(SessionSet(np.arange(len(lengths)), flat, offsets, targets, split))
