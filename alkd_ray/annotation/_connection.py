"""What the books need of a database, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from alkd_ray.errors import AlkdError


class BooksError(AlkdError):
    """The books cannot be reached or written, or another process writes them.

    What was asked did not happen, unless the message says that this is not known.
    """


class BooksLostError(BooksError):
    """The connection to the books was lost, or cannot be made; they may come back."""


def now() -> str:
    """The instant in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Rows(Protocol):
    """What a statement found, row by row; a row is a tuple."""

    def fetchone(self) -> Any:
        """The next row, None after the last."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...

    def fetchmany(self, size: int = ..., /) -> list[Any]:
        """At most ``size`` of them."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """One database, opened; its errors are :class:`BooksError`.

    Attributes:
        place: where it is, for people; without a password.
        writer: number of this opening among the writers, 0 for a reader.
        is_shared: other writers may be at work.
    """

    place: str
    writer: int
    is_shared: bool

    def begin(self) -> None:
        """Begins a transaction; a writer's has the books to itself until it ends."""
        ...

    def commit(self) -> None:
        """Ends the transaction; after this its changes are durable."""
        ...

    def undo(self, savepoint: str = "") -> None:
        """Takes back what was done since ``savepoint``, or the whole transaction; never raises.

        What cannot be taken back is not committed later either.
        """
        ...

    def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """Runs one statement, with ``?`` for parameters."""
        ...

    def groups(self, sql: str, size: int) -> Iterator[list[Any]]:
        """Rows of a statement, ``size`` at a time, inside a transaction; not all are in memory."""
        ...

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, in the database's own view."""
        ...

    def live_writers(self) -> set[int]:
        """Numbers of the writers that have not ended."""
        ...

    def close(self) -> None:
        """Ends it; an open transaction is undone. May be called twice."""
        ...


def encodable(value: Any) -> Any:
    """Text with lone surrogates, which UTF-8 has no form for, escaped; anything else as it is."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
