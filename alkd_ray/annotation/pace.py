"""How many requests are in flight at once: fewer after a 429, slowly more after answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from contextlib import AbstractAsyncContextManager

SHRINK = 0.7
LEAST_SECONDS_BETWEEN_SHRINKS = 1.0


class Pace:
    """Additive increase, multiplicative decrease (Chiu and Jain 1989), and the endpoint's pauses.

    Whoever waits for a place gets it in the order of asking. Belongs to one event loop.
    """

    def __init__(self, most_in_flight: int, over: asyncio.Event | None = None) -> None:
        """Starts at the most.

        Args:
            most_in_flight: never more.
            over: ends pauses, so that nobody waits for an endpoint that will not be asked again.
        """
        self.most = most_in_flight
        self._over = over or asyncio.Event()
        self.limit = float(most_in_flight)
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slot = _Slot(self)
        self._resume_at = 0.0
        self._last_shrink = -LEAST_SECONDS_BETWEEN_SHRINKS

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Waits for the endpoint's pause to end and for a free place, and holds it."""
        return self._slot

    async def answered(self) -> None:
        """An answer came: one more in flight after as many answers as are in flight."""
        if self.limit < self.most:
            self.limit = min(self.most, self.limit + 1.0 / self.limit)
            self._hand_on()

    def slowed(self, pause_seconds: float) -> None:
        """A 429 came: no request starts for ``pause_seconds``, and fewer are in flight after."""
        now = asyncio.get_running_loop().time()
        self._resume_at = max(self._resume_at, now + pause_seconds)
        if now - self._last_shrink >= LEAST_SECONDS_BETWEEN_SHRINKS:
            self._last_shrink = now
            self.limit = max(1.0, self.limit * SHRINK)

    async def _take(self) -> None:
        await self._pause_to_end()
        if self._has_room():
            self.in_flight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
            await self._pause_to_end()
        except asyncio.CancelledError:
            if not turn.cancelled():  # it has its place already
                self._give_back()
            raise

    async def _pause_to_end(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause = self._resume_at - loop.time()
            if pause <= 0 or self._over.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause)

    def _give_back(self) -> None:
        self.in_flight -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        """Gives free places to those who wait longest; so a free place means that nobody waits."""
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():  # those that were cancelled are still in the queue
                self.in_flight += 1
                turn.set_result(None)

    def _has_room(self) -> bool:
        return self.in_flight < max(1, int(self.limit))


class _Slot:
    """A place in flight; it keeps nothing of its own, so one object serves all."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    async def __aenter__(self) -> None:
        await self._pace._take()

    async def __aexit__(self, *_: object) -> None:
        self._pace._give_back()
