"""What earlier answers taught about an endpoint: for estimates, never for holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from alkd_ray.annotation.database import Database

# English titles in JSON take about four bytes a token.
BYTES_PER_TOKEN = 4.0
TOKENS_PER_ITEM = 3
TOKENS_AROUND = 12
LOOKED_AT = 500


@dataclass(slots=True)
class Experience:
    """Sums over answers of one endpoint, model and kind of question.

    Attributes:
        answers: how many; with none, assumptions take their place.
        request_bytes: UTF-8 bytes of their requests' bodies, response format left out.
        prompt_tokens: as billed.
        completion_tokens: as billed.
        timed: how many of them were waited for, not sent in a batch.
        seconds: from hold to settlement of those, together.
    """

    answers: int = 0
    request_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timed: int = 0
    seconds: float = 0.0

    def add(self, request_bytes: int, prompt_tokens: int, completion_tokens: int) -> None:
        """One more answer."""
        self.answers += 1
        self.request_bytes += request_bytes
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def prompt(self, request_bytes: int) -> int:
        """Tokens to expect of a prompt whose request has so many bytes."""
        if not self.request_bytes:
            return round(request_bytes / BYTES_PER_TOKEN)
        return round(request_bytes * self.prompt_tokens / self.request_bytes)

    def output(self, wanted: int, most: int) -> int:
        """Tokens to expect of an answer with ``wanted`` items, at most ``most``."""
        if not self.answers:
            # Of free text nothing is known: half of what it may take.
            return min(wanted * TOKENS_PER_ITEM + TOKENS_AROUND, most) if wanted else most // 2
        return min(round(self.completion_tokens / self.answers), most)

    @property
    def seconds_an_answer(self) -> float | None:
        """Mean wait for an answer; None where nobody has waited for one."""
        return self.seconds / self.timed if self.timed else None


def learned(database: Database, endpoint: str, model: str, kind: str) -> Experience:
    """What the latest answers of ``endpoint`` to questions of ``kind`` say.

    First attempts alone: asking again has another, longer body than the one that is stored.
    """
    found = Experience()
    rows = database.execute(
        "SELECT r.body, a.prompt_tokens, a.completion_tokens, h.held_at, h.ended_at, h.batch "
        "FROM answers a JOIN requests r ON r.request_key = a.request_key "
        "JOIN holds h ON h.hold_id = a.hold_id "
        "WHERE r.endpoint = ? AND r.model = ? AND a.attempt = 1 "
        "AND a.prompt_tokens IS NOT NULL AND r.kind = ? ORDER BY a.number DESC LIMIT ?",
        (endpoint, model, kind, LOOKED_AT),
    )
    for body, prompt_tokens, completion_tokens, held_at, ended_at, batch in rows:
        found.add(len(body.encode()), prompt_tokens, completion_tokens)
        if not batch:
            found.timed += 1
            found.seconds += _seconds_between(held_at, ended_at)
    return found


def _seconds_between(start: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
