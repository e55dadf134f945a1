"""The one SQLite file that holds the ledger and the store of answers.

Both lie in one file so that an answer and its settlement are one transaction: after a crash a
hold is either still open, or settled with its raw answer beside it; never one without the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import time
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alkd_ray.annotation.schema import APPLICATION_ID, MIGRATIONS
from alkd_ray.errors import AlkdError, InputError

FILE_NAME = "books.sqlite"
BUSY_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.1


class BooksError(AlkdError):
    """The file cannot be written, or another process writes it. What was asked did not happen."""


def now() -> str:
    """The instant in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Database:
    """One file of books, with one writer and any number of readers.

    Durability: WAL with ``synchronous=FULL``. When :meth:`transaction` has ended without an
    error, its changes survive kill -9 and a power cut; when it raised, none of them happened.

    Concurrency: a writer holds an exclusive lock on ``<file>.lock`` from opening to closing (the
    kernel gives it back when the process dies, however it dies), so a second writer, in this
    process or another on this machine, fails at once. Readers work beside the writer and see
    committed transactions only. An instance is for one thread, or one event loop, at a time: it
    may be opened in one thread and used in another, never in two at once, and no ``await`` may
    stand inside a :meth:`transaction`.

    Args:
        path: the file; its folder is made when a writer opens it.
        read_only: open beside a writer; everything that would change the file raises.
        wait_seconds: how long to wait for another writer to end before giving up.

    Raises:
        InputError: there is no such file (readers), it is not a file of books, or it was written
            by a newer version.
        BooksError: another process writes it, or it cannot be opened.
    """

    def __init__(
        self, path: str | Path, *, read_only: bool = False, wait_seconds: float = 0.0
    ) -> None:
        self.path = Path(path).resolve()
        self.read_only = read_only
        self.writer = 0  # number of this opening among the file's writers; 0 for readers
        self._depth = 0
        self._lock: int | None = None
        if read_only and not self.path.is_file():
            raise InputError(f"{self.path}: there are no books yet; a run that buys makes them")
        if not read_only:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BooksError(f"{self.path.parent}: cannot be made: {error}") from error
            self._lock = _lock(self.path, wait_seconds)
        try:
            self._connection = self._connect()
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file back; an open transaction is undone. May be called twice."""
        self._connection.close()
        self._unlock()

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """All or nothing; may be nested.

        The outermost one commits, once, however many operations ran inside: this is the group
        commit. A nested one that raises undoes its own changes only, so the caller may catch the
        error of one operation and go on with the others. For a reader: one consistent view.

        Raises:
            BooksError: the commit failed (disk full, file gone); nothing was recorded.
        """
        level = self._depth
        if level and not self._is_in_transaction():
            raise BooksError(
                f"{self.path}: SQLite undid the transaction after an error; nothing was recorded"
            )
        if level:
            begin, commit = f"SAVEPOINT level{level}", f"RELEASE level{level}"
            undo = (f"ROLLBACK TO level{level}", commit)
        else:
            begin, commit = "BEGIN" if self.read_only else "BEGIN IMMEDIATE", "COMMIT"
            undo = ("ROLLBACK",)
        self.execute(begin)
        self._depth = level + 1
        try:
            yield
            self.execute(commit)
        except BaseException:
            self._undo(undo)
            raise
        finally:
            self._depth = level

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs one statement; SQLite's own errors become :class:`BooksError`.

        Text that UTF-8 has no form for (lone surrogates, in an endpoint's messages) is escaped:
        a strange reason must not cost the group its commit.
        """
        try:
            try:
                return self._connection.execute(sql, parameters)
            except UnicodeEncodeError:
                return self._connection.execute(sql, [_encodable(value) for value in parameters])
        except (sqlite3.Error, OverflowError) as error:
            raise BooksError(f"{self.path}: {error}; nothing was recorded") from error

    def _is_in_transaction(self) -> bool:
        try:
            return self._connection.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False

    def _undo(self, statements: Sequence[str]) -> None:
        """Takes changes back; after some errors (a full disk) SQLite has done so by itself.

        What cannot be taken back must not be committed by an outer transaction either: then the
        connection is closed, which undoes everything, and every later call raises.
        """
        try:
            if self._is_in_transaction():
                for statement in statements:
                    self._connection.execute(statement)
        except sqlite3.Error:
            self._connection.close()

    def _connect(self) -> sqlite3.Connection:
        address = self.path.as_uri() + ("?mode=ro" if self.read_only else "?mode=rwc")
        try:
            connection = sqlite3.connect(
                address,
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise BooksError(f"{self.path}: cannot be opened: {error}") from error
        try:
            version = _checked_version(connection, self.path)
            if self.read_only:
                _check_readable(version, self.path)
            else:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                _migrate(connection, version)
                self.writer = _sign_in(connection)
        except sqlite3.Error as error:
            connection.close()
            raise BooksError(f"{self.path}: cannot be opened: {error}") from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _encodable(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _lock(path: Path, wait_seconds: float) -> int:
    """The descriptor of the locked lock file, which names its holder for others to read.

    The file itself stays: removing it would let two writers lock two files of one name.
    """
    lock = path.with_name(path.name + ".lock")
    deadline = time.monotonic() + wait_seconds
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BooksError(f"{lock}: cannot be opened: {error}") from error
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(LOCK_POLL_SECONDS)
                continue
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise BooksError(
                f"{path}: the books are being written by {holder or 'another process'}; "
                "wait until it ends, or end it, and give the same command again "
                "(alkd ledger show works meanwhile)"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise BooksError(
                f"{lock}: cannot be locked: {error}; put the run root on a local disk"
            ) from error
    text = f"process {os.getpid()} on {socket.gethostname()} since {now()}\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    return descriptor


def _checked_version(connection: sqlite3.Connection, path: Path) -> int:
    """How many migrations the file has seen, 0 for a new one."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, unreadable: not the content
            raise
        raise InputError(f"{path}: is damaged, or not a file of books: {error}") from error
    if (tables or version) and application != APPLICATION_ID:
        raise InputError(f"{path}: is a database of another program, not a file of books")
    if version > len(MIGRATIONS):
        raise InputError(
            f"{path}: was written by a newer version (schema {version}, this one knows "
            f"{len(MIGRATIONS)}); update alkd_ray"
        )
    return version


def _check_readable(version: int, path: Path) -> None:
    if version < len(MIGRATIONS):
        raise InputError(
            f"{path}: was written by an older version (schema {version}, this one reads "
            f"{len(MIGRATIONS)}); a run that buys, or alkd ledger resolve, brings it up to date"
        )


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Applies what the file has not seen, each migration in a transaction of its own."""
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {number}; COMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _sign_in(connection: sqlite3.Connection) -> int:
    """Records this opening, so that holds of earlier writers can be told from its own."""
    connection.execute(
        "INSERT INTO writers (process, host, opened_at) VALUES (?, ?, ?)",
        (os.getpid(), socket.gethostname(), now()),
    )
    return connection.execute("SELECT max(id) FROM writers").fetchone()[0]
