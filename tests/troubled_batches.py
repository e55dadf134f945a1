"""The simulated endpoint in this process, behind a trouble of the test's making; real HTTP."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.worker import annotate
from alkd_ray.llm_teachers._behaviour import Behaviour
from alkd_ray.llm_teachers._bill import Bill
from alkd_ray.llm_teachers._server import SimulatedEndpoint
from alkd_ray.types import AnnotationOutcome
from tests.annotation_rows import BATCH_RATES, job
from tests.simulated_server import PATIENCE_SECONDS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Trouble:
    """Stands before the endpoint's handlers; this one only notes what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.asked.append((request.method, request.path))
        match request.method, request.path.removeprefix("/v1").split("/")[1:]:
            case "POST", ["batches"]:
                return await self.create(request, handler)
            case "GET", ["batches"]:
                return await self.list(request, handler)
            case "GET", ["batches", batch_id]:
                return await self.show(request, handler, batch_id)
        return await handler(request)

    async def create(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)

    async def list(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)

    async def show(
        self, request: web.Request, handler: Handler, batch_id: str
    ) -> web.StreamResponse:
        return await handler(request)

    @property
    def cancelled(self) -> list[str]:
        return [path for _, path in self.asked if path.endswith("/cancel")]


class LateList(Trouble):
    """Its list shows batches after some looks only; ``status`` is said of each submission."""

    def __init__(self, lists: int, status: int = 0) -> None:
        super().__init__()
        self.lists = lists  # the list that shows batches first
        self.status = status

    async def create(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        return web.Response(status=self.status, text="oops") if self.status else response

    async def list(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.lists -= 1
        if self.lists > 0:
            return web.json_response({"object": "list", "data": [], "has_more": False})
        return await handler(request)


class Place:
    """The endpoint's address and bill."""

    def __init__(self, url: str, bill: Bill) -> None:
        self.url = url
        self.bill = bill


@contextmanager
def serving(trouble: Trouble, **settings: Any) -> Iterator[Place]:
    """The simulated endpoint in a thread, behind ``trouble``."""
    behaviour = Behaviour(**{"batch_seconds": 0.3} | settings)
    bill = Bill(None, behaviour.input_usd_per_million, behaviour.output_usd_per_million)
    app = SimulatedEndpoint(behaviour, bill).application()

    @web.middleware
    async def before(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await trouble.answer(request, handler)

    app.middlewares.append(before)
    runner = web.AppRunner(app, access_log=None)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    def do(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_SECONDS)

    try:
        yield Place(do(start()), bill)
    finally:
        do(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)
        loop.close()


def bought(folder: Path, place: Place, **given: Any) -> AnnotationOutcome:
    settings = {"mode": "batch", "batch_poll_seconds": 0.1} | given
    return annotate(job(folder, place.url, options={"rates": BATCH_RATES}, **settings))


def check(folder: Path, place: Place, outcome: AnnotationOutcome, unresolved: int = 0) -> None:
    """The books and the bill say the same, but for what is unresolved."""
    with Database(folder / "books.sqlite", read_only=True) as database:
        assert Ledger(database).audit("test")
    billed = place.bill.totals()
    assert outcome.ledger.settled.requests == billed["requests"] - unresolved
    if not unresolved:
        assert outcome.ledger.settled.microusd == billed["microusd"]
    assert outcome.ledger.unresolved.requests == unresolved
    assert outcome.ledger.held.requests == 0


def outcomes(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "books.sqlite") as connection:
        return [row[0] for row in connection.execute("SELECT outcome FROM batches ORDER BY number")]


def check_one_batch(folder: Path, trouble: Trouble) -> None:
    """All is bought by one batch, once, whatever the trouble."""
    with serving(trouble) as place:
        outcome = bought(folder, place)
        check(folder, place, outcome)
        assert place.bill.totals()["requests"] == 40
    assert outcome.status == "complete"
    assert outcomes(folder) == ["completed"]
