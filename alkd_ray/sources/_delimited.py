"""Reads CSV and TSV by Arrow, and says which lines are damaged."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from alkd_ray.errors import InputError
from alkd_ray.sources._columns import BrokenLine, Columns, require
from alkd_ray.types import BoolArray

_BLOCK_BYTES = 16 << 20
"""What Arrow parses at a time; no single row may be longer."""


def read_delimited(
    path: Path, names: Sequence[str], *, delimiter: str, quote: str, encoding: str
) -> Columns:
    """The named columns as text; lines with another number of fields than the header are broken.

    Empty lines are skipped. Fields may hold line ends within quotes.

    Args:
        path: a text file whose first line names the columns.
        names: the columns to read.
        delimiter: one character.
        quote: one character, or "" when quotes mean nothing.
        encoding: its name, as Python knows it.

    Raises:
        InputError: no such file or column, an empty file, another encoding.
    """
    text = _Text(path, delimiter, quote, encoding)
    names = list(dict.fromkeys(names))
    require(path, names, text.header())
    broken: list[pacsv.InvalidRow] = []

    def skip(row: pacsv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        table = pacsv.read_csv(
            path,
            # One thread, so that Arrow knows the numbers of the broken lines.
            read_options=pacsv.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, encoding=text.arrow_encoding
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char=quote or False,
                newlines_in_values=bool(quote),
                invalid_row_handler=skip,
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.binary()),
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except UnicodeDecodeError as error:
        raise text.not_decodable(error) from error
    except (OSError, pa.ArrowException) as error:
        first = str(error).split("\n")[0]
        raise InputError(
            f"{path}: cannot be read as a table with {delimiter!r} between fields ({first}); "
            "is a quote never closed? quote= says that quotes mean nothing"
        ) from error
    # Arrow counts the header as row 1, and no empty lines.
    skipped = np.array([row.number - 2 for row in broken], np.int64)

    def places_of(rows: Sequence[int]) -> list[int]:
        before = np.searchsorted(skipped - np.arange(len(skipped)), rows, side="right")
        return text.lines_of((np.asarray(rows) + before).tolist())

    if not len(table) and not broken:
        raise InputError(f"{path}: holds no rows below its header; is it the right file?")
    values, undecodable = _decoded(table)
    lines = text.lines_of(skipped.tolist())
    return Columns(
        path=path,
        unit="line",
        values=values,
        places_of=places_of,
        broken=tuple(map(_broken_line, lines, broken)),
        undecodable=undecodable,
    )


def _broken_line(line: int, row: pacsv.InvalidRow) -> BrokenLine:
    lines = row.text.count("\n") + 1
    problem = f"has {row.actual_columns} fields, must have {row.expected_columns}"
    if lines > 1:
        problem += f", over {lines} lines: is a quote never closed?"
    return BrokenLine(line, problem, lines)


class _Text:
    """The file as text, for what Arrow does not tell: its header, and the lines of its records."""

    def __init__(self, path: Path, delimiter: str, quote: str, encoding: str) -> None:
        self.path = path
        self.encoding = encoding
        try:
            "".encode(encoding)
        except LookupError:
            raise InputError(
                f"{path}: encoding {encoding!r} is not known; name one such as utf-8 or latin-1"
            ) from None
        is_utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")
        # Arrow reads UTF-8 as it is, so that undecodable fields can be told line by line.
        self.arrow_encoding = "utf8" if is_utf8 else encoding
        self.python_encoding = "utf-8-sig" if is_utf8 else encoding
        self.style = {
            "delimiter": delimiter,
            "quotechar": quote or None,
            "quoting": csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        }

    def header(self) -> list[str]:
        """The names of the columns."""
        try:
            with self._open() as opened:
                names = next((row for row in csv.reader(opened, **self.style) if row), None)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        except UnicodeError as error:
            raise self.not_decodable(error) from error
        except csv.Error as error:
            raise InputError(f"{self.path}: line 1 cannot be read as a header: {error}") from error
        if names is None:
            raise InputError(f"{self.path}: is empty; its first line must name the columns")
        if any("\N{REPLACEMENT CHARACTER}" in name for name in names):
            raise self.not_decodable("see its first line")
        return names

    def lines_of(self, records: Sequence[int]) -> list[int]:
        """The line (from 1) in which each record (from 0, header not counted) begins, ascending.

        Reads the file again: only called for damaged lines, a few at a time.
        """
        wanted = set(records)
        lines: dict[int, int] = {}
        last = max(wanted, default=-1)
        with self._open() as opened:
            reader = csv.reader(opened, **self.style)
            record, begins = -1, 1
            try:
                for row in reader:
                    if row:
                        if record in wanted:
                            lines[record] = begins
                        record += 1
                    if record > last:
                        break
                    begins = reader.line_num + 1
            except csv.Error:  # a field longer than Python's limit: the record's number must do
                pass
        return [lines.get(record, record + 2) for record in records]

    def _open(self) -> TextIO:
        return self.path.open(encoding=self.python_encoding, errors="replace", newline="")

    def not_decodable(self, error: UnicodeError | str) -> InputError:
        """For files that are not in their encoding as a whole."""
        return InputError(
            f"{self.path}: is not text in the encoding {self.encoding} ({error}); set encoding, "
            "e.g. encoding=latin-1"
        )


def _decoded(table: pa.Table) -> tuple[dict[str, pa.Array], dict[str, BoolArray]]:
    """``values`` and ``undecodable`` of :class:`Columns` from columns of bytes."""
    values: dict[str, pa.Array] = {}
    undecodable: dict[str, BoolArray] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        try:
            values[name] = column.cast(pa.large_string())
        except pa.ArrowException:  # some field is not UTF-8; only then look at each
            texts = [value.decode("utf-8", "replace") for value in column.to_pylist()]
            values[name] = pa.array(texts, pa.large_string())
            rows = [
                text.encode() != value
                for text, value in zip(texts, column.to_pylist(), strict=True)
            ]
            undecodable[name] = np.array(rows, bool)
    return values, undecodable
