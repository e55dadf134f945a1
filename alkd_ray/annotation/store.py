"""The store: every question asked, every answer received as it came, and what was read from it.

Raw answers are kept for good and never changed, so a better parser reads them again for nothing,
and a run that asks a question asked before finds the answer here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from alkd_ray.annotation.database import Database, now
from alkd_ray.types import IntArray, Usage

KEYS_PER_QUERY = 10_000
RANKING_COLUMNS = "request_key, parser_version, ranking, repairs, failure"


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A question as asked.

    Attributes:
        key: SHA-256 of the canonical request, hex.
        endpoint: identity of the endpoint.
        model: the model's name as sent.
        kind: ``rank`` or ``hints``.
        prompt_version: version of the prompt, e.g. ``rank.v1``.
        session_id: the session it is about; -1 where it is about none.
        body: the canonical request, JSON.
        stored_at: UTC, ISO 8601.
    """

    key: str
    endpoint: str
    model: str
    kind: str
    prompt_version: str
    session_id: int
    body: str
    stored_at: str


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as received.

    Attributes:
        key: the request's key.
        attempt: 1 for the first answer to the request, 2 for the answer when asked again.
        raw: the body's text as received.
        finish_reason: as the endpoint gave it ("" for none).
        usage: tokens as billed; None where the endpoint did not say.
        cost_microusd: what was settled for it.
        hold_id: the ledger's hold that paid for it.
        received_at: UTC, ISO 8601.
    """

    key: str
    attempt: int
    raw: str
    finish_reason: str
    usage: Usage | None
    cost_microusd: int
    hold_id: str
    received_at: str


@dataclass(frozen=True, slots=True)
class StoredRanking:
    """What a version of the parser read from a request's answers.

    Attributes:
        key: the request's key.
        parser_version: the parser.
        ranking: ``[<= wanted]`` int64 items, best first; empty when failed.
        repairs: what had to be repaired, by name, in order.
        failure: "" or why there is no ranking.
    """

    key: str
    parser_version: str
    ranking: IntArray
    repairs: tuple[str, ...]
    failure: str


@dataclass(frozen=True, slots=True)
class StoredFailure:
    """Why a request got no answer; the latest reason counts."""

    key: str
    is_permanent: bool
    reason: str
    failed_at: str


@dataclass(frozen=True, slots=True)
class Spent:
    """What all answers to one request took together."""

    answers: int
    prompt_tokens: int
    completion_tokens: int
    cost_microusd: int


class Store:
    """Requests, answers, rankings and failures in one database of books.

    Every writing method is one transaction, joined to the caller's where one is open (see
    :class:`~alkd_ray.annotation.database.Database`): an answer is stored in the transaction that
    settles its hold. Reading methods take any number of keys and return those that are there.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def put_request(
        self,
        key: str,
        *,
        endpoint: str,
        model: str,
        kind: str,
        prompt_version: str,
        session_id: int,
        body: str,
    ) -> None:
        """Records a question; the same key a second time changes nothing.

        The fields are those of :class:`StoredRequest`. The body holds no secret: the endpoint's
        key travels in a header.
        """
        with self.database.transaction():
            self.database.execute(
                "INSERT INTO requests (request_key, endpoint, model, kind, prompt_version, "
                "session_id, body, stored_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (request_key) DO NOTHING",
                (key, endpoint, model, kind, prompt_version, session_id, body, now()),
            )

    def put_answer(
        self,
        key: str,
        attempt: int,
        raw: str,
        *,
        usage: Usage | None,
        cost_microusd: int,
        hold_id: str,
        finish_reason: str = "",
    ) -> int:
        """Stores an answer exactly as received, before anybody reads it.

        No answer replaces another: where the attempt has an answer already (it was asked again
        after a crash, and the late answer came too), this one gets the next free number.

        Returns:
            The number it is stored under.
        """
        tokens = (None, None, None)
        if usage is not None:
            tokens = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        with self.database.transaction():
            taken, last = self.database.execute(
                "SELECT coalesce(max(CASE WHEN attempt = ? THEN 1 ELSE 0 END), 0), "
                "coalesce(max(attempt), 0) FROM answers WHERE request_key = ?",
                (attempt, key),
            ).fetchone()
            number = last + 1 if taken else attempt
            self.database.execute(
                "INSERT INTO answers (request_key, attempt, raw, finish_reason, prompt_tokens, "
                "completion_tokens, cached_tokens, cost_microusd, hold_id, received_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, number, _bytes(raw), finish_reason, *tokens, cost_microusd, hold_id, now()),
            )
        return number

    def put_parsed(
        self,
        key: str,
        *,
        parser_version: str,
        ranking: Sequence[int] | IntArray,
        repairs: Sequence[str] = (),
        failure: str = "",
    ) -> None:
        """Records what the parser read; the same version again replaces what it read before."""
        with self.database.transaction():
            self.database.execute(
                "INSERT INTO parsed (request_key, parser_version, ranking, repairs, failure) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (request_key, parser_version) DO UPDATE SET "
                "ranking = excluded.ranking, repairs = excluded.repairs, "
                "failure = excluded.failure",
                (
                    key,
                    parser_version,
                    json.dumps([int(item) for item in ranking], separators=(",", ":")),
                    json.dumps(list(repairs), ensure_ascii=False),
                    failure,
                ),
            )

    def put_failure(self, key: str, *, permanent: bool, reason: str) -> None:
        """Records why a request got no answer; ``permanent`` = asking again is of no use."""
        with self.database.transaction():
            self.database.execute(
                "INSERT INTO failures (request_key, permanent, reason, failed_at) "
                "VALUES (?, ?, ?, ?)",
                (key, permanent, reason, now()),
            )

    def ask_again(self, keys: Iterable[str], why: str) -> None:
        """Takes back that requests were refused for good: the next pass asks them again."""
        with self.database.transaction():
            for key in keys:
                self.put_failure(key, permanent=False, reason=why)

    def requests(self, keys: Iterable[str]) -> dict[str, StoredRequest]:
        """Key -> the question."""
        rows = self._rows(
            "SELECT request_key, endpoint, model, kind, prompt_version, session_id, body, "
            "stored_at FROM requests WHERE request_key IN (SELECT value FROM json_each(?))",
            keys,
        )
        return {row[0]: StoredRequest(*row) for row in rows}

    def answers(self, keys: Iterable[str]) -> dict[str, list[StoredAnswer]]:
        """Key -> its answers with their raw bodies, by attempt."""
        rows = self._rows(
            "SELECT request_key, attempt, raw, finish_reason, prompt_tokens, completion_tokens, "
            "cached_tokens, cost_microusd, hold_id, received_at FROM answers "
            "WHERE request_key IN (SELECT value FROM json_each(?)) ORDER BY request_key, attempt",
            keys,
        )
        found: dict[str, list[StoredAnswer]] = {}
        for key, attempt, raw, finish, prompt, completion, cached, *paid in rows:
            usage = None if prompt is None else Usage(prompt, completion, cached)
            answer = StoredAnswer(key, attempt, _text(raw), finish, usage, *paid)
            found.setdefault(key, []).append(answer)
        return found

    def spent(self, keys: Iterable[str]) -> dict[str, Spent]:
        """Key -> tokens and cost of all its answers; their bodies are not read."""
        rows = self._rows(
            "SELECT request_key, count(*), coalesce(sum(prompt_tokens), 0), "
            "coalesce(sum(completion_tokens), 0), sum(cost_microusd) FROM answers "
            "WHERE request_key IN (SELECT value FROM json_each(?)) GROUP BY request_key",
            keys,
        )
        return {key: Spent(*sums) for key, *sums in rows}

    def parsed(self, keys: Iterable[str], parser_version: str) -> dict[str, StoredRanking]:
        """Key -> what this version of the parser read from its answers."""
        rows = self._rows(
            f"SELECT {RANKING_COLUMNS} FROM parsed "  # noqa: S608 - our own column names
            "WHERE request_key IN (SELECT value FROM json_each(?)) AND parser_version = ?",
            keys,
            parser_version,
        )
        return {row[0]: _ranking_of(row) for row in rows}

    def latest_parsed(self, keys: Iterable[str]) -> dict[str, StoredRanking]:
        """Key -> what the latest parser that looked at its answers read."""
        rows = self._rows(
            f"SELECT {RANKING_COLUMNS} FROM parsed "  # noqa: S608 - our own column names
            "WHERE request_key IN (SELECT value FROM json_each(?)) ORDER BY number",
            keys,
        )
        return {row[0]: _ranking_of(row) for row in rows}

    def failures(self, keys: Iterable[str]) -> dict[str, StoredFailure]:
        """Key -> its latest failure."""
        rows = self._rows(
            "SELECT request_key, permanent, reason, failed_at FROM failures "
            "WHERE request_key IN (SELECT value FROM json_each(?)) ORDER BY number",
            keys,
        )
        return {
            key: StoredFailure(key, bool(permanent), reason, failed_at)
            for key, permanent, reason, failed_at in rows
        }

    def export(self, folder: Path) -> None:
        """Writes ``requests``, ``answers``, ``rankings`` and ``failures`` as ``.parquet`` files.

        They show one instant of the books, and each takes its name when it is whole.
        """
        from alkd_ray.annotation.export import write_parquet

        folder.mkdir(parents=True, exist_ok=True)
        with self.database.transaction():
            write_parquet(self.database, folder)

    def _rows(self, sql: str, keys: Iterable[str], *parameters: Any) -> Iterator[tuple[Any, ...]]:
        """Rows for the keys, many keys a query; the first parameter of ``sql`` is their list."""
        distinct = iter(dict.fromkeys(keys))
        while chunk := list(islice(distinct, KEYS_PER_QUERY)):
            yield from self.database.execute(sql, (json.dumps(chunk), *parameters))


def _ranking_of(row: tuple[Any, ...]) -> StoredRanking:
    """The ranking of a row of :data:`RANKING_COLUMNS`."""
    key, version, ranking, repairs, failure = row
    items = np.asarray(json.loads(ranking), np.int64)
    return StoredRanking(key, version, items, tuple(json.loads(repairs)), failure)


def _bytes(raw: str) -> bytes:
    # An answer may hold halves of surrogate pairs (from JSON escapes), which UTF-8 has no form for.
    return raw.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
