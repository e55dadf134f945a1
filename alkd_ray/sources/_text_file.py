"""A table's file as text: its header, its lines, and the records whose quotes are never closed."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import pyarrow as pa

from alkd_ray.errors import InputError

BLOCK_BYTES = 16 << 20
"""What Arrow parses at a time; a record may reach from one block into the next, but no further."""

_ROWS, _WIDTH = 3, 3
"""A field may hold fewer lines that look like rows, and any in narrower tables: that is chance."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PACKED = (b"BZh", b"\xfd7zXZ\x00", b"(\xb5/\xfd")  # bzip2, xz, zstd
_OTHER_FORMS = (
    ((b"\x1f\x8b",), "is packed by gzip; give its name the ending .gz"),
    ((b"PK\x03\x04", *_PACKED), "is a packed file; unpack it (of packed files only .gz is read)"),
    ((b"PAR1",), "is Parquet; give its name the ending .parquet"),
    (
        (b'{"', b"{'", b"[{"),
        "holds JSON, not a table; make one of it, "
        "e.g. with pandas.read_json(path, lines=True).to_parquet('log.parquet')",
    ),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record: a line, or several when a quoted field holds line ends.

    Attributes:
        number: from 0; a header is -1.
        begins: its first line, from 1.
        lines: how many lines it takes.
    """

    number: int
    begins: int
    lines: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What one reading of a file finds.

    Attributes:
        lines: all its lines, the header and empty ones included.
        ends_open: whether a quote in its last line, read alone, is not closed.
        is_decodable: whether all its bytes are text in its encoding.
    """

    lines: int
    ends_open: bool
    is_decodable: bool


class TextFile:
    """What Arrow does not tell of a table that is text, gzip'ed or not.

    Attributes:
        path: the file.
        is_utf8: whether it is read as UTF-8, in which damage is told line by line.
    """

    def __init__(
        self, path: Path, *, delimiter: str, quote: str, encoding: str, columns: Sequence[str]
    ) -> None:
        """See :func:`~alkd_ray.sources._delimited.read_delimited` for the arguments."""
        self.path = path
        self.encoding = encoding
        try:
            "".encode(encoding)
        except (LookupError, ValueError):
            raise InputError(
                f"{path}: encoding {encoding!r} is not known; name one such as utf-8 or latin-1"
            ) from None
        self.is_utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")
        self._python_encoding = "utf-8-sig" if self.is_utf8 else encoding
        self._columns = columns
        self._is_gzip = path.suffix.lower() == ".gz"
        self._style = {
            "delimiter": delimiter,
            "quotechar": quote or None,
            "quoting": csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        }

    def header(self) -> list[str]:
        """The names of the columns.

        Raises:
            InputError: the file cannot be read, is empty, or is no table of text.
        """
        with self._readable():
            self._check_form()
            if self._columns:
                return list(self._columns)
            try:
                with self._open() as opened:
                    rows = csv.reader(opened, strict=True, **self._style)
                    names = next((row for row in rows if row), None)
            except csv.Error as error:
                raise InputError(
                    f"{self.path}: line 1 cannot be read as a header: {error}"
                ) from error
        if names is None:
            raise InputError(f"{self.path}: is empty; its first line must name the columns")
        if any("\N{REPLACEMENT CHARACTER}" in name for name in names):
            raise self._not_decodable("see its first line")
        return names

    def survey(self) -> Survey:
        """Reads the whole file once.

        Raises:
            InputError: it is not in its encoding, unless that is UTF-8.
        """
        with self._readable():
            try:
                return self._survey("strict")
            except UnicodeError:
                if not self.is_utf8:
                    raise
                return self._survey("replace")

    def for_arrow(self, survey: Survey) -> pa.NativeFile:
        """The file's bytes, unpacked; those that are not UTF-8 stand as U+FFFD.

        Arrow would fail at a line that is both undecodable and of the wrong width, so that such a
        file is mended in memory first.
        """
        if survey.is_decodable:
            packing = "gzip" if self._is_gzip else None
            return pa.input_stream(str(self.path), compression=packing)
        with self._open() as opened:
            return pa.BufferReader(opened.read().encode())

    def records(self, numbers: Sequence[int]) -> list[Record]:
        """The records of these numbers (from 0, header not counted).

        Reads the file again: only called for damaged ones.
        """
        wanted = set(numbers)
        last = max(wanted, default=-1)
        found: dict[int, Record] = {}
        for record, _ in self._records() if wanted else ():
            if record.number in wanted:
                found[record.number] = record
            if record.number >= last:
                break
        return [found[number] for number in numbers]

    def unclosed(self) -> list[Record]:
        """The records in which a quote is never closed, or far from where it should be.

        They are over several lines, or the last; a quote in them is closed amid a field, or not at
        all, or only after lines that are rows themselves. Arrow reads them as if nothing were
        amiss, and the lines that they swallow are lost. Reads the file again: only called for
        files with records over several lines.
        """
        return [
            record
            for record, text in self._records()
            if text and record.number >= 0 and not self._is_well_formed(text)
        ]

    def _records(self) -> Iterator[tuple[Record, list[str]]]:
        """The records as Arrow bounds them; beside one with line ends in it, its lines."""
        held: list[str] = []

        def lines(opened: TextIO) -> Iterator[str]:
            for line in opened:
                held.append(line)
                yield line
            yield "\n"  # what a quote that is still open swallows, though it stand in the last line

        with self._open() as opened, _long_fields():
            reader = csv.reader(lines(opened), **self._style)
            number, begins = 0 if self._columns else -1, 1
            for row in reader:
                if row:
                    text = held.copy() if reader.line_num > begins else []
                    yield Record(number, begins, len(held)), text
                    number += 1
                begins = reader.line_num + 1
                held.clear()

    def _is_well_formed(self, lines: Sequence[str]) -> bool:
        with _long_fields():
            try:
                fields = next(csv.reader(lines, strict=True, **self._style))
            except csv.Error:
                return False
        return not any(self._holds_rows(field, len(fields)) for field in fields)

    def _holds_rows(self, field: str, width: int) -> bool:
        """Whether nine of ten lines within a field have the delimiters of a row, not of prose."""
        within = field.splitlines()[1:-1]
        alike = sum(line.count(str(self._style["delimiter"])) == width - 1 for line in within)
        return len(within) >= _ROWS and width >= _WIDTH and alike >= 0.9 * len(within)

    def _survey(self, errors: str) -> Survey:
        count, last = 0, ""
        with self._open(errors) as opened:
            for count, last in enumerate(opened, 1):  # noqa: B007
                pass
        return Survey(count, self._is_open(last), is_decodable=errors == "strict")

    def _is_open(self, line: str) -> bool:
        with _long_fields():
            reader = csv.reader([line, "\n"], **self._style)
            try:
                next(reader)
            except csv.Error:  # too long for Arrow too
                return True
        return reader.line_num > 1

    def _open(self, errors: str = "replace") -> TextIO:
        return io.TextIOWrapper(
            self._open_bytes(), encoding=self._python_encoding, errors=errors, newline=""
        )

    def _open_bytes(self) -> BinaryIO:
        return cast("BinaryIO", gzip.open(self.path) if self._is_gzip else self.path.open("rb"))

    def _check_form(self) -> None:
        """Raises an InputError for the usual files that are no text, or no table."""
        with self._open_bytes() as opened:
            start = opened.read(64)
        if self.is_utf8 and start.startswith(_UTF16):
            raise InputError(
                f"{self.path}: is not text in the encoding {self.encoding} (it begins as UTF-16 "
                "does); set encoding=utf-16"
            )
        for prefixes, what in _OTHER_FORMS:
            if start.lstrip().startswith(prefixes):
                raise InputError(f"{self.path}: {what}")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UnicodeError as error:
            raise self._not_decodable(error) from error
        except (OSError, EOFError, zlib.error) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise InputError(f"{self.path}: cannot be read: {why}") from error

    def _not_decodable(self, error: UnicodeError | str) -> InputError:
        """For files that are not in their encoding as a whole."""
        return InputError(
            f"{self.path}: is not text in the encoding {self.encoding} ({error}); set encoding, "
            "e.g. encoding=latin-1"
        )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lets Python's reader take fields as long as Arrow's; its own limit is 128 KiB."""
    before = csv.field_size_limit(2 * BLOCK_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)
