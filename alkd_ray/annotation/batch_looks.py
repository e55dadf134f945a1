"""What is asked about an endpoint's batches: it costs nothing, so it is asked until it is said."""

from __future__ import annotations

import logging
import time
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
_LOG = logging.getLogger(__name__)

CLOCKS_DIFFER_SECONDS = 3_600.0
# A batch may take a day, so a night without a network must not end the wait for it.
LONGEST_SILENCE_SECONDS = 6 * 3_600.0
# The longest of a Retry-After that is kept to.
LONGEST_PAUSE_SECONDS = 3_600.0


class NotNowError(Exception):
    """The endpoint does not say just now; it is asked again at the next look."""


class UnreachableError(AlkdError):
    """The endpoint refuses to say, or has not said for :data:`LONGEST_SILENCE_SECONDS`."""


class BatchLooks:
    """Looks at the batches of one endpoint, once each: whoever polls looks again.

    Attributes:
        not_before: when the endpoint may be asked again by its own word, on the monotonic clock.
    """

    def __init__(self, client: BatchClient) -> None:
        self.client = client
        self.not_before = 0.0
        self._silent_since: dict[str, float] = {}  # what was asked about -> monotonic seconds

    async def find(self, entry: BatchEntry) -> BatchStatus | None:
        """The endpoint's batch with this label; None = it is not in the list, perhaps not yet.

        Raises:
            NotNowError: the endpoint does not say.
            UnreachableError: nor will it soon.
        """
        since = datetime.fromisoformat(entry.prepared_at).timestamp() - CLOCKS_DIFFER_SECONDS
        try:
            return await self._said(entry.label, lambda: self.client.find(entry.label, since))
        except NotBilledError as error:
            raise UnreachableError(
                f"{self._place} does not say whether it has batch {entry.label} ({error}); its "
                "requests go on counting against the cap; give the same command again, or end "
                f"the batch by hand: alkd annotate abandon {entry.label}"
            ) from error

    async def status(self, entry: BatchEntry) -> BatchStatus | None:
        """How far a batch is; None = the endpoint says that it has none of this id.

        Raises:
            NotNowError: the endpoint does not say.
            UnreachableError: nor will it soon.
        """
        try:
            return await self._said(entry.batch_id, lambda: self.client.status(entry.batch_id))
        except NotBilledError as error:
            if error.status == 404:
                return None
            raise self._unreachable(error) from error

    async def cancel(self, entry: BatchEntry) -> None:
        """Ends a batch early; one that cannot be ends by itself, and is collected all the same."""
        with suppress(NotBilledError):
            await self.client.cancel(entry.batch_id)

    async def lines(self, file_id: str, take: Callable[[BatchLine], None]) -> None:
        """Gives the lines of a file of results to ``take``.

        Raises:
            NotNowError: the file does not arrive whole; what came until then was given.
            UnreachableError: nor will it soon.
        """

        async def read() -> None:
            async with aclosing(self.client.lines(file_id)) as lines:
                async for line in lines:
                    take(line)

        try:
            await self._said(file_id, read)
        except NotBilledError as error:
            raise self._unreachable(error) from error

    async def _said(self, about: str, call: Callable[[], Awaitable[_Said]]) -> _Said:
        """What the endpoint says; its error where asking again will not help, or did not."""
        try:
            said = await call()
        except NotBilledError as error:
            asked_at = time.monotonic()
            if error.is_permanent:
                raise
            if not self._silent_since:
                _LOG.warning("%s: %s; its batches are asked for again", self._place, error)
            since = self._silent_since.setdefault(about, asked_at)
            if asked_at - since >= LONGEST_SILENCE_SECONDS:
                raise
            pause = min(error.retry_after_seconds or 0.0, LONGEST_PAUSE_SECONDS)
            self.not_before = max(self.not_before, asked_at + pause)
            raise NotNowError(str(error)) from error
        self._silent_since.pop(about, None)
        return said

    def _unreachable(self, problem: NotBilledError) -> UnreachableError:
        return UnreachableError(
            f"{self._place} cannot be asked for its batches ({problem}); they go on there, and the "
            "same command collects them (alkd annotate abandon ends one that nobody can collect)"
        )

    @property
    def _place(self) -> str:
        return self.client.endpoint.base_url
