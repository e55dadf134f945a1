"""The one database that holds the ledger and the store of answers: a file, or PostgreSQL.

Both lie in one database so that an answer and its settlement are one transaction: after a crash a
hold is either still open, or settled with its raw answer beside it; never one without the other.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from alkd_ray.annotation._connection import BooksError, BooksLostError, Connection, Rows, now
from alkd_ray.annotation._sqlite import SqliteConnection
from alkd_ray.errors import InputError

__all__ = [
    "BOOKS_ENVIRONMENT",
    "FILE_NAME",
    "BooksError",
    "BooksLostError",
    "Database",
    "Rows",
    "are_there",
    "books_of",
    "is_url",
    "now",
]

FILE_NAME = "books.sqlite"
# The books' URL for commands without a config, and for configs that name none.
BOOKS_ENVIRONMENT = "ALKD_BOOKS"
# A server that is started again, or gives way to another one, is back by then.
PATIENCE_SECONDS = 60.0
RETRY_SECONDS = 0.5
# Some 1,300 parameters at most; SQLite takes 32,766.
ROWS_A_STATEMENT = 64

_ONE_ROW = re.compile(r"VALUES (\([?, ]+\))")

T = TypeVar("T")


def books_of(url: str, folder: Path) -> Path | str:
    """Where the books are: at ``url``, else at ``ALKD_BOOKS``, else in a file below ``folder``."""
    return url or os.environ.get(BOOKS_ENVIRONMENT, "") or folder / FILE_NAME


def is_url(books: Path | str) -> bool:
    """Whether these are books on a server."""
    return isinstance(books, str) and "://" in books


def are_there(books: Path | str) -> bool:
    """Whether somebody has written these books.

    Raises:
        BooksError: the server cannot be reached.
    """
    if is_url(books):
        return _on_server().are_there(str(books))
    return Path(books).is_file()


class Database:
    """Books: a file with one writer and any number of readers, or PostgreSQL with many of both.

    Durability: SQLite's WAL with ``synchronous=FULL``, PostgreSQL's with ``synchronous_commit``.
    When :meth:`transaction` has ended without an error, its changes survive kill -9 and a power
    cut; when it raised, none of them happened. The one exception says so: a server that dies
    while it commits leaves open whether it did, as it would with any other client.

    Concurrency: a file's writer locks ``<file>.lock`` from opening to closing, so a second one, in
    this process or another on this machine, fails at once. PostgreSQL takes any number of writers,
    whose transactions wait for each other, each from its beginning to its end: what one reads
    stands until it has written. Readers work beside writers and see committed transactions only.
    An instance is for one thread, or one event loop, at a time: it may be opened in one thread and
    used in another, never in two at once, and no ``await`` may stand inside a :meth:`transaction`.

    Liveness: every writer has a number, and its lock goes with its process or its connection.
    After a lost connection the next transaction connects again, under the same number.

    Args:
        books: a file, whose folder is made when a writer opens it, or ``postgresql://...``.
        read_only: open beside writers; everything that would change the books raises.
        wait_seconds: how long to wait for a file's other writer to end before giving up.

    Raises:
        InputError: there are no books (readers), these are not books, or they were written by a
            newer version.
        BooksError: another process writes the file, or the books cannot be opened.
    """

    def __init__(
        self, books: str | Path, *, read_only: bool = False, wait_seconds: float = 0.0
    ) -> None:
        self.read_only = read_only
        self._depth = 0
        self._connection = _opened(books, read_only, wait_seconds)
        self.place = self._connection.place  # for people
        self.path = None if is_url(books) else Path(books).resolve()
        self.is_shared = self._connection.is_shared

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def writer(self) -> int:
        """Number of this opening among the writers; 0 for readers."""
        return self._connection.writer

    def live_writers(self) -> set[int]:
        """Numbers of the writers that have not ended, this one among them."""
        return self._connection.live_writers()

    def close(self) -> None:
        """Gives the books back; an open transaction is undone. May be called twice."""
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """All or nothing; may be nested.

        The outermost one commits, once, however many operations ran inside: this is the group
        commit. A nested one that raises undoes its own changes only, so the caller may catch the
        error of one operation and go on with the others. For a reader: one consistent view.

        Raises:
            BooksError: the commit failed (disk full, file or connection gone); nothing was
                recorded, unless it says otherwise.
        """
        level = self._depth
        savepoint = f"level{level}" if level else ""
        if not level:
            self._connection.begin()
        elif self._connection.is_in_transaction():
            self.execute(f"SAVEPOINT {savepoint}")
        else:
            raise BooksError(
                f"{self.place}: the database undid the transaction after an error; nothing was "
                "recorded"
            )
        self._depth = level + 1
        try:
            yield
            if level:
                self.execute(f"RELEASE {savepoint}")
            else:
                self._connection.commit()
        except BaseException:
            self._connection.undo(savepoint)
            raise
        finally:
            self._depth = level

    def groups(self, sql: str, size: int) -> Iterator[list[Any]]:
        """Rows of a statement, ``size`` at a time; the caller holds a transaction."""
        return self._connection.groups(sql, size)

    def patiently(self, act: Callable[[bool], T]) -> T:
        """What ``act`` returns; while a lost server is not back, it is called again.

        Args:
            act: uses the books. It is told whether an earlier call was cut off, perhaps after its
                commit, and then must not do twice what may not be done twice.

        Raises:
            BooksError: the server was not back in time, or a transaction is open that went with
                the connection.
        """
        ends = time.monotonic() + PATIENCE_SECONDS
        again = False
        while True:
            try:
                return act(again)
            except BooksLostError:
                if self._depth or time.monotonic() > ends:
                    raise
                again = True
                time.sleep(RETRY_SECONDS)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Runs one statement with ``?`` for parameters; errors become :class:`BooksError`.

        Text that the database has no form for (lone surrogates, in an endpoint's messages) is
        escaped: a strange reason must not cost the group its commit.
        """
        return self._connection.execute(sql, parameters)

    def execute_rows(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for many rows: in few steps, each of which lets other threads run.

        Args:
            sql: the statement for one row, with ``VALUES (?, ?, ...)`` in it. It changes books and
                finds nothing.
            rows: the parameters of each; for none nothing is run.
        """
        for start in range(0, len(rows), ROWS_A_STATEMENT):
            some = rows[start : start + ROWS_A_STATEMENT]
            self.execute(_for_rows(sql, len(some)), list(itertools.chain.from_iterable(some)))


# Each number of rows is a text of its own, and so a prepared statement of its own.
@functools.lru_cache(maxsize=1_024)
def _for_rows(sql: str, count: int) -> str:
    """The statement for ``count`` rows."""
    return _ONE_ROW.sub(lambda found: f"VALUES {', '.join([found[1]] * count)}", sql)


def _opened(books: str | Path, read_only: bool, wait_seconds: float) -> Connection:
    if not is_url(books):
        path = Path(books).resolve()
        return SqliteConnection(path, read_only=read_only, wait_seconds=wait_seconds)
    if not str(books).startswith(("postgresql://", "postgres://")):
        raise InputError(
            "the books' URL must begin with postgresql:// (a file is named by its path)"
        )
    return _on_server().PostgresConnection(str(books), read_only=read_only)


def _on_server() -> ModuleType:
    try:
        from alkd_ray.annotation import _postgres
    except ImportError as error:
        raise InputError(
            "books in PostgreSQL need another package: pip install 'alkd_ray[postgres]'"
        ) from error
    return _postgres
