"""Other drivers at work on the same books: what they have in flight is waited for, while they live.

In a file of books there are none, and nothing here does anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Generic, TypeVar

from alkd_ray.annotation.ledger import Ledger

# How long a refusal stands before the books are asked again: those who wait for a driver must not
# keep it from writing.
REFUSED_SECONDS = 0.3
# How often it is looked whether a driver that is waited for has died.
DEAD_SECONDS = 3.0

Refusal = TypeVar("Refusal")


class Others(Generic[Refusal]):
    """The other drivers, as one desk sees them; for one thread at a time."""

    def __init__(self, ledger: Ledger, budget: str) -> None:
        self.ledger = ledger
        self.budget = budget
        self.are_possible = ledger.database.is_shared
        self._refused: dict[str, tuple[float, Refusal]] = {}  # key -> until when, and how
        self._looked_at = time.monotonic()

    def hold_a_part(self) -> bool:
        """Whether one that lives has requests in flight, whose holds may be given back."""
        if not self.are_possible:
            return False
        self._leave_what_the_dead_held()
        return self.ledger.is_in_flight(self.budget)

    def wait(self, key: str, refusal: Refusal) -> Refusal:
        """Notes that the request ``key`` was refused for their sake; returns ``refusal``."""
        if self.are_possible:
            self._leave_what_the_dead_held()
            self._refused[key] = (time.monotonic() + REFUSED_SECONDS, refusal)
        return refusal

    def refusal(self, key: str) -> Refusal | None:
        """The last refusal of the request, as long as it stands."""
        until, refusal = self._refused.get(key, (0.0, None))
        if time.monotonic() < until:
            return refusal
        self._refused.pop(key, None)
        return None

    def put_off(self, waiting: deque[int], keys: Mapping[int, str], most: int) -> None:
        """Moves rows that others ask just now behind the next ``most`` that nobody does.

        Args:
            waiting: rows, in the order in which they are handed out.
            keys: row -> its key.
            most: rows that are about to be handed out.
        """
        asked = self.ledger.keys_of_others() if self.are_possible else set()
        chosen: list[int] = []
        passed: list[int] = []
        while asked and waiting and len(chosen) < most:
            index = waiting.popleft()
            (passed if keys[index] in asked else chosen).append(index)
        waiting.extendleft(reversed(chosen + passed))

    def _leave_what_the_dead_held(self) -> None:
        if time.monotonic() - self._looked_at >= DEAD_SECONDS:
            self.ledger.recover()
            self._looked_at = time.monotonic()
