"""Many small operations from one event loop, carried out in groups."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any


class Grouped:
    """Hands operations to ``apply`` in groups: all that arrived while the last group was at work.

    So one disk flush, or one message to another process, serves every operation that waited for
    it, and a lone operation does not wait for company. Operations keep their order.
    """

    def __init__(
        self, apply: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]], most: int = 512
    ) -> None:
        """Prepares a group of one event loop.

        Args:
            apply: carries out operations in order and returns one result for each.
            most: operations in a group.
        """
        self._apply = apply
        self._most = most
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._at_work: asyncio.Task[None] | None = None

    async def do(self, operation: Any) -> Any:
        """The result of ``operation``, once its group was carried out.

        Raises:
            Exception: whatever ``apply`` raised for the group.
        """
        return await self._put(operation)  # whoever is cancelled gives up its result alone

    async def do_all(self, operations: Sequence[Any]) -> list[Any]:
        """The results of several, in order; see :meth:`do`."""
        return list(await asyncio.gather(*map(self._put, operations)))

    def _put(self, operation: Any) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, done))
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._work())
        return done

    async def _work(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            try:
                results = await self._apply([operation for operation, _ in group])
            except Exception as error:
                # Every caller that waits for the group gets it.
                for _, done in group:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), result in zip(group, results, strict=True):
                if not done.done():
                    done.set_result(result)
