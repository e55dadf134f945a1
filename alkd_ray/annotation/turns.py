"""One rate for all who ask: the instants at which requests may leave.

Every worker of every process asks here before it sends, so that all of them together keep to the
endpoint's requests and tokens a minute, however many they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from alkd_ray.annotation.database import Database

# A little below the limit: requests leave evenly, but the network brings some of them closer.
SHARE_OF_LIMIT = 0.98
# Nobody is told to wait longer than this; who would have to asks again then, so that a pass that
# ends, or a worker that dies, leaves few turns unused.
FARTHEST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the endpoint, per minute; None for no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def is_unlimited(self) -> bool:
        """Nobody has to wait."""
        return self.requests_per_minute is None and self.tokens_per_minute is None


@dataclass(frozen=True, slots=True)
class Turn:
    """When a request may leave.

    Attributes:
        is_granted: it is this request's turn after ``seconds``; else ask again then.
        seconds: to wait.
        tokens: what the turn was counted with; given back or added when the usage is known.
    """

    is_granted: bool
    seconds: float
    tokens: int = 0


AT_ONCE = Turn(True, 0.0)


class Turns:
    """Turns of one endpoint, kept in the books, so that drivers that share these share the rate.

    A virtual clock each for requests and tokens (the generic cell rate algorithm with no burst):
    a turn is at the later of the two and now, and moves each on by what it takes of a minute.
    Times are seconds since 1970 by the clock of the machine that asks.
    """

    def __init__(self, database: Database, endpoint: str, limits: Limits) -> None:
        self.database = database
        self.endpoint = endpoint
        self.limits = limits

    def take(self, tokens: int, at: float | None = None) -> Turn:
        """The next free turn for a request of about ``tokens``.

        Args:
            tokens: prompt and completion tokens that it is expected to take.
            at: now, for tests.
        """
        if self.limits.is_unlimited:
            return AT_ONCE
        now = time.time() if at is None else at
        with self.database.transaction():
            next_request, next_token = self._clocks()
            turn = max(now, next_request, next_token)
            if turn - now > FARTHEST_SECONDS:
                return Turn(False, FARTHEST_SECONDS)
            self._set(
                turn + self._seconds(1, self.limits.requests_per_minute),
                turn + self._seconds(tokens, self.limits.tokens_per_minute),
            )
        return Turn(True, turn - now, tokens)

    def correct(self, counted: int, actual: int) -> None:
        """Moves the tokens' clock by what a request took more, or less, than was counted."""
        if self.limits.tokens_per_minute is None or counted == actual or not counted:
            return
        with self.database.transaction():
            next_request, next_token = self._clocks()
            moved = self._seconds(actual - counted, self.limits.tokens_per_minute)
            self._set(next_request, next_token + moved)

    def _seconds(self, amount: int, per_minute: int | None) -> float:
        return 0.0 if per_minute is None else amount * 60.0 / (per_minute * SHARE_OF_LIMIT)

    def _clocks(self) -> tuple[float, float]:
        row = self.database.execute(
            "SELECT next_request, next_token FROM turns WHERE endpoint = ?", (self.endpoint,)
        ).fetchone()
        return row or (0.0, 0.0)

    def _set(self, next_request: float, next_token: float) -> None:
        self.database.execute(
            "INSERT INTO turns (endpoint, next_request, next_token) VALUES (?, ?, ?) "
            "ON CONFLICT (endpoint) DO UPDATE SET next_request = excluded.next_request, "
            "next_token = excluded.next_token",
            (self.endpoint, next_request, next_token),
        )
