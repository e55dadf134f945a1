"""A pass against an endpoint that refuses, or has something in front of it that does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from alkd_ray.annotation.database import Database
from alkd_ray.annotation.overview import refused_keys
from alkd_ray.annotation.refusals import REFUSED_ALIKE
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.worker import AnnotationJob, annotate
from tests.annotation_rows import BATCH_RATES, job
from tests.simulated_server import Instead, serving


def error(status: int, message: str, http: int | None = None, **headers: str) -> web.Response:
    """An error, perhaps sent with another HTTP status than its own."""
    body = {"error": {"message": message, "code": status}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response(body, status=http or status, headers=named)


def refused(here: AnnotationJob) -> dict[str, str]:
    """What was refused for good."""
    with Database(here.books, read_only=True) as database:
        return refused_keys(database)


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize(("tokens", "status"), [(60, "complete"), (3_000, "breached")])
def test_reasoning_that_only_the_total_counts_is_paid_for(
    tmp_path: Path, mode: str, tokens: int, status: str
) -> None:
    with serving(reasoning_tokens=tokens) as server:
        given: dict[str, Any] = {"mode": mode, "batch_poll_seconds": 0.1, "in_flight": 4}
        rates = {"rates": BATCH_RATES}
        outcome = annotate(job(tmp_path / "store", server.url, count=12, options=rates, **given))
        bill = server.bill()
    settled = outcome.ledger.settled
    assert outcome.status == status
    assert settled.microusd == bill["microusd"]
    assert settled.tokens == bill["prompt_tokens"] + bill["completion_tokens"]


@pytest.mark.parametrize(
    ("status", "message"),
    [(402, "Insufficient Balance"), (400, "Your credit balance is too low to access the API.")],
)
def test_a_balance_that_is_used_up_stops_the_pass_and_loses_no_row(
    tmp_path: Path, status: int, message: str
) -> None:
    has_money = False

    async def instead(number: int) -> web.Response | None:
        return None if has_money or number <= 5 else error(status, message)

    with serving(instead=instead) as server:
        here = job(tmp_path / "store", server.url)
        outcome = annotate(here)
        assert outcome.status == "stopped"
        assert message in outcome.reason
        assert refused(here) == {}
        has_money = True
        rest = annotate(here)
        bill = server.bill()
    assert rest.status == "complete"
    assert bill["requests"] == 40
    assert bill["microusd"] == rest.ledger.settled.microusd


def test_refusals_that_all_say_the_same_stop_the_pass(tmp_path: Path) -> None:
    is_locked = True
    asked = 0

    async def instead(number: int) -> web.Response | None:
        nonlocal asked
        asked = number
        return error(400, "This organisation is locked.") if is_locked and number > 5 else None

    with serving(instead=instead) as server:
        here = job(tmp_path / "store", server.url, in_flight=1)
        outcome = annotate(here)
        assert outcome.status == "stopped"
        assert f"{REFUSED_ALIKE} requests in a row were refused alike" in outcome.reason
        assert asked == 5 + REFUSED_ALIKE
        assert len(refused(here)) == REFUSED_ALIKE - 1
        is_locked = False
        with Database(here.books) as database:
            Store(database).ask_again(refused_keys(database), "by hand")
        rest = annotate(here)
        assert server.bill()["requests"] == 40
    assert rest.status == "complete"


def test_rows_that_are_refused_among_others_fail_alone(tmp_path: Path) -> None:
    async def instead(number: int) -> web.Response | None:
        return error(400, "The prompt is too long.") if number % 2 else None

    with serving(instead=instead, latency_seconds=0.1) as server:  # an answer takes longer
        outcome = annotate(job(tmp_path / "store", server.url))
    assert outcome.status == "partial"
    assert len(outcome.annotations) == 40
    assert sum(bool(annotation.failure) for annotation in outcome.annotations) == 20


def test_an_input_that_is_flagged_fails_alone(tmp_path: Path) -> None:
    async def instead(number: int) -> web.Response | None:
        return error(403, "Your input was flagged.") if number == 3 else None

    with serving(instead=instead) as server:
        outcome = annotate(job(tmp_path / "store", server.url, in_flight=1))
        assert server.bill()["requests"] == 39
    assert outcome.status == "partial"
    assert outcome.annotations[2].failure == "HTTP 403 Your input was flagged."


def page() -> web.Response:
    return web.Response(text="<html>Back soon</html>", content_type="text/html")


def answered(folder: Path, instead: Instead, **given: Any) -> tuple[Any, AnnotationJob, dict]:
    """Outcome, pass and bill."""
    with serving(instead=instead) as server:
        here = job(folder / "store", server.url, **given)
        return annotate(here), here, server.bill()


def test_a_page_that_comes_for_an_answer_loses_no_row(tmp_path: Path) -> None:
    async def instead(number: int) -> web.Response | None:
        return page() if number <= 3 else None

    outcome, here, bill = answered(tmp_path, instead)
    assert outcome.status == "complete"
    assert outcome.ledger.unresolved.requests == 3
    assert outcome.ledger.settled.microusd == bill["microusd"]
    with Database(here.books, read_only=True) as database:
        stored = Store(database).answers([row.key for row in outcome.annotations])
        reasons = database.execute("SELECT why FROM holds WHERE status = 'unresolved'").fetchall()
    assert all("choices" in json.loads(a.raw) for kept in stored.values() for a in kept)
    assert set(reasons) == {("HTTP 200 without a completion: <html>Back soon</html>",)}


def test_rows_that_only_got_pages_are_asked_by_the_next_pass(tmp_path: Path) -> None:
    is_closed = True

    async def instead(number: int) -> web.Response | None:
        return page() if is_closed else None

    with serving(instead=instead) as server:
        here = job(tmp_path / "store", server.url, count=2, tries=2)
        outcome = annotate(here)
        assert outcome.status == "partial"
        assert all("gave up after 2 tries: HTTP 200" in row.failure for row in outcome.annotations)
        is_closed = False
        assert annotate(here).status == "complete"


def test_errors_that_are_called_successes_are_not_paid_for(tmp_path: Path) -> None:
    async def passing(number: int) -> web.Response | None:
        return error(503, "Provider returned error", http=200) if number <= 3 else None

    async def lasting(number: int) -> web.Response | None:
        return error(402, "Insufficient credits", http=200) if number > 5 else None

    outcome, _, bill = answered(tmp_path / "passing", passing)
    assert outcome.status == "complete"
    assert outcome.ledger.unresolved.requests == 0
    assert outcome.ledger.settled.microusd == bill["microusd"]
    outcome, here, _ = answered(tmp_path / "lasting", lasting)
    assert outcome.status == "stopped"
    assert "Insufficient credits" in outcome.reason
    assert refused(here) == {}


def revoked() -> web.Response:
    return error(401, "The key was revoked.")


def too_long() -> web.Response:
    """An answer of more tokens than were allowed: only the desk sees that the pass is over."""
    usage = {"prompt_tokens": 500, "completion_tokens": 5_000, "total_tokens": 5_500}
    choice = {"message": {"role": "assistant", "content": "[1, 2]"}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": usage})


@pytest.mark.parametrize(
    ("last_word", "status", "reason"),
    [(revoked, "stopped", "revoked"), (too_long, "breached", "billed more than was held")],
)
def test_the_end_of_a_pass_waits_for_no_pause(
    tmp_path: Path, last_word: Callable[[], web.Response], status: str, reason: str
) -> None:
    async def instead(number: int) -> web.Response | None:
        if number != 3:
            return error(429, "Slow down.", Retry_After="60")
        await asyncio.sleep(0.5)
        return last_word()

    started = time.monotonic()
    outcome, _, _ = answered(tmp_path, instead, in_flight=4)
    assert outcome.status == status
    assert reason in outcome.reason
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_of_a_day_stops_the_pass(tmp_path: Path, status: int) -> None:
    async def instead(number: int) -> web.Response | None:
        return error(status, "Come back tomorrow.", Retry_After="86400") if number > 5 else None

    outcome, here, bill = answered(tmp_path, instead, in_flight=1)
    assert outcome.status == "stopped"
    assert "a wait of 86,400 s" in outcome.reason
    assert "Come back tomorrow" in outcome.reason
    assert (len(outcome.annotations), refused(here)) == (5, {})
    assert outcome.ledger.settled.microusd == bill["microusd"]
