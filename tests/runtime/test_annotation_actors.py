"""A pass by Ray actors: the same as in one process, also when actors die in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from alkd_ray.annotation import worker
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.types import AnnotationOutcome
from tests import simulated_server
from tests.annotation_rows import Server, job, serving

COUNT, ACTORS, IN_FLIGHT = 150, 2, 6


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    from alkd_ray.runtime import cluster

    cluster.ensure_ray(num_cpus=2)
    yield
    cluster.shutdown()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "--latency", ".15") as started:
        yield started


def rankings(outcome: AnnotationOutcome) -> list[list[int]]:
    return [annotation.ranking.tolist() for annotation in outcome.annotations]


def actor_job(tmp_path: Path, server: Server) -> worker.AnnotationJob:
    return job(tmp_path / "actors", server.url, count=COUNT, actors=ACTORS, in_flight=IN_FLIGHT)


def test_actors_buy_what_one_process_buys(tmp_path: Path, server: Server) -> None:
    from alkd_ray.runtime import annotators

    told: list[worker.Progress] = []
    by_actors = annotators.annotate(actor_job(tmp_path, server), told.append)
    billed = server.bill()["requests"]
    plain = worker.annotate(replace(actor_job(tmp_path, server), folder=tmp_path / "plain"))
    assert by_actors.status == plain.status == "complete"
    assert rankings(by_actors) == rankings(plain)
    assert billed == by_actors.sent == COUNT
    assert by_actors.ledger.settled == plain.ledger.settled
    assert told[-1].done == COUNT
    assert annotators.annotate(actor_job(tmp_path, server)).sent == 0


@pytest.mark.parametrize("victim", ["_Annotator", "_Desk"])
def test_a_killed_actor_costs_at_most_what_was_in_flight(
    tmp_path: Path, server: Server, victim: str
) -> None:
    from alkd_ray.runtime import annotators

    here = actor_job(tmp_path, server)
    killer = _after(server, 40, lambda: _kill_actor(victim))
    outcome = annotators.annotate(here)
    killer.join()
    assert outcome.status == "complete"
    assert len(outcome.annotations) == COUNT
    bill = server.bill()
    assert COUNT <= bill["requests"] <= COUNT + ACTORS * IN_FLIGHT
    ledger = outcome.ledger
    assert ledger.held.requests == 0
    assert ledger.settled.microusd <= bill["microusd"]
    assert bill["microusd"] <= ledger.settled.microusd + ledger.unresolved.microusd
    assert ledger.unresolved.requests <= ACTORS * IN_FLIGHT
    with Database(here.books, read_only=True) as database:
        assert Ledger(database).audit("test")
    undisturbed = worker.annotate(replace(here, folder=tmp_path / "plain"))
    assert rankings(outcome) == rankings(undisturbed)


def test_an_actor_that_waits_for_the_endpoint_hears_that_the_pass_is_over(tmp_path: Path) -> None:
    """One actor is told to wait for four minutes; then the other one's key is refused."""
    from alkd_ray.runtime import annotators

    async def instead(number: int) -> web.Response:
        if number == 1:
            return web.json_response({}, status=429, headers={"Retry-After": "240"})
        await asyncio.sleep(0.5)
        return web.json_response({"error": {"message": "The key was revoked."}}, status=401)

    with simulated_server.serving(instead=instead) as here:
        one_lane_each = job(tmp_path, here.url, count=20, in_flight=1, actors=2)
        outcome = annotators.annotate(one_lane_each)
    assert outcome.status == "stopped"
    assert "revoked" in outcome.reason
    assert outcome.seconds < 200


def _after(server: Server, billed: int, act: Callable[[], None]) -> threading.Thread:
    def wait() -> None:
        while server.bill()["requests"] < billed:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _kill_actor(name: str) -> None:
    """kill -9 of one actor's process, among those that this test's Ray started."""
    for process in psutil.Process().children(recursive=True):
        if f"ray::{name}" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError(f"no process of {name}")
