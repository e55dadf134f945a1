"""From a table's columns to records in the order of their sessions, and items to titles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from alkd_ray.errors import InputError
from alkd_ray.sources._columns import Columns, Fault, Tally, as_text, coded, tally
from alkd_ray.sources._sessionise import Records, by_owner
from alkd_ray.sources._times import TimeUnit, can_be_times, microseconds
from alkd_ray.types import BoolArray, IntArray


@dataclass(frozen=True, slots=True)
class Names:
    """The table's columns; "" = there is none.

    Attributes:
        item: item ids, or lists of them.
        owner: users, or session ids.
        time: times.
        title: titles.
        target: targets, beside lists.
    """

    item: str
    owner: str = ""
    time: str = ""
    title: str = ""
    target: str = ""

    def given(self) -> list[str]:
        """Those there are."""
        names = (self.item, self.owner, self.time, self.title, self.target)
        return [name for name in names if name]


@dataclass(frozen=True, slots=True)
class TableRecords:
    """The undamaged records of a table.

    Attributes:
        records: one session an owner, or a row of lists; items are indices into ``item_ids``.
        item_ids: the source ids.
        titles: beside each id, "" where there is none; None when the table has no titles.
        tally: the damaged lines.
    """

    records: Records
    item_ids: np.ndarray
    titles: np.ndarray | None
    tally: Tally


def is_list(values: pa.Array) -> bool:
    """Whether a column holds lists."""
    kind = values.type
    checks = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(check(kind) for check in checks)


def from_rows(columns: Columns, names: Names, unit: TimeUnit) -> TableRecords:
    """Records of a table with one row each; without times they keep the order of their rows."""
    owners = coded(as_text(columns.path, names.owner, columns.values[names.owner]))
    items = coded(as_text(columns.path, names.item, columns.values[names.item]))
    times, time_faults = _times(columns, names.time, unit)
    found = tally(
        columns,
        [
            Fault(names.owner, owners.blank, _is_empty),
            Fault(names.item, items.blank, _is_empty),
            *time_faults,
        ],
    )
    keep = found.keep
    titles = None
    if names.title:
        texts = as_text(columns.path, names.title, columns.values[names.title])
        titles = _first_titles(items.codes, texts, keep, len(items.texts))
    return TableRecords(
        by_owner(owners.codes[keep], items.codes[keep], times[keep]), items.texts, titles, found
    )


def from_lists(columns: Columns, names: Names, unit: TimeUnit) -> TableRecords:
    """Records of a table with one row a session, a column of lists and perhaps one of targets."""
    lists = columns.values[names.item]
    lists = lists.cast(pa.large_list(lists.type.value_type))
    lengths = lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)  # [R]
    texts = as_text(columns.path, names.item, lists.flatten())
    rows = np.repeat(np.arange(len(columns)), lengths)
    if names.target:
        targets = as_text(columns.path, names.target, columns.values[names.target])
        texts = pa.concat_arrays([texts, targets])
        rows = np.append(rows, np.arange(len(columns)))  # stands behind its list once sorted
    items = coded(texts)
    blank_list, blank_target = (
        np.bincount(rows[part][items.blank[part]], minlength=len(columns)) > 0
        for part in (slice(0, lengths.sum()), slice(lengths.sum(), None))
    )
    times, time_faults = _times(columns, names.time, unit)
    found = tally(
        columns,
        [
            Fault(names.item, lengths == 0, lambda _: "holds no items"),
            Fault(names.item, blank_list, lambda _: "holds an empty item id"),
            Fault(names.target, blank_target, _is_empty),
            *time_faults,
        ],
    )
    keep = found.keep[rows]
    records = by_owner(rows[keep], items.codes[keep], times[rows[keep]])
    return TableRecords(records, items.texts, None, found)


def read_titles(columns: Columns, item: str, title: str) -> tuple[pd.Series, Tally]:
    """Item id -> title from a file of titles (the first that is not empty), and its damage."""
    items = coded(as_text(columns.path, item, columns.values[item]))
    found = tally(columns, [Fault(item, items.blank, _is_empty)])
    texts = as_text(columns.path, title, columns.values[title])
    titles = _first_titles(items.codes, texts, found.keep, len(items.texts))
    return pd.Series(titles, index=items.texts, dtype=object), found


def _first_titles(codes: IntArray, texts: pa.Array, keep: BoolArray, size: int) -> np.ndarray:
    """``[size]`` the first title of each item that is not blank, white space around it left out."""
    titles = coded(texts)
    rows = np.flatnonzero(keep & ~titles.blank)[::-1]
    first = np.full(size, -1)
    first[codes[rows]] = rows  # the last assignment wins, which is the first row
    found = np.full(size, "", dtype=object)
    stripped = np.array([text.strip() for text in titles.texts.tolist()], dtype=object)
    found[first >= 0] = stripped[titles.codes[first[first >= 0]]]
    return found


def _times(columns: Columns, name: str, unit: TimeUnit) -> tuple[IntArray, list[Fault]]:
    if not name:
        return np.zeros(len(columns), np.int64), []
    values = columns.values[name]
    if not can_be_times(values.type):
        raise InputError(
            f"{columns.path}: the column {name!r} is of type {values.type}, times must be "
            "timestamps, dates, numbers or text"
        )
    times = microseconds(values, unit)

    def problem(row: int) -> str:
        return (
            f"{str(values[row].as_py())[:40]!r} is not a time (the column is read as "
            f"{times.read_as}, see time_unit; between the years 1900 and 2200)"
        )

    return times.values, [Fault(name, times.bad, problem)]


def _is_empty(_: int) -> str:
    return "is empty"
