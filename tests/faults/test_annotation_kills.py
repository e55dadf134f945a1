"""kill -9 in the middle of a pass by actors; then the same command again.

The endpoint behaves, and lies outside of what is killed, so that its bill can be counted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alkd_ray.annotation import worker
from alkd_ray.types import Amounts, AnnotationOutcome
from tests.annotation_rows import job, serving
from tests.faults._accounts import (
    Books,
    bill_hashes,
    books_of,
    times_billed,
    until,
    worst_left,
)
from tests.faults._driver import job_of
from tests.faults._killing import Programs, are_gone, programs

COUNT, ACTORS, IN_FLIGHT = 60, 2, 6


@dataclass(frozen=True)
class Kind:
    """A way to kill.

    Attributes:
        victim: who is killed.
        seconds: shortest and longest time that an answer takes.
        count: rows of the pass.
        most_lost: requests in flight whose answers may be lost.
    """

    victim: str
    seconds: tuple[float, float] = (0.3, 0.9)  # the pass is not over before it is hit
    count: int = COUNT
    most_lost: int = ACTORS * IN_FLIGHT

    @property
    def flags(self) -> tuple[str, ...]:
        least, most = self.seconds
        return ("--latency", str(least), "--jitter", str(most - least))


KINDS = {
    # The actors of a dead driver go on for a moment; slow answers are still on their way then.
    "driver": Kind("driver", (1.0, 2.0)),
    "annotator": Kind("annotator", most_lost=IN_FLIGHT),
    "desk": Kind("desk"),
    "everything": Kind("everything"),
    # Answers that come after the desk has been started again.
    "desk-slow-answers": Kind("desk", (4.0, 12.0), count=36),
}
IN_DEFAULT_RUN = ("driver", "annotator", "desk", "everything")
REPEATS = {"driver": 7, "annotator": 7, "desk": 6, "everything": 7, "desk-slow-answers": 3}
KILLS = [(number, name) for name, times in REPEATS.items() for number in range(times)]


@dataclass(frozen=True)
class Undisturbed:
    """A pass that nobody kills.

    Attributes:
        rankings: by session.
        cost: of all rows, micro-dollars.
        worst: the most that one request can cost, micro-dollars.
    """

    rankings: list[list[Any]]
    cost: int
    worst: int


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    with serving(folder) as server:
        here = job(folder / "store", server.url, count=COUNT)
        first = worker.annotate(job(folder / "store", server.url, count=1))
        worst = max(amounts.microusd for amounts in worst_left(here))
        outcome = worker.annotate(here)
    assert (first.status, outcome.status) == ("complete", "complete")
    return Undisturbed(_rankings(outcome), outcome.ledger.settled.microusd, worst)


@pytest.fixture
def started() -> Iterator[Programs]:
    with programs() as made:
        yield made


@pytest.mark.parametrize(
    ("seed", "name"),
    [
        pytest.param(
            seed,
            name,
            marks=() if seed == 0 and name in IN_DEFAULT_RUN else pytest.mark.slow,
            id=f"{name}-{seed}",
        )
        for seed, name in KILLS
    ],
)
def test_a_kill_loses_no_answer_and_repeats_only_what_was_in_flight(
    tmp_path: Path, started: Programs, undisturbed: Undisturbed, seed: int, name: str
) -> None:
    from alkd_ray.runtime import annotators

    kind = KINDS[name]
    draw = random.Random(f"{name} {seed}")
    kill_after = draw.randint(3, kind.count - 2 * ACTORS * IN_FLIGHT)
    rankings = undisturbed.rankings[: kind.count]
    with serving(tmp_path, *kind.flags) as server:
        described = {
            "folder": str(tmp_path / "store"),
            "url": server.url,
            "count": kind.count,
            # What is unresolved counts in full, so the cap has room for that and for one request.
            "microusd": undisturbed.cost + (ACTORS * IN_FLIGHT + 1) * undisturbed.worst,
            "actors": ACTORS,
            "in_flight": IN_FLIGHT,
        }
        here = job_of(described)
        program = started.start(described)
        until(lambda: server.bill()["requests"] >= kill_after or not program.is_running(), 300)
        assert program.is_running(), program.said()
        actors = program.kill(kind.victim, draw)
        at_kill = books_of(here)
        if kind.victim in ("driver", "everything"):
            program.process.wait(60)
            outcome = started.start(described).outcome()
        else:
            outcome = program.outcome()
        assert are_gone(actors)
        again = annotators.annotate(here)  # nothing is left to ask, so it starts no Ray
        books = books_of(here)
        bill, billed = server.bill(), times_billed(server)
    lost = books.ever_unresolved
    print(
        f"{name} {seed}: killed at {kill_after} billed; {len(at_kill.bodies)} answers stored, "
        f"{at_kill.state.held.requests} held then; in the end {bill['requests']} billed, "
        f"{books.state.settled.requests} settled, {books.state.unresolved.requests} unresolved, "
        f"{len(lost)} ever unresolved, {sum(billed.values()) - len(billed)} repeated"
    )
    assert (outcome["status"], outcome["reason"]) == ("complete", "")
    assert outcome["rankings"] == rankings
    assert (again.sent, _rankings(again)) == (0, rankings)
    _check_nothing_is_lost(at_kill, books)
    _check_the_bill(here, server_bill=bill, books=books)
    # Twice only what was in flight at the kill, each of which the books have as not known.
    assert set(billed) == set(bill_hashes(here))
    repeated = {bill_hashes(here)[name] for name, times in billed.items() if times > 1}
    assert max(billed.values()) <= 2
    assert repeated <= {entry.key for entry in lost}
    assert len(lost) <= kind.most_lost
    if kind.victim == "desk":
        # Those who asked are alive: every answer was settled late, in full.
        assert books.state.unresolved == Amounts()
        assert books.state.settled.requests == bill["requests"]


def _rankings(outcome: AnnotationOutcome) -> list[list[Any]]:
    return [[a.session_id, a.ranking.tolist()] for a in outcome.annotations]


def _check_nothing_is_lost(before: Books, after: Books) -> None:
    """Answers that were stored are there, word for word, and what is settled stays so."""
    for name, raw in before.bodies.items():
        assert after.bodies[name] == raw
    assert before.state.settled.microusd <= after.state.settled.microusd
    ended = {entry.hold_id: entry for entry in after.entries}
    for entry in before.entries:
        if entry.status in ("settled", "released"):
            assert ended[entry.hold_id] == entry


def _check_the_bill(here: worker.AnnotationJob, server_bill: dict, books: Books) -> None:
    state = books.state
    assert books.is_sound
    assert state.held == Amounts()
    most = state.settled.microusd + state.unresolved.microusd
    assert state.settled.microusd <= server_bill["microusd"] <= most
    assert here.caps.microusd is not None
    assert server_bill["microusd"] <= most <= here.caps.microusd
    assert state.settled.requests <= server_bill["requests"]
    # An answer and its settlement are one.
    settled = {entry.hold_id for entry in books.entries if entry.actual.requests}
    stored = [answer.hold_id for found in books.answers.values() for answer in found]
    assert sorted(settled) == sorted(stored)
