"""Reads CSV and TSV by Arrow, and says which lines are damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from alkd_ray.errors import InputError
from alkd_ray.sources._columns import BrokenLine, Columns, require
from alkd_ray.sources._text_file import BLOCK_BYTES, Record, TextFile
from alkd_ray.types import BoolArray


def read_delimited(
    path: Path,
    names: Sequence[str],
    *,
    delimiter: str,
    quote: str,
    encoding: str,
    columns: Sequence[str] = (),
) -> Columns:
    """The named columns as text; lines with another number of fields than the header are broken.

    So are records in which a quote is never closed. Empty lines are skipped. Fields may hold line
    ends within quotes.

    Args:
        path: a text file, packed by gzip if it ends in ``.gz``.
        names: the columns to read.
        delimiter: one character.
        quote: one character, or "" when quotes mean nothing.
        encoding: its name, as Python knows it.
        columns: the names of all columns; () when the first line names them.

    Raises:
        InputError: no such file or column, an empty file, another encoding or form.
    """
    text = TextFile(path, delimiter=delimiter, quote=quote, encoding=encoding, columns=columns)
    names = list(dict.fromkeys(names))
    hint = "" if columns else "; a table without a header line needs columns="
    require(path, names, text.header(), hint)
    survey = text.survey()
    broken: list[pacsv.InvalidRow] = []

    def skip(row: pacsv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    try:
        table = pacsv.read_csv(
            text.for_arrow(survey),
            # One thread, so that Arrow knows the numbers of the broken lines.
            read_options=pacsv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                column_names=list(columns) or None,
                encoding="utf8" if text.is_utf8 else encoding,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char=quote or False,
                newlines_in_values=bool(quote),
                invalid_row_handler=skip,
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.large_string()),
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except (OSError, pa.ArrowException) as error:
        first = str(error).split("\n")[0]
        raise InputError(
            f"{path}: cannot be read as a table with {delimiter!r} between fields ({first}); "
            "is a quote never closed? quote= says that quotes mean nothing"
        ) from error
    if not len(table) and not broken:
        raise InputError(f"{path}: holds no rows below its header; is it the right file?")
    headers = 0 if columns else 1
    # Arrow counts from 1, the header too, but no empty lines.
    skipped = np.array([row.number - 1 - headers for row in broken], np.int64)
    lost = list(map(_broken_line, text.records(skipped.tolist()), broken))
    # When every record takes one line and the last is closed, no quote swallowed a line.
    if quote and (survey.ends_open or survey.lines > headers + len(table) + len(broken)):
        unclosed = [row for row in text.unclosed() if row.number not in set(skipped.tolist())]
        numbers = np.array([row.number for row in unclosed], np.int64)
        keep = np.ones(len(table), bool)
        keep[numbers - np.searchsorted(skipped, numbers)] = False
        table = table.filter(pa.array(keep))
        skipped = np.sort(np.append(skipped, numbers))
        lost += map(_unclosed_line, unclosed)

    def places_of(rows: Sequence[int]) -> list[int]:
        before = np.searchsorted(skipped - np.arange(len(skipped)), rows, side="right")
        return [row.begins for row in text.records((np.asarray(rows) + before).tolist())]

    values = {name: table[name].combine_chunks() for name in names}
    return Columns(
        path=path,
        unit="line",
        values=values,
        places_of=places_of,
        broken=tuple(lost),
        undecodable={} if survey.is_decodable else {n: _damaged(v) for n, v in values.items()},
    )


def _broken_line(record: Record, row: pacsv.InvalidRow) -> BrokenLine:
    problem = f"has {row.actual_columns} fields, must have {row.expected_columns}"
    if record.lines > 1:
        problem += f", over {record.lines} lines: is a quote never closed?"
    return BrokenLine(record.begins, problem, record.lines)


def _unclosed_line(record: Record) -> BrokenLine:
    over = f", over {record.lines} lines" if record.lines > 1 else ""
    problem = f"holds a quote that is never closed{over} (quote= says that quotes mean nothing)"
    return BrokenLine(record.begins, problem, record.lines)


def _damaged(values: pa.Array) -> BoolArray:
    """``[R]`` True where bytes were replaced, or had been before the file was written."""
    return np.array(["\N{REPLACEMENT CHARACTER}" in text for text in values.to_pylist()], bool)
