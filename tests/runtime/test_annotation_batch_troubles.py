"""Batches whose endpoint is full, forgetful or slow for a while: nothing bought is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp import web

from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.types import Caps
from tests.troubled_batches import (
    Handler,
    Trouble,
    bought,
    check,
    check_one_batch,
    outcomes,
    serving,
)

QUEUE_FULL = {
    "code": "token_limit_exceeded",
    "message": "Enqueued token limit reached for this model. Please try again once some "
    "in_progress batches have been completed.",
}


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
