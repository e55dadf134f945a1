"""Batches whose endpoint is full, forgetful or slow for a while: nothing bought is lost."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from alkd_ray.annotation import batch_looks
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.worker import annotate
from alkd_ray.llm_teachers._behaviour import Behaviour
from alkd_ray.llm_teachers._bill import Bill
from alkd_ray.llm_teachers._server import SimulatedEndpoint
from alkd_ray.types import AnnotationOutcome, Caps
from tests.annotation_rows import BATCH_RATES, job
from tests.simulated_server import PATIENCE_SECONDS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUEUE_FULL = {
    "code": "token_limit_exceeded",
    "message": "Enqueued token limit reached for this model. Please try again once some "
    "in_progress batches have been completed.",
}


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


class Place:
    """The endpoint's address and bill."""

    def __init__(self, url: str, bill: Bill) -> None:
        self.url = url
        self.bill = bill


@contextmanager
def serving(trouble: Trouble, **settings: Any) -> Iterator[Place]:
    """The simulated endpoint in a thread, behind ``trouble``."""
    behaviour = Behaviour(batch_seconds=0.3, **settings)
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


@pytest.fixture(autouse=True)
def _found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_looks, "FIND_AGAIN_SECONDS", 0.02)


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


class Refusing(Trouble):
    """Takes some batches, and fails the others with an error of its choice."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__()
        self.error = error
        self.live: set[str] = set()
        self.created = 0

    def refuses(self) -> bool:
        raise NotImplementedError

    async def create(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.created += 1
        if self.refuses():
            return web.json_response({"id": f"refused-{self.created}", "status": "validating"})
        response = await handler(request)
        assert isinstance(response, web.Response)
        self.live.add(json.loads(response.text or "")["id"])
        return response

    async def show(
        self, request: web.Request, handler: Handler, batch_id: str
    ) -> web.StreamResponse:
        if batch_id.startswith("refused"):
            failed = {"id": batch_id, "status": "failed", "errors": {"data": [self.error]}}
            return web.json_response(failed)
        response = await handler(request)
        assert isinstance(response, web.Response)
        if json.loads(response.text or "")["status"] == "completed":
            self.live.discard(batch_id)
        return response


class FullQueue(Refusing):
    """Has room for one batch at a time."""

    def refuses(self) -> bool:
        return bool(self.live)


class EveryOther(Refusing):
    def refuses(self) -> bool:
        return self.created % 2 == 1


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    trouble = FullQueue(QUEUE_FULL)
    with serving(trouble) as place:
        outcome = bought(tmp_path, place, batch_size=8, tries=2)
        check(tmp_path, place, outcome)
        assert place.bill.totals()["requests"] == 40
    assert outcome.status == "complete"
    assert trouble.cancelled == []
    assert outcomes(tmp_path).count("completed") == 5
    # Each batch that ends lets one more be tried, and not all that wait.
    assert trouble.created <= 5 + 4 + 4


def test_failed_batches_count_only_in_a_row(tmp_path: Path) -> None:
    trouble = EveryOther({"code": "server_error", "message": "Submit it again."})
    with serving(trouble) as place:  # the cap admits a quarter of the rows at once
        outcome = bought(tmp_path, place, caps=Caps(microusd=2_500), partial=True, tries=2)
        check(tmp_path, place, outcome)
    assert outcome.status == "complete"
    assert trouble.created >= 4


class OnlyOne(Trouble):
    """Refuses every batch but the first."""

    async def create(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if sum(asked == ("POST", "/v1/batches") for asked in self.asked) == 1:
            return await handler(request)
        return web.json_response({"error": {"message": "no more of these"}}, status=400)


def test_what_is_under_way_when_a_pass_stops_is_collected(tmp_path: Path) -> None:
    trouble = OnlyOne()
    with serving(trouble) as place:
        outcome = bought(tmp_path, place, batch_size=10)
        check(tmp_path, place, outcome)
        assert place.bill.totals()["requests"] == 10
    assert outcome.status == "stopped"
    assert "no more of these" in outcome.reason
    assert trouble.cancelled == []
    assert len(outcome.annotations) == 10


class Forgetful(Trouble):
    """Does not know the first batch by its id for some looks, and perhaps not in its list."""

    def __init__(self, looks: int, *, lists_it: bool) -> None:
        super().__init__()
        self.looks = looks
        self.lists_it = lists_it
        self.first = ""

    async def show(
        self, request: web.Request, handler: Handler, batch_id: str
    ) -> web.StreamResponse:
        self.first = self.first or batch_id
        if batch_id == self.first and self.looks:
            self.looks -= 1
            return web.json_response({"error": {"message": "No batch found"}}, status=404)
        return await handler(request)

    async def list(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        assert isinstance(response, web.Response)
        page = json.loads(response.text or "")
        if not self.lists_it:
            page["data"] = [batch for batch in page["data"] if batch["id"] != self.first]
        return web.json_response(page)


@pytest.mark.parametrize("trouble", [Forgetful(1, lists_it=False), Forgetful(999, lists_it=True)])
def test_a_batch_is_not_lost_by_a_404(tmp_path: Path, trouble: Forgetful) -> None:
    check_one_batch(tmp_path, trouble)


def test_a_lost_batch_that_turns_up_is_collected_by_a_later_pass(tmp_path: Path) -> None:
    trouble = Forgetful(999, lists_it=False)
    with serving(trouble) as place:
        first = bought(tmp_path, place)
        check(tmp_path, place, first, unresolved=40)
        again = bought(tmp_path, place)
        check(tmp_path, place, again, unresolved=40)
        assert outcomes(tmp_path) == ["", "completed"]
        trouble.looks = 0
        second = bought(tmp_path, place)
        check(tmp_path, place, second)
        assert place.bill.totals()["requests"] == 80
    assert first.status == again.status == second.status == "complete"
    assert again.sent == second.sent == 0
    assert outcomes(tmp_path) == ["completed", "completed"]


class SlowCreate(Trouble):
    """A gateway gives up on batches; what stands behind it makes them after a while."""

    def __init__(self, lists: int) -> None:
        super().__init__()
        self.lists = lists  # the list that shows them first
        self.later: list[Callable[[], Awaitable[Any]]] = []

    async def create(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.lists <= 0:
            return await handler(request)
        await request.read()
        self.later.append(lambda: handler(request))
        return web.Response(status=504, text="upstream request timeout")

    async def list(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.lists -= 1
        if self.lists == 0:
            for create in self.later:
                await create()
        return await handler(request)


def test_a_batch_that_outlives_its_gateway_stays_in_the_ledger(tmp_path: Path) -> None:
    check_one_batch(tmp_path, SlowCreate(lists=batch_looks.FIND_TIMES + 1))


def test_what_a_gateway_never_says_is_unresolved(tmp_path: Path) -> None:
    trouble = SlowCreate(lists=10**6)
    with serving(trouble) as place:
        outcome = bought(tmp_path, place, tries=1)
        # Nothing was billed in the end, which nobody could know.
        assert place.bill.totals()["requests"] == 0
    assert outcome.status == "partial"
    assert all("504" in annotation.failure for annotation in outcome.annotations)
    assert outcome.ledger.unresolved.requests == 40
    assert outcome.ledger.held.requests == 0


class Mangling(Trouble):
    """Loses the completions of a file of results: lines of status 200 with something else."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await super().answer(request, handler)
        if not request.path.endswith("/content") or not self.lines:
            return response
        assert isinstance(response, web.Response)
        assert isinstance(response.body, bytes)
        lines = [json.loads(line) for line in response.body.splitlines()]
        for line in lines[: self.lines]:
            line["response"]["body"] = {"note": "ask somebody else"}
        self.lines = 0
        return web.Response(text="".join(json.dumps(line) + "\n" for line in lines))


def test_a_line_without_a_completion_is_no_answer(tmp_path: Path) -> None:
    with serving(Mangling(5)) as place:
        outcome = bought(tmp_path, place)
        check(tmp_path, place, outcome, unresolved=5)
        assert place.bill.totals()["requests"] == 40 + 5
    assert outcome.status == "complete"
    with Database(tmp_path / "books.sqlite", read_only=True) as database:
        left = Ledger(database).entries("test", "unresolved")
    assert ["ask somebody else" in hold.why for hold in left] == [True] * 5
