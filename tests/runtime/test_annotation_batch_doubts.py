"""Batches of which nobody knows for a while whether they are there, or what they brought."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from alkd_ray.annotation import batch_looks, batching
from alkd_ray.annotation.batch_looks import UnreachableError
from alkd_ray.annotation.batches import Batches
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.worker import annotate
from alkd_ray.types import Amounts, Caps
from tests.annotation_rows import BATCH_RATES, job
from tests.simulated_server import PATIENCE_SECONDS
from tests.troubled_batches import (
    Handler,
    LateList,
    Place,
    Trouble,
    bought,
    check,
    check_one_batch,
    outcomes,
    serving,
)

# Whether it was submitted.


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


def test_a_batch_that_outlives_its_gateway_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_one_batch(tmp_path, SlowCreate(lists=5))
    (said,) = [line for line in caplog.messages if "had no answer; it is looked for" in line]
    assert "a batch of 40 requests" in said


def test_what_a_gateway_never_says_is_unresolved_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "APPEARS_WITHIN_SECONDS", 0.3)
    trouble = SlowCreate(lists=10**6)
    with serving(trouble) as place:
        outcome = bought(tmp_path, place, tries=2)
        # Nothing was billed in the end, which nobody could know.
        assert place.bill.totals()["requests"] == 0
        assert outcome.status == "stopped"
        assert "504" in outcome.reason
        assert len(trouble.later) == 2
        # The first one is given up, the last one may still come.
        assert outcome.ledger.unresolved.requests == outcome.ledger.held.requests == 40
        trouble.lists = 0
        again = bought(tmp_path, place)
        assert place.bill.totals()["requests"] == 40
    assert again.status == "complete"
    assert again.ledger.settled.requests == 40
    assert again.ledger.unresolved.requests == 80
    assert again.ledger.held.requests == 0


def test_a_batch_made_in_spite_of_an_error_is_not_made_again(tmp_path: Path) -> None:
    check_one_batch(tmp_path, LateList(lists=5, status=500))


class Busy(Trouble):
    """Refuses one batch for now; says how long."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause
        self.refused_at: float | None = None
        self.taken_at = 0.0

    async def create(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.refused_at is not None:
            self.taken_at = time.monotonic()
            return await handler(request)
        self.refused_at = time.monotonic()
        return web.Response(status=429, text="not now", headers={"Retry-After": f"{self.pause:g}"})


def test_a_batch_is_submitted_again_when_the_endpoint_says(tmp_path: Path) -> None:
    trouble = Busy(pause=batching.RETRY_SECONDS * 2 + 1.5)
    check_one_batch(tmp_path, trouble)
    assert trouble.refused_at is not None
    assert trouble.taken_at - trouble.refused_at >= trouble.pause


def test_a_batch_is_not_waited_with_for_an_hour(tmp_path: Path) -> None:
    trouble = Busy(pause=3_600)
    with serving(trouble) as place:
        outcome = bought(tmp_path, place)
        check(tmp_path, place, outcome)
    assert outcome.status == "stopped"
    assert "takes no batch" in outcome.reason
    assert trouble.taken_at == 0


def test_what_was_refused_last_is_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that is broken off while it waits to submit a refused batch again owes nothing."""

    async def broken_off(*_: object) -> None:
        raise KeyboardInterrupt

    with serving(Busy(pause=0)) as place:
        with monkeypatch.context() as patched:
            patched.setattr(batching.asyncio, "sleep", broken_off)
            with pytest.raises(KeyboardInterrupt):
                bought(tmp_path, place)
        with Database(tmp_path / "books.sqlite", read_only=True) as database:
            (entry,) = Batches(database).all_under_way()
            assert not entry.is_perhaps_submitted
        outcome = bought(tmp_path, place)
        check(tmp_path, place, outcome)
    assert outcome.status == "complete"
    assert outcomes(tmp_path) == ["it was never submitted", "completed"]


# How it is.


class Silent(Trouble):
    """Does not say, for some looks, how a batch is, or what it brought."""

    def __init__(self, looks: int, status: int, what: str = "batches", pause: float = 0.0) -> None:
        super().__init__()
        self.looks = looks
        self.status = status
        self.what = what
        self.pause = pause
        self.looked_at: list[float] = []

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        is_look = request.method == "GET" and request.path.startswith(f"/v1/{self.what}/")
        if is_look:
            self.looked_at.append(time.monotonic())
        if not is_look or self.looks <= 0:
            return await super().answer(request, handler)
        self.looks -= 1
        headers = {"Retry-After": f"{self.pause:g}"} if self.pause else {}
        return web.Response(status=self.status, text="not now", headers=headers)


@pytest.mark.parametrize(
    "trouble", [Silent(8, 429), Silent(8, 503), Silent(8, 504), Silent(8, 500, what="files")]
)
def test_a_silent_endpoint_is_looked_at_again(
    tmp_path: Path, trouble: Silent, caplog: pytest.LogCaptureFixture
) -> None:
    check_one_batch(tmp_path, trouble)
    assert len([record for record in caplog.records if "asked for again" in record.message]) == 1


def test_retry_after_is_kept_to_between_looks(tmp_path: Path) -> None:
    trouble = Silent(1, 429, pause=1.5)
    check_one_batch(tmp_path, trouble)
    assert trouble.looked_at[1] - trouble.looked_at[0] >= 1.5


def test_an_endpoint_that_is_silent_for_hours_ends_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_looks, "LONGEST_SILENCE_SECONDS", 0.5)
    trouble = Silent(10**6, 503)
    with serving(trouble) as place:
        with pytest.raises(UnreachableError, match="the same command collects them"):
            bought(tmp_path, place)
        trouble.looks = 0
        outcome = bought(tmp_path, place)
        check(tmp_path, place, outcome)
        assert place.bill.totals()["requests"] == 40
    assert outcome.status == "complete"


# What it brought.


class ShortResults(Trouble):
    """Of the first batch's results, shows half of the lines for some readings."""

    def __init__(self, readings: int, *, without_file: bool = False, state: str = "") -> None:
        super().__init__()
        self.readings = readings
        self.without_file = without_file  # the batch has none yet, in place of a short one
        self.state = state  # the batch is said to have ended in this one, not completed
        self.first = ""

    async def show(
        self, request: web.Request, handler: Handler, batch_id: str
    ) -> web.StreamResponse:
        response = await handler(request)
        assert isinstance(response, web.Response)
        said = json.loads(response.text or "")
        self.first = self.first or batch_id
        if batch_id == self.first and said["status"] == "completed":
            if self.without_file and self.readings > 0:
                self.readings -= 1
                said |= {"output_file_id": None, "request_counts": None}
            said["status"] = self.state or said["status"]
        return web.json_response(said)

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await super().answer(request, handler)
        if not request.path.endswith("/content") or self.without_file or self.readings <= 0:
            return response
        self.readings -= 1
        assert isinstance(response, web.Response)
        assert isinstance(response.body, bytes)
        lines = response.body.splitlines(keepends=True)
        return web.Response(body=b"".join(lines[: len(lines) // 2]))


@pytest.mark.parametrize("trouble", [ShortResults(4), ShortResults(4, without_file=True)])
def test_results_that_come_late_are_waited_for(tmp_path: Path, trouble: ShortResults) -> None:
    check_one_batch(tmp_path, trouble)


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_answers_that_never_come_are_unresolved(tmp_path: Path, state: str) -> None:
    with serving(ShortResults(5, state=state)) as place:
        outcome = bought(tmp_path, place)
        check(tmp_path, place, outcome, unresolved=20)
        assert place.bill.totals()["requests"] == 40 + 20
    assert outcome.status == "complete"
    assert outcomes(tmp_path) == [state, "completed"]


def test_a_batch_whose_requests_are_all_refused_alike_ends_the_pass(tmp_path: Path) -> None:
    with serving(Trouble(), batch_line_refused_share=1) as place:
        for _ in range(2):  # nothing is taken for refused for good
            outcome = bought(tmp_path, place, batch_size=30)
            check(tmp_path, place, outcome)
            assert outcome.status == "stopped"
            assert "30 requests of a batch were refused alike" in outcome.reason
            assert "This request was refused." in outcome.reason
        few = bought(tmp_path / "few", place, count=10)
    assert few.status == "partial"
    assert sum("This request was refused." in a.failure for a in few.annotations) == 10


# Whose it is.


def left_over(folder: Path, place: Place, count: int) -> None:
    """A batch under another budget, whose pass has ended, of the rows that are not there yet."""

    def give_up(progress: Any) -> None:
        if progress.in_flight:
            raise TimeoutError

    made = job(folder, place.url, count=count, options={"rates": BATCH_RATES}, mode="batch")
    with pytest.raises(TimeoutError):
        annotate(made, give_up)


def wait_until_all_are_over(place: Place) -> None:
    """Until the endpoint has the results of all batches."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with urllib.request.urlopen(f"{place.url}/batches") as answer:
            batches = json.load(answer)["data"]
        if all(batch["status"] == "completed" for batch in batches):
            return
        assert time.monotonic() < deadline, batches
        time.sleep(0.05)


def test_a_pass_with_nothing_to_ask_waits_for_no_batch_of_others(tmp_path: Path) -> None:
    with serving(Trouble(), batch_seconds=600) as place:
        assert annotate(job(tmp_path, place.url, count=10)).status == "complete"
        left_over(tmp_path, place, 20)
        outcome = bought(tmp_path, place, count=10)
    assert outcome.status == "complete"
    assert outcome.ledger.held.requests == 10


def test_a_pass_with_nothing_to_ask_fails_for_no_batch_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = Silent(0, 503)
    with serving(trouble, batch_seconds=1) as place:
        assert annotate(job(tmp_path, place.url, count=10)).status == "complete"
        left_over(tmp_path, place, 20)
        for status in (503, 401):
            trouble.looks, trouble.status = 1, status
            assert bought(tmp_path, place, count=10).status == "complete"
        wait_until_all_are_over(place)
        outcome = bought(tmp_path, place, count=10)
        check(tmp_path, place, outcome)  # collected in passing
    assert outcome.ledger.settled.requests == 20
    assert "left where they are" in caplog.text
    with serving(trouble) as gone:
        annotate(job(tmp_path, gone.url, count=10))
        with Database(tmp_path / "books.sqlite") as database, database.transaction():
            Ledger(database).open_budget("other", Caps(requests=9))
            Ledger(database).hold("other", "hold", Amounts(1, 1, 1), key="k", batch="a-batch")
            Batches(database).prepare(
                "a-batch",
                budget="other",
                owner="x",
                endpoint=gone.url,
                model="simulated-title-reader",
                structured="off",
            )
    assert bought(tmp_path, gone, count=10).status == "complete"
