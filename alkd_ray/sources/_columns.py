"""Columns of a table as read, and the lines of it that are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alkd_ray.errors import InputError
from alkd_ray.types import BoolArray, IntArray

SHOWN_PROBLEMS = 10
"""Damaged lines that are described; all are counted."""


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that is no row, so that none of its fields can be had.

    Attributes:
        place: its line number, counting from 1.
        problem: what is wrong.
        lines: the lines it takes: more than one when a quote is never closed.
    """

    place: int
    problem: str
    lines: int = 1


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of one file.

    Attributes:
        path: the file.
        unit: what a place in it is called, ``line`` (from 1) or ``row`` (from 0).
        values: column name -> ``[R]`` Arrow array; text files give large_string.
        places_of: row numbers -> places in the file; may read the file again.
        broken: lines that are no rows.
        undecodable: column name -> ``[R]`` True where the bytes are not text.
    """

    path: Path
    unit: str
    values: dict[str, pa.Array]
    places_of: Callable[[Sequence[int]], list[int]]
    broken: tuple[BrokenLine, ...] = ()
    undecodable: dict[str, BoolArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of damage in one field.

    Attributes:
        column: the field.
        rows: ``[R]`` True where it is damaged.
        problem: what is wrong, given the row number.
    """

    column: str
    rows: BoolArray
    problem: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Tally:
    """What is damaged in a file.

    Attributes:
        keep: ``[R]`` True for the rows without damage.
        damaged: number of damaged lines, those that are no rows included.
        problems: the first of them, each with file, line and field.
    """

    keep: BoolArray
    damaged: int
    problems: tuple[str, ...]


def tally(columns: Columns, faults: Iterable[Fault]) -> Tally:
    """Counts the damaged lines of ``columns`` and describes the first."""
    undecodable = [
        Fault(name, rows, lambda _: "is not text in the file's encoding; set encoding")
        for name, rows in columns.undecodable.items()
    ]
    keep = np.ones(len(columns), bool)
    found: dict[int, tuple[str, str]] = {}  # row -> field, problem; the first fault of a row counts
    for fault in [*undecodable, *faults]:
        rows = np.flatnonzero(fault.rows & keep)[:SHOWN_PROBLEMS].tolist()
        found |= {row: (fault.column, fault.problem(row)) for row in rows}
        keep &= ~fault.rows
    rows = sorted(found)[:SHOWN_PROBLEMS]
    places = columns.places_of(rows) if rows else []
    described = [
        (place, f"{columns.unit} {place}, field {found[row][0]}: {found[row][1]}")
        for place, row in zip(places, rows, strict=True)
    ]
    described += [
        (line.place, f"{columns.unit} {line.place}: {line.problem}") for line in columns.broken
    ]
    return Tally(
        keep=keep,
        damaged=int(np.sum(~keep)) + sum(line.lines for line in columns.broken),
        problems=tuple(f"{columns.path}: {text}" for _, text in sorted(described)[:SHOWN_PROBLEMS]),
    )


def require(path: Path, wanted: Iterable[str], there_are: Sequence[str], hint: str = "") -> None:
    """Raises an InputError, ended by ``hint``, unless each wanted column is there exactly once."""
    for name in wanted:
        if there_are.count(name) != 1:
            what = "is there more than once" if name in there_are else "is not there"
            raise InputError(
                f"{path}: the column {name!r} {what}; the columns are: {', '.join(there_are)}; "
                f"name yours with user=, session=, item=, time= or title={hint}"
            )


def read_parquet(path: Path, names: Sequence[str]) -> Columns:
    """The named columns of a Parquet file, of whatever type.

    Raises:
        InputError: no such file or column, not Parquet, no rows.
    """
    names = list(dict.fromkeys(names))
    try:
        require(path, names, pq.read_schema(path).names)
        table = pq.read_table(path, columns=names)
    except (OSError, pa.ArrowException) as error:
        first = str(error).split("\n")[0]
        raise InputError(f"{path}: cannot be read as Parquet: {first}") from error
    if not len(table):
        raise InputError(f"{path}: holds no rows; is it the right file?")
    values = {name: table[name].combine_chunks() for name in names}
    return Columns(path, "row", values, lambda rows: list(rows))


def as_text(path: Path, name: str, values: pa.Array) -> pa.Array:
    """``[R]`` large_string; an empty value, NaN among them, is ""."""
    try:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_floating(values.type):
            values = pa.array(values.to_numpy(zero_copy_only=False), values.type, from_pandas=True)
        return pc.fill_null(values.cast(pa.large_string()), "")
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: the column {name!r} is of type {values.type}, must hold text or numbers"
        ) from error


@dataclass(frozen=True, slots=True)
class Coded:
    """Texts as numbers.

    Attributes:
        codes: ``[R]`` int64, in the order of first appearance.
        texts: ``[codes]`` the text of each code.
        blank: ``[R]`` True where the text is empty, or white space alone.
    """

    codes: IntArray
    texts: np.ndarray
    blank: BoolArray


def coded(texts: pa.Array) -> Coded:
    """Numbers the distinct values of a large_string array."""
    encoded = texts.dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    texts = encoded.dictionary.to_numpy(zero_copy_only=False)
    blank = np.array([not text.strip() for text in texts.tolist()], bool)
    return Coded(codes, texts, blank[codes])
