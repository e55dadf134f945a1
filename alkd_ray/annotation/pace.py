"""How many requests are in flight at once: fewer after a 429, slowly more after answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SHRINK = 0.7
LEAST_SECONDS_BETWEEN_SHRINKS = 1.0


class Pace:
    """Additive increase, multiplicative decrease (Chiu and Jain 1989), and the endpoint's pauses.

    Belongs to one event loop.
    """

    def __init__(self, most_in_flight: int) -> None:
        self.most = most_in_flight
        self.limit = float(most_in_flight)
        self.in_flight = 0
        self._free = asyncio.Condition()
        self._resume_at = 0.0
        self._last_shrink = -LEAST_SECONDS_BETWEEN_SHRINKS

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Waits for the endpoint's pause to end and for a free place, and holds it."""
        async with self._free:
            while True:
                pause = self._resume_at - asyncio.get_running_loop().time()
                if pause > 0:
                    self._free.release()
                    try:
                        await asyncio.sleep(pause)
                    finally:
                        await self._free.acquire()
                elif self.in_flight >= max(1, int(self.limit)):
                    await self._free.wait()
                else:
                    break
            self.in_flight += 1
        try:
            yield
        finally:
            async with self._free:
                self.in_flight -= 1
                self._free.notify()

    async def answered(self) -> None:
        """An answer came: one more in flight after as many answers as are in flight."""
        if self.limit < self.most:
            self.limit = min(self.most, self.limit + 1.0 / self.limit)
            async with self._free:
                self._free.notify()

    def slowed(self, pause_seconds: float) -> None:
        """A 429 came: no request starts for ``pause_seconds``, and fewer are in flight after."""
        now = asyncio.get_running_loop().time()
        self._resume_at = max(self._resume_at, now + pause_seconds)
        if now - self._last_shrink >= LEAST_SECONDS_BETWEEN_SHRINKS:
            self._last_shrink = now
            self.limit = max(1.0, self.limit * SHRINK)
