"""Books in PostgreSQL, for several drivers that share a budget. Needs ``alkd_ray[postgres]``.

All tables are in the schema ``alkd`` of the database that the URL names. Locks are advisory ones
of the class :data:`~alkd_ray.annotation.schema.APPLICATION_ID`: number 0 is whose turn it is to
write, any other number is that of a writer, held as long as its session lives. Sessions must
therefore be real: no pooler that gives a session to others between transactions.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psycopg
from psycopg.pq import TransactionStatus

from alkd_ray.annotation import schema
from alkd_ray.annotation._connection import BooksError, BooksLostError, Rows, now
from alkd_ray.annotation._postgres_words import (
    NOTHING,
    NumberLoader,
    adapted,
    line,
    parsed,
    shown,
    translated,
)
from alkd_ray.errors import InputError

CONNECT_SECONDS = 10
# A writer that stands still inside a transaction (a stopped process, a dead network) is cut off
# before those that wait for it give up.
IDLE_IN_TRANSACTION_SECONDS = 60
TURN_SECONDS = 120

_CLASS = schema.APPLICATION_ID
_SESSION = (
    "SET search_path TO alkd; SET synchronous_commit TO on; "
    f"SET lock_timeout TO '{TURN_SECONDS}s'; "
    # The locks of a machine that is gone are free after a minute.
    "SET tcp_keepalives_idle TO 30; SET tcp_keepalives_interval TO 10; "
    "SET tcp_keepalives_count TO 3"
)
_READERS_SESSION = "SET default_transaction_read_only TO on"
_WRITERS_SESSION = f"SET idle_in_transaction_session_timeout TO '{IDLE_IN_TRANSACTION_SECONDS}s'"
# Not REPEATABLE READ: that would look at the books before it is this writer's turn.
_BEGIN_WRITING = (
    f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock({_CLASS}, 0)"
)
_BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_LOCKS_OF_WRITERS = (
    f"FROM pg_locks WHERE locktype = 'advisory' AND classid = {_CLASS} AND objid <> 0 "  # noqa: S608 - our own numbers
    "AND objsubid = 2 AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

_FINDS_NOTHING = (b"INSERT", b"UPDATE", b"DELETE", b"SAVEPOINT", b"RELEASE")
MOST_WAITING = 500


def are_there(url: str) -> bool:
    """Whether the database has books."""
    reader = PostgresConnection(url, read_only=True, must_exist=False)
    try:
        return reader.version > 0
    finally:
        reader.close()


class PostgresConnection:
    """One session; see :class:`~alkd_ray.annotation._connection.Connection`.

    A lost session is replaced at the next transaction, or statement outside one. A transaction
    that was open is not gone on with: its statements and its commit raise. So they do after any
    error of the database's inside a transaction, which costs the whole of it.

    Statements that find nothing (insert, update, savepoint) wait until one that does is run, or
    the commit: a way to the server and back takes longer than they do.
    """

    is_shared = True

    def __init__(self, url: str, *, read_only: bool, must_exist: bool = True) -> None:
        self._parameters = parsed(url)
        self.place = shown(self._parameters)
        self.read_only = read_only
        self.writer = 0
        self.version = 0  # migrations that the books have seen
        self._is_closed = False
        self._is_begun = False
        self._is_doomed = False
        self._waiting: list[tuple[bytes, list[Any] | None]] = []
        self._connection = self._connect()
        try:
            if read_only:
                self._open_for_reading(must_exist)
            else:
                self._open_for_writing()
        except psycopg.Error as error:
            self.close()
            raise BooksError(f"{self.place}: cannot be opened: {line(error)}") from error
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """See the protocol; waits until it is this writer's turn."""
        begin = (_BEGIN_READING if self.read_only else _BEGIN_WRITING).encode()
        try:
            self._run(begin)
        except BooksError:
            self.undo()
            if not self._is_lost():
                raise
            self._run(begin)  # nothing was begun, so a new session may begin it
        self._is_begun = True

    def commit(self) -> None:
        """See the protocol.

        Raises:
            BooksError: a statement failed, so nothing was recorded; or the connection was lost,
                and nobody knows.
        """
        if self._is_doomed:
            raise BooksError(f"{self.place}: a statement failed; nothing was recorded")
        self._run(b"COMMIT", unknown="; whether it was recorded is not known")
        self._is_begun = False

    def undo(self, savepoint: str = "") -> None:
        """See the protocol."""
        if savepoint and self._is_doomed:
            return  # the outermost transaction undoes it with everything else
        begun = (f"SAVEPOINT {savepoint}".encode(), None)
        if savepoint and begun in self._waiting:
            while self._waiting.pop() != begun:
                pass
            return
        self._waiting.clear()
        undo = f"ROLLBACK TO {savepoint}; RELEASE {savepoint}" if savepoint else "ROLLBACK"
        try:
            if self._status() in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                self._connection.execute(undo.encode())
            elif self._status() == TransactionStatus.ACTIVE:  # interrupted in a statement
                raise psycopg.OperationalError
        except psycopg.Error:
            self._connection.close()  # the server undoes everything
            self._is_doomed = True
        if not savepoint:
            self._is_begun = self._is_doomed = False

    def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """See the protocol."""
        statement = translated(sql)
        given = [adapted(value) for value in parameters] or None
        if not self._is_begun or not statement.startswith(_FINDS_NOTHING):
            return self._run(statement, given)
        if self._is_doomed:
            raise BooksError(f"{self.place}: a statement failed; nothing was recorded")
        opened = statement.replace(b"RELEASE", b"SAVEPOINT")
        if statement != opened and self._waiting and self._waiting[-1] == (opened, None):
            self._waiting.pop()  # nothing was done since
            return NOTHING
        self._waiting.append((statement, given))
        if len(self._waiting) >= MOST_WAITING:
            return self._run()
        return NOTHING

    def groups(self, sql: str, size: int) -> Iterator[list[Any]]:
        """See the protocol."""
        try:
            with self._connection.cursor(name="groups") as rows:
                self._run(b"SELECT")  # what waits
                rows.execute(translated(sql))
                while group := rows.fetchmany(size):
                    yield group
        except psycopg.Error as error:
            raise self._said(error) from error

    def is_in_transaction(self) -> bool:
        """See the protocol; false after an error of the database's, though it is to be undone."""
        return self._is_begun and not self._is_doomed and not self._is_lost()

    def live_writers(self) -> set[int]:
        """Those whose sessions hold the locks of their numbers."""
        rows = self._run(f"SELECT objid::bigint {_LOCKS_OF_WRITERS}".encode())
        return {number for (number,) in rows}

    def close(self) -> None:
        """See the protocol. The writer's lock is free when this returns."""
        if not self._connection.closed:
            self.undo()
            with contextlib.suppress(psycopg.Error):  # else it goes with the session
                self._connection.execute("SELECT pg_advisory_unlock_all()")
        self._connection.close()
        self._is_closed = True

    def _run(
        self, statement: bytes = b"", parameters: list[Any] | None = None, unknown: str = ""
    ) -> Rows:
        """Runs what waits, then ``statement``; after a lost connection, by a new one.

        Args:
            statement: empty for none.
            parameters: its.
            unknown: what the error says of a connection that is lost meanwhile.
        """
        if self._is_closed:
            raise BooksError(f"{self.place}: the books were closed; nothing was recorded")
        if self._is_lost() and not self._is_begun:
            self._reconnect()
        waiting, self._waiting = self._waiting, []
        try:
            if not waiting:
                return cast("Rows", self._connection.execute(statement, parameters))
            with self._connection.pipeline():
                for earlier in waiting:
                    self._connection.execute(*earlier)
                return cast("Rows", self._connection.execute(statement or b"SELECT", parameters))
        except psycopg.Error as error:
            self._is_doomed = self._is_begun
            raise self._said(error, unknown if self._is_lost() else "") from error

    def _said(self, error: psycopg.Error, known: str = "") -> BooksError:
        known = known or "; nothing was recorded"
        if self._is_lost():
            return BooksLostError(
                f"{self.place}: the connection was lost ({line(error)}){known}; nothing is sent "
                "without the books; when they are back the same command goes on"
            )
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return BooksError(
                f"{self.place}: another writer has had the books for {TURN_SECONDS} s{known}"
            )
        return BooksError(f"{self.place}: {line(error)}{known}")

    def _is_lost(self) -> bool:
        return self._connection.closed

    def _status(self) -> TransactionStatus:
        return self._connection.info.transaction_status

    def _connect(self) -> psycopg.Connection[Any]:
        defaults = {"connect_timeout": CONNECT_SECONDS, "application_name": "alkd_ray"}
        try:
            connection: psycopg.Connection[Any] = psycopg.connect(
                **{**defaults, **self._parameters, "client_encoding": "utf8"}, autocommit=True
            )
        except psycopg.Error as error:
            raise BooksLostError(
                f"{self.place}: cannot be reached: {line(error)}; nothing is sent without the "
                "books; when they are back the same command goes on"
            ) from error
        connection.adapters.register_loader("numeric", NumberLoader)
        try:
            connection.execute(_SESSION.encode())
            more = _READERS_SESSION if self.read_only else _WRITERS_SESSION
            connection.execute(more.encode())
        except psycopg.Error as error:
            connection.close()
            raise BooksError(f"{self.place}: cannot be opened: {line(error)}") from error
        return connection

    def _reconnect(self) -> None:
        """A new session under the old number.

        Raises:
            BooksError: the server cannot be reached yet.
            InputError: newer code has changed the books meanwhile.
        """
        connection = self._connect()
        self._connection.close()
        self._connection = connection
        try:
            self.version = self._found_version()
            schema.check_known(self.version, self.place)
            if self.writer:
                self._take_number()
        except psycopg.Error as error:
            self._connection.close()
            raise BooksError(f"{self.place}: cannot be opened: {line(error)}") from error
        except BaseException:
            self._connection.close()
            raise

    def _open_for_reading(self, must_exist: bool) -> None:
        self.version = self._found_version()
        schema.check_known(self.version, self.place)
        if self.version:
            schema.check_readable(self.version, self.place)
        elif must_exist:
            raise InputError(f"{self.place}: there are no books yet; a run that buys makes them")

    def _open_for_writing(self) -> None:
        encoding = self._connection.execute("SHOW server_encoding").fetchone()
        if encoding != ("UTF8",):
            raise InputError(f"{self.place}: the database's encoding is not UTF8")
        self._migrate()
        with self._connection.transaction():
            row = self._connection.execute(
                "INSERT INTO writers (process, host, opened_at) VALUES (%s, %s, %s) RETURNING id",
                (os.getpid(), socket.gethostname(), now()),
            ).fetchone()
            assert row is not None
            self.writer = row[0]
            self._take_number()

    def _take_number(self) -> None:
        """Locks the writer's number for the session.

        Nobody else has it, other than a session of this writer's that the server takes for alive.
        """
        lock = f"SELECT pg_try_advisory_lock({_CLASS}, {self.writer})"
        if self._connection.execute(lock.encode()).fetchone() == (True,):
            return
        end = f"SELECT pg_terminate_backend(pid) {_LOCKS_OF_WRITERS} AND objid = {self.writer}"
        self._connection.execute(end.encode())
        self._connection.execute(f"SELECT pg_advisory_lock({_CLASS}, {self.writer})".encode())

    def _migrate(self) -> None:
        """Applies what the books have not seen, in one transaction."""
        with self._connection.transaction():
            self._connection.execute(f"SELECT pg_advisory_xact_lock({_CLASS}, 0)".encode())
            self.version = self._found_version()
            schema.check_known(self.version, self.place)
            if self.version == 0:
                self._make_schema()
            while self.version < len(schema.MIGRATIONS):
                self.version += 1
                self._connection.execute(schema.for_postgres(self.version).encode())
                self._connection.execute(
                    "INSERT INTO schema_version (version, applied_at) VALUES (%s, %s)",
                    (self.version, now()),
                )

    def _make_schema(self) -> None:
        # Asked first: whoever may not make schemas may have been given this one.
        if self._connection.execute("SELECT to_regnamespace('alkd')").fetchone() == (None,):
            self._connection.execute("CREATE SCHEMA alkd")
        self._connection.execute(
            "CREATE TABLE schema_version (version BIGINT PRIMARY KEY, applied_at TEXT NOT NULL)"
        )

    def _found_version(self) -> int:
        """How many migrations the books have seen, 0 where there are none.

        Raises:
            InputError: the schema ``alkd`` holds something else.
        """
        # In one statement: somebody may make the schema between two.
        found = self._connection.execute(
            "SELECT to_regclass('alkd.schema_version'), "
            "(SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('alkd'))"
        ).fetchone()
        assert found is not None
        books, tables = found
        if books is None:
            if tables:
                raise InputError(f"{self.place}: its schema alkd is of another program")
            return 0
        row = self._connection.execute("SELECT coalesce(max(version), 0) FROM schema_version")
        return row.fetchone()[0]  # pyright: ignore[reportOptionalSubscript] - an aggregate
