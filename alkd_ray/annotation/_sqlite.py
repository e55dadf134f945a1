"""Books in a file: SQLite with a write-ahead log, one writer and any number of readers."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alkd_ray.annotation import schema
from alkd_ray.annotation._connection import BooksError, encodable, now
from alkd_ray.errors import InputError

BUSY_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.1
# Statements for many rows are one text for each number of rows.
STATEMENTS_KEPT = 512


class SqliteConnection:
    """One file, opened; see :class:`~alkd_ray.annotation._connection.Connection`.

    A writer holds an exclusive lock on ``<file>.lock`` from opening to closing; the kernel gives
    it back when the process dies, however it dies.
    """

    is_shared = False

    def __init__(self, path: Path, *, read_only: bool, wait_seconds: float) -> None:
        self.path = path
        self.place = str(path)
        self.read_only = read_only
        self.writer = 0
        self._lock: int | None = None
        if read_only and not path.is_file():
            raise InputError(f"{path}: there are no books yet; a run that buys makes them")
        if not read_only:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BooksError(f"{path.parent}: cannot be made: {error}") from error
            self._lock = _lock(path, wait_seconds)
        try:
            self._connection = self._connect()
        except BaseException:
            self._unlock()
            raise

    def begin(self) -> None:
        """See the protocol; a reader's transaction is one view."""
        self.execute("BEGIN" if self.read_only else "BEGIN IMMEDIATE", ())

    def commit(self) -> None:
        """See the protocol."""
        self.execute("COMMIT", ())

    def undo(self, savepoint: str = "") -> None:
        """See the protocol; after some errors (a full disk) SQLite has done so by itself."""
        statements = [f"ROLLBACK TO {savepoint}", f"RELEASE {savepoint}"]
        try:
            if self.is_in_transaction():
                for statement in statements if savepoint else ["ROLLBACK"]:
                    self._connection.execute(statement)
        except sqlite3.Error:
            self._connection.close()  # undoes everything; every later call raises

    def execute(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        """See the protocol."""
        try:
            try:
                return self._connection.execute(sql, parameters)
            except UnicodeEncodeError:
                return self._connection.execute(sql, [encodable(value) for value in parameters])
        except (sqlite3.Error, OverflowError) as error:
            raise BooksError(f"{self.path}: {error}; nothing was recorded") from error

    def groups(self, sql: str, size: int) -> Iterator[list[Any]]:
        """See the protocol."""
        rows = self.execute(sql, ())
        while group := rows.fetchmany(size):
            yield group

    def is_in_transaction(self) -> bool:
        """See the protocol."""
        try:
            return self._connection.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False

    def live_writers(self) -> set[int]:
        """This one: the file has one writer at a time."""
        return {self.writer}

    def close(self) -> None:
        """See the protocol."""
        self._connection.close()
        self._unlock()

    def _connect(self) -> sqlite3.Connection:
        address = self.path.as_uri() + ("?mode=ro" if self.read_only else "?mode=rwc")
        try:
            connection = sqlite3.connect(
                address,
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                cached_statements=STATEMENTS_KEPT,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise BooksError(f"{self.path}: cannot be opened: {error}") from error
        try:
            version = _checked_version(connection, self.path)
            if self.read_only:
                schema.check_readable(version, self.place)
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
    if (tables or version) and application != schema.APPLICATION_ID:
        raise InputError(f"{path}: is a database of another program, not a file of books")
    schema.check_known(version, str(path))
    return version


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Applies what the file has not seen, each migration in a transaction of its own."""
    for number, script in enumerate(schema.MIGRATIONS[version:], start=version + 1):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA application_id = {schema.APPLICATION_ID}; "
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
