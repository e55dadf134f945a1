"""What a store holds, counted for people: asked, answered, failed, and what is under way."""

from __future__ import annotations

from dataclasses import dataclass

from alkd_ray.annotation.batches import BatchEntry, Batches
from alkd_ray.annotation.database import Database


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions of one kind to one endpoint and model.

    Attributes:
        endpoint: its identity.
        model: the model's name.
        kind: ``rank`` or ``hints``.
        requests: different questions.
        answered: of those, with at least one answer.
        failed: of those, refused for good; they are not asked again.
        answers: in all, asking again included.
        prompt_tokens, completion_tokens: of all answers, as billed.
        cost_microusd: of all answers.
        last_answer: when the latest one came, UTC; "" for none.
    """

    endpoint: str
    model: str
    kind: str
    requests: int
    answered: int
    failed: int
    answers: int
    prompt_tokens: int
    completion_tokens: int
    cost_microusd: int
    last_answer: str


@dataclass(frozen=True, slots=True)
class Overview:
    """A store at one instant.

    Attributes:
        asked: by endpoint, model and kind.
        failures: reason -> requests that were refused for good with it, the commonest first.
        batches: those under way.
        read: parser version -> (accepted, failed) readings.
    """

    asked: tuple[Asked, ...]
    failures: dict[str, int]
    batches: tuple[BatchEntry, ...]
    read: dict[str, tuple[int, int]]


# The latest failure of a request counts, and only while there is no answer.
_REFUSED = (
    "SELECT f.request_key, f.reason FROM failures f "
    "JOIN (SELECT request_key, max(number) AS number FROM failures GROUP BY request_key) latest "
    "ON latest.number = f.number WHERE f.permanent = 1 "
    "AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.request_key = f.request_key)"
)


def overview(database: Database) -> Overview:
    """Counts what is there; the caller holds a transaction, so that all is of one instant."""
    asked = database.execute(
        "SELECT r.endpoint, r.model, r.kind, count(*), count(a.answers), count(f.request_key), "  # noqa: S608 - our own text
        "coalesce(sum(a.answers), 0), coalesce(sum(a.prompt), 0), coalesce(sum(a.completion), 0), "
        "coalesce(sum(a.cost), 0), coalesce(max(a.received_at), '') FROM requests r "
        "LEFT JOIN (SELECT request_key, count(*) AS answers, sum(prompt_tokens) AS prompt, "
        "sum(completion_tokens) AS completion, sum(cost_microusd) AS cost, "
        "max(received_at) AS received_at FROM answers GROUP BY request_key) a "
        "ON a.request_key = r.request_key "
        f"LEFT JOIN ({_REFUSED}) f ON f.request_key = r.request_key "
        "GROUP BY r.endpoint, r.model, r.kind ORDER BY r.endpoint, r.model, r.kind"
    )
    failures = database.execute(
        f"SELECT reason, count(*) FROM ({_REFUSED}) refused GROUP BY reason "  # noqa: S608 - our own text
        "ORDER BY count(*) DESC, reason"
    )
    read = database.execute(
        "SELECT parser_version, sum(CASE WHEN failure = '' THEN 1 ELSE 0 END), "
        "sum(CASE WHEN failure = '' THEN 0 ELSE 1 END) FROM parsed "
        "GROUP BY parser_version ORDER BY parser_version"
    )
    return Overview(
        asked=tuple(Asked(*row) for row in asked),
        failures=dict(failures.fetchall()),
        batches=tuple(Batches(database).all_under_way()),
        read={version: (int(good), int(bad)) for version, good, bad in read},
    )


def refused_keys(database: Database, containing: str = "") -> dict[str, str]:
    """Key -> reason of the requests refused for good whose reason holds the text."""
    rows = database.execute(_REFUSED).fetchall()
    return {key: reason for key, reason in rows if containing in reason}
