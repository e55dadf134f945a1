"""The tables of the books, as numbered migrations."""

from __future__ import annotations

import re

from alkd_ray.errors import InputError

# "alkd": in a file's header, so that it is known for books; the class of PostgreSQL's locks.
APPLICATION_ID = 0x616C6B64

# Numbered by position and append-only: books remember how many of these they have seen (in a file
# PRAGMA user_version, in PostgreSQL a table). A released migration is never edited; a change is a
# new one. They are written for SQLite and translated for PostgreSQL, so they keep to the types and
# words that `for_postgres` knows.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE writers (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        process INTEGER NOT NULL,
        host TEXT NOT NULL,
        opened_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE budgets (
        name TEXT PRIMARY KEY,
        cap_microusd INTEGER,
        cap_tokens INTEGER,
        cap_requests INTEGER,
        settled_microusd INTEGER NOT NULL DEFAULT 0 CHECK (settled_microusd >= 0),
        settled_tokens INTEGER NOT NULL DEFAULT 0 CHECK (settled_tokens >= 0),
        settled_requests INTEGER NOT NULL DEFAULT 0 CHECK (settled_requests >= 0),
        held_microusd INTEGER NOT NULL DEFAULT 0 CHECK (held_microusd >= 0),
        held_tokens INTEGER NOT NULL DEFAULT 0 CHECK (held_tokens >= 0),
        held_requests INTEGER NOT NULL DEFAULT 0 CHECK (held_requests >= 0),
        unresolved_microusd INTEGER NOT NULL DEFAULT 0 CHECK (unresolved_microusd >= 0),
        unresolved_tokens INTEGER NOT NULL DEFAULT 0 CHECK (unresolved_tokens >= 0),
        unresolved_requests INTEGER NOT NULL DEFAULT 0 CHECK (unresolved_requests >= 0),
        breached_microusd INTEGER NOT NULL DEFAULT 0 CHECK (breached_microusd >= 0),
        breached_tokens INTEGER NOT NULL DEFAULT 0 CHECK (breached_tokens >= 0),
        breached_requests INTEGER NOT NULL DEFAULT 0 CHECK (breached_requests >= 0),
        open_breaches INTEGER NOT NULL DEFAULT 0 CHECK (open_breaches >= 0),
        opened_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE holds (
        number INTEGER PRIMARY KEY,
        hold_id TEXT NOT NULL UNIQUE,
        budget TEXT NOT NULL REFERENCES budgets (name),
        status TEXT NOT NULL CHECK (status IN ('held', 'settled', 'released', 'unresolved')),
        owner TEXT NOT NULL,
        request_key TEXT NOT NULL,
        kind TEXT NOT NULL,
        writer INTEGER NOT NULL REFERENCES writers (id),
        worst_microusd INTEGER NOT NULL CHECK (worst_microusd >= 0),
        worst_tokens INTEGER NOT NULL CHECK (worst_tokens >= 0),
        worst_requests INTEGER NOT NULL CHECK (worst_requests >= 0),
        actual_microusd INTEGER NOT NULL DEFAULT 0 CHECK (actual_microusd >= 0),
        actual_tokens INTEGER NOT NULL DEFAULT 0 CHECK (actual_tokens >= 0),
        actual_requests INTEGER NOT NULL DEFAULT 0 CHECK (actual_requests >= 0),
        breached INTEGER NOT NULL DEFAULT 0,
        breach_accepted INTEGER NOT NULL DEFAULT 0,
        by_hand INTEGER NOT NULL DEFAULT 0,
        why TEXT NOT NULL DEFAULT '',
        held_at TEXT NOT NULL,
        ended_at TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE UNIQUE INDEX one_in_flight ON holds (request_key)
        WHERE status = 'held' AND request_key <> '';
    CREATE TABLE rates (
        budget TEXT NOT NULL REFERENCES budgets (name),
        model TEXT NOT NULL,
        source TEXT NOT NULL,
        rates TEXT NOT NULL,
        noted_at TEXT NOT NULL,
        PRIMARY KEY (budget, model, source, rates)
    ) STRICT;
    CREATE TABLE requests (
        number INTEGER PRIMARY KEY,
        request_key TEXT NOT NULL UNIQUE,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        kind TEXT NOT NULL,
        prompt_version TEXT NOT NULL,
        session_id INTEGER NOT NULL,
        body TEXT NOT NULL,
        stored_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE answers (
        number INTEGER PRIMARY KEY,
        request_key TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        raw BLOB NOT NULL,
        finish_reason TEXT NOT NULL,
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        cached_tokens INTEGER,
        cost_microusd INTEGER NOT NULL,
        hold_id TEXT NOT NULL,
        received_at TEXT NOT NULL,
        UNIQUE (request_key, attempt)
    ) STRICT;
    CREATE TABLE parsed (
        number INTEGER PRIMARY KEY,
        request_key TEXT NOT NULL,
        parser_version TEXT NOT NULL,
        ranking TEXT NOT NULL,
        repairs TEXT NOT NULL,
        failure TEXT NOT NULL,
        UNIQUE (request_key, parser_version)
    ) STRICT;
    CREATE TABLE failures (
        number INTEGER PRIMARY KEY,
        request_key TEXT NOT NULL,
        permanent INTEGER NOT NULL,
        reason TEXT NOT NULL,
        failed_at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX failures_of_request ON failures (request_key);
    """,
    # A batch outlives the process that submits it: its holds belong to it, not to a writer.
    """
    ALTER TABLE holds ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE holds ADD COLUMN batch TEXT NOT NULL DEFAULT '';
    CREATE INDEX holds_of_batch ON holds (batch) WHERE batch <> '';
    CREATE TABLE batches (
        number INTEGER PRIMARY KEY,
        label TEXT NOT NULL UNIQUE,
        budget TEXT NOT NULL REFERENCES budgets (name),
        owner TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        structured TEXT NOT NULL,
        batch_id TEXT NOT NULL DEFAULT '',
        is_over INTEGER NOT NULL DEFAULT 0,
        outcome TEXT NOT NULL DEFAULT '',
        prepared_at TEXT NOT NULL,
        ended_at TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE TABLE turns (
        endpoint TEXT PRIMARY KEY,
        next_request REAL NOT NULL,
        next_token REAL NOT NULL
    ) STRICT;
    """,
)

# What SQLite calls it -> what PostgreSQL does. Text is compared by its bytes in both.
_IN_POSTGRES = (
    (r"\bINTEGER PRIMARY KEY( AUTOINCREMENT)?\b", "BIGINT_IDENTITY"),
    (r"\bINTEGER\b", "BIGINT"),
    (r"\bBIGINT_IDENTITY\b", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"),
    (r"\bREAL\b", "DOUBLE PRECISION"),
    (r"\bBLOB\b", "BYTEA"),
    (r"\bTEXT\b", 'TEXT COLLATE "C"'),
    (r"\)\s*STRICT\b", ")"),
    # SQLite gives every table without a number of its own one of this name.
    (r"\bCREATE TABLE rates \(", "CREATE TABLE rates (rowid BIGINT GENERATED ALWAYS AS IDENTITY,"),
)
# Whoever waits for others looks for open holds again and again; in a file nobody does.
_INDEX_IN_POSTGRES = "CREATE INDEX open_holds ON holds (budget) WHERE status = 'held';"


def for_postgres(number: int) -> str:
    """Migration ``number`` (the first is 1) in PostgreSQL's words."""
    script = MIGRATIONS[number - 1]
    for pattern, word in _IN_POSTGRES:
        script = re.sub(pattern, word, script)
    return script + _INDEX_IN_POSTGRES if number == 1 else script


def check_known(version: int, place: str) -> None:
    """Raises :class:`InputError` for books with migrations that this code does not know."""
    if version > len(MIGRATIONS):
        raise InputError(
            f"{place}: was written by a newer version (schema {version}, this one knows "
            f"{len(MIGRATIONS)}); update alkd_ray"
        )


def check_readable(version: int, place: str) -> None:
    """Raises :class:`InputError` for books that lack a migration: a reader does not apply it."""
    if version < len(MIGRATIONS):
        raise InputError(
            f"{place}: was written by an older version (schema {version}, this one reads "
            f"{len(MIGRATIONS)}); a run that buys, or alkd ledger resolve, brings it up to date"
        )
