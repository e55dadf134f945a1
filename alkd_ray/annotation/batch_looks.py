"""What is asked about an endpoint's batches: it costs nothing, so it is asked until it is said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import TypeVar

from alkd_ray.annotation.batches import BatchEntry
from alkd_ray.errors import AlkdError
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.llm_teachers._batch_results import BatchLine, BatchStatus
from alkd_ray.llm_teachers._client import NotBilledError

_Said = TypeVar("_Said")

RETRY_SECONDS = 1.0
# A submission whose answer was lost shows up in the endpoint's list after a moment, or never.
FIND_AGAIN_SECONDS = 3.0
FIND_TIMES = 3
CLOCKS_DIFFER_SECONDS = 3_600.0


class BatchLooks:
    """Looks at the batches of one endpoint, each as often as ``tries`` allows."""

    def __init__(self, client: BatchClient, tries: int) -> None:
        self.client = client
        self.tries = tries

    async def find(self, entry: BatchEntry, times: int = FIND_TIMES) -> BatchStatus | None:
        """The endpoint's batch with this label; None = it has none in any of so many lists.

        Raises:
            AlkdError: the endpoint does not say.
        """
        since = datetime.fromisoformat(entry.prepared_at).timestamp() - CLOCKS_DIFFER_SECONDS
        try:
            for number in range(times):
                if number:
                    await asyncio.sleep(FIND_AGAIN_SECONDS)
                found = await self._said(lambda: self.client.find(entry.label, since))
                if found is not None:
                    return found
        except NotBilledError as error:
            raise AlkdError(
                f"{self._place} does not say whether it has batch {entry.label} ({error}); its "
                "requests go on counting against the cap; give the same command again, or end "
                f"the batch by hand: alkd annotate abandon {entry.label}"
            ) from error
        return None

    async def status(self, entry: BatchEntry) -> BatchStatus | None:
        """How far a batch is; None = the endpoint says that it has none of this id.

        Raises:
            AlkdError: the endpoint does not say.
        """
        try:
            return await self._said(lambda: self.client.status(entry.batch_id))
        except NotBilledError as error:
            if error.status == 404:
                return None
            raise self._unreachable(error) from error

    async def cancel(self, entry: BatchEntry) -> None:
        """Ends a batch early; one that cannot be ends by itself, and is collected all the same."""
        with suppress(NotBilledError):
            await self.client.cancel(entry.batch_id)

    async def lines(self, file_id: str, take: Callable[[BatchLine], None]) -> None:
        """Gives the lines of a file of results to ``take``; a line may come more than once.

        Raises:
            AlkdError: the file does not arrive whole; what came until then was given.
        """

        async def read() -> None:
            async with aclosing(self.client.lines(file_id)) as lines:
                async for line in lines:
                    take(line)

        try:
            await self._said(read)
        except NotBilledError as error:
            raise self._unreachable(error) from error

    async def _said(self, call: Callable[[], Awaitable[_Said]]) -> _Said:
        """What the endpoint says, asked for again where that may help."""
        for number in range(self.tries):
            try:
                return await call()
            except NotBilledError as error:
                if error.is_permanent or number == self.tries - 1:
                    raise
            await asyncio.sleep(RETRY_SECONDS * 2**number)
        raise AssertionError("tries is at least 1")

    def _unreachable(self, problem: NotBilledError) -> AlkdError:
        return AlkdError(
            f"{self._place} cannot be asked for its batches ({problem}); they go on there, and the "
            "same command collects them (alkd annotate abandon ends one that nobody can collect)"
        )

    @property
    def _place(self) -> str:
        return self.client.endpoint.base_url
