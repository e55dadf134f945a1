"""The store: every question asked, every answer received as it came, and what was read from it.

Raw answers are kept for good and never changed, so a better parser reads them again for nothing,
and a run that asks a question asked before finds the answer here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from alkd_ray.annotation.database import Database, now
from alkd_ray.annotation.stored import (
    Spent,
    StoredAnswer,
    StoredFailure,
    StoredRanking,
    StoredRequest,
)
from alkd_ray.types import IntArray, Usage

__all__ = ["Spent", "Store", "StoredAnswer", "StoredFailure", "StoredRanking", "StoredRequest"]

KEYS_PER_QUERY = 10_000
_COMPACT = json.JSONEncoder(separators=(",", ":"))
_UNESCAPED = json.JSONEncoder(ensure_ascii=False)
RANKING_COLUMNS = "request_key, parser_version, ranking, repairs, failure"


class Store:
    """Requests, answers, rankings and failures in one database of books.

    Every method that writes one thing is one transaction, joined to the caller's where one is open
    (see :class:`~alkd_ray.annotation.database.Database`): an answer is stored in the transaction
    that settles its hold. Those that write many are for a transaction that the caller holds.
    Reading methods take any number of keys and return those that are there.
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
        asked = StoredRequest(key, endpoint, model, kind, prompt_version, session_id, body, now())
        with self.database.transaction():
            self.put_requests([asked])

    def put_requests(self, requests: Sequence[StoredRequest]) -> None:
        """Records questions; those that are there stay as they are."""
        self.database.execute_rows(
            "INSERT INTO requests (request_key, endpoint, model, kind, prompt_version, "
            "session_id, body, stored_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (request_key) DO NOTHING",
            [
                (
                    asked.key,
                    asked.endpoint,
                    asked.model,
                    asked.kind,
                    asked.prompt_version,
                    asked.session_id,
                    asked.body,
                    asked.stored_at,
                )
                for asked in requests
            ],
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
        answer = StoredAnswer(
            key, attempt, raw, finish_reason, usage, cost_microusd, hold_id, now()
        )
        with self.database.transaction():
            return self.put_answers([answer], self.attempts([key]))[0]

    def put_answers(
        self, answers: Sequence[StoredAnswer], taken: defaultdict[str, set[int]]
    ) -> list[int]:
        """Stores answers in their order, each as :meth:`put_answer` does.

        Args:
            answers: their attempts are the numbers that they are wanted under.
            taken: key -> the numbers that its answers in the store have, from :meth:`attempts` in
                the same transaction. Those of ``answers`` are added.

        Returns:
            The number of each.
        """
        rows: list[tuple[Any, ...]] = []
        for answer in answers:
            numbers = taken[answer.key]
            is_free = answer.attempt not in numbers
            number = answer.attempt if is_free else max(numbers) + 1
            numbers.add(number)
            usage = answer.usage
            tokens = (None, None, None)
            if usage is not None:
                tokens = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
            rows.append(
                (
                    answer.key,
                    number,
                    _bytes(answer.raw),
                    answer.finish_reason,
                    *tokens,
                    answer.cost_microusd,
                    answer.hold_id,
                    answer.received_at,
                )
            )
        self.database.execute_rows(
            "INSERT INTO answers (request_key, attempt, raw, finish_reason, prompt_tokens, "
            "completion_tokens, cached_tokens, cost_microusd, hold_id, received_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        return [row[1] for row in rows]

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
        items = np.asarray(ranking, np.int64)
        with self.database.transaction():
            self.put_rankings([StoredRanking(key, parser_version, items, tuple(repairs), failure)])

    def put_rankings(self, rankings: Iterable[StoredRanking]) -> None:
        """Records readings; of several by one version of one request, the last one counts."""
        last = {(read.key, read.parser_version): read for read in rankings}
        self.database.execute_rows(
            "INSERT INTO parsed (request_key, parser_version, ranking, repairs, failure) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (request_key, parser_version) DO UPDATE SET "
            "ranking = excluded.ranking, repairs = excluded.repairs, "
            "failure = excluded.failure",
            [
                (
                    read.key,
                    read.parser_version,
                    _COMPACT.encode(read.ranking.tolist()),
                    _UNESCAPED.encode(read.repairs),
                    read.failure,
                )
                for read in last.values()
            ],
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

    def attempts(self, keys: Iterable[str]) -> defaultdict[str, set[int]]:
        """Key -> numbers of its answers; of a key without any, none."""
        rows = self._rows(
            "SELECT request_key, attempt FROM answers "
            "WHERE request_key IN (SELECT value FROM json_each(?))",
            keys,
        )
        found: defaultdict[str, set[int]] = defaultdict(set)
        for key, attempt in rows:
            found[key].add(attempt)
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
