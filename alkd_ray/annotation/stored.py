"""What the store keeps, as records."""

from __future__ import annotations

from dataclasses import dataclass

from alkd_ray.types import IntArray, Usage


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
