"""A pass by batches, against the simulated endpoint's files and batches over real HTTP."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alkd_ray import plans
from alkd_ray.annotation import entries, worker
from alkd_ray.annotation.batches import Batches
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.worker import annotate
from alkd_ray.cli.main import build
from alkd_ray.config import RunConfig
from alkd_ray.errors import BudgetError
from alkd_ray.types import AnnotationOutcome, Caps
from tests.annotation_rows import BATCH_RATES, Server, job, serving

QUICK = ("--batch-seconds", "0.3")


def bought(folder: Path, server: Server, **given: Any) -> AnnotationOutcome:
    """The outcome of a pass by batches."""
    settings = {"mode": "batch", "batch_poll_seconds": 0.1} | given
    return annotate(job(folder / "store", server.url, options={"rates": BATCH_RATES}, **settings))


def check(folder: Path, server: Server, outcome: AnnotationOutcome) -> None:
    """The books, the bill and the outcome say the same."""
    bill = server.bill()
    with Database(folder / "store" / "books.sqlite", read_only=True) as database:
        assert Ledger(database).audit("test")
    assert outcome.ledger.settled.microusd == bill["microusd"]
    assert outcome.ledger.settled.requests == bill["requests"]
    assert outcome.ledger.held.requests == outcome.ledger.unresolved.requests == 0
    for annotation in outcome.annotations:
        assert len(set(annotation.ranking.tolist())) == len(annotation.ranking)


def outcomes(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "store" / "books.sqlite") as connection:
        return [row[0] for row in connection.execute("SELECT outcome FROM batches ORDER BY number")]


def test_batches_give_what_single_requests_give_at_half_the_price(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        outcome = bought(tmp_path, server, batch_size=15)
        check(tmp_path, server, outcome)
        half = server.bill()["microusd"]
        again = bought(tmp_path, server)
        live = annotate(job(tmp_path / "live", server.url))
        single = server.bill()["microusd"] - half
    assert outcome.status == again.status == live.status == "complete"
    assert again.sent == 0
    assert outcomes(tmp_path) == ["completed"] * 3
    assert half == pytest.approx(single / 2, abs=len(live.annotations))
    for one, other in zip(outcome.annotations, live.annotations, strict=True):
        assert one.key == other.key
        assert one.ranking.tolist() == other.ranking.tolist()


def test_either_mode_finds_what_the_other_bought(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        first = annotate(job(tmp_path / "store", server.url, count=20))
        second = bought(tmp_path, server, count=40)
        third = annotate(job(tmp_path / "store", server.url, count=40))
        assert server.bill()["requests"] == 40
    assert (first.sent, second.sent, third.sent) == (20, 20, 0)


def test_failed_lines_and_broken_rankings_are_asked_again(tmp_path: Path) -> None:
    flags = ("--batch-line-error-share", "0.3", "--truncated-share", "0.4", "--seed", "3")
    with serving(tmp_path, *QUICK, *flags) as server:
        outcome = bought(tmp_path, server)
        check(tmp_path, server, outcome)
    assert len(outcome.annotations) == 40
    assert outcome.sent > 40
    assert any(annotation.repairs for annotation in outcome.annotations)


def test_what_an_expired_batch_did_not_reach_goes_into_the_next(tmp_path: Path) -> None:
    with serving(tmp_path, "--batch-seconds", "1", "--batch-expire-after-seconds", "0.6") as server:
        outcome = bought(tmp_path, server, tries=6)
        check(tmp_path, server, outcome)
    # The last ones never have their turn: a batch of one is answered at its very end.
    failures = [annotation.failure for annotation in outcome.annotations if annotation.failure]
    assert len(outcome.annotations) == 40
    assert 1 <= len(failures) <= 4
    assert all("6 tries" in failure for failure in failures)
    assert outcomes(tmp_path).count("expired") >= 6


def test_a_batch_that_is_refused_as_a_whole_is_submitted_again(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK, "--batch-fail-share", "0.5") as server:
        outcome = bought(tmp_path, server, batch_size=4, tries=30)
        check(tmp_path, server, outcome)
    assert outcome.status == "complete"
    assert any(text.startswith("failed: ") for text in outcomes(tmp_path))


def test_an_endpoint_that_refuses_every_batch_ends_the_pass_at_no_cost(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK, "--batch-fail-share", "1") as server:
        outcome = bought(tmp_path, server, tries=2)
        check(tmp_path, server, outcome)
        assert server.bill()["requests"] == 0
    assert outcome.status == "stopped"
    assert "2 batches in a row" in outcome.reason


def test_a_lost_reply_to_a_submission_makes_no_second_batch(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK, "--batch-drop-share", "1") as server:
        outcome = bought(tmp_path, server, batch_size=20)
        check(tmp_path, server, outcome)
        assert server.bill()["requests"] == 40
    assert outcome.status == "complete"


def test_an_endpoint_without_batches_says_how_to_go_on(tmp_path: Path) -> None:
    with serving(tmp_path, "--no-batches") as server:
        outcome = bought(tmp_path, server)
    assert outcome.status == "stopped"
    assert "annotation.mode=live" in outcome.reason
    assert outcome.ledger.held.requests == 0


def test_an_endpoint_without_schemas_is_asked_for_less(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK, "--no-json-schema") as server:
        outcome = bought(tmp_path, server)
        check(tmp_path, server, outcome)
    assert outcome.status == "complete"


def test_a_used_up_quota_stops_a_pass_by_batches_as_any_other(tmp_path: Path) -> None:
    # All four are submitted before the first one has used any of it.
    with serving(tmp_path, "--batch-seconds", "4", "--quota-requests", "15") as server:
        outcome = bought(tmp_path, server, batch_size=10)
        check(tmp_path, server, outcome)
        assert server.bill()["requests"] == 15
    assert outcome.status == "stopped"
    assert "quota" in outcome.reason
    assert outcomes(tmp_path) == ["completed"] * 4  # and none was submitted after that
    assert len(outcome.annotations) == 15
    assert not any(annotation.failure for annotation in outcome.annotations)


def test_a_tight_cap_makes_small_batches_and_holds(tmp_path: Path) -> None:
    """The cap covers a quarter of the worst cases at once, and all of the work in turns."""
    with serving(tmp_path, *QUICK) as server:
        outcome = bought(tmp_path, server, caps=Caps(microusd=2_500), partial=True)
        check(tmp_path, server, outcome)
        assert server.bill()["microusd"] <= 2_500
    assert outcome.status == "complete"
    assert len(outcomes(tmp_path)) > 2


def test_a_cap_below_the_work_stops_within_one_worst_case(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server:
        with pytest.raises(BudgetError):
            bought(tmp_path, server, caps=Caps(microusd=900))
        outcome = bought(tmp_path, server, caps=Caps(microusd=900), partial=True)
        check(tmp_path, server, outcome)
        assert server.bill()["microusd"] <= 900
    assert outcome.status == "stopped"
    assert "cap" in outcome.reason
    worst = 2_500 // 10
    assert 900 - outcome.ledger.settled.microusd < worst


def test_asking_again_that_cannot_be_paid_keeps_no_other_row_from_being_asked(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, *QUICK, "--truncated-share", "1") as server:
        bought(tmp_path / "whole", server, count=2)
        books = tmp_path / "whole" / "store" / "books.sqlite"
        with Database(books, read_only=True) as database:
            holds = Ledger(database).entries("test")
        asked, again = ([hold for hold in holds if hold.attempt == n] for n in (1, 2))
        firsts = asked[0].actual.microusd + max(hold.worst.microusd for hold in asked)
        assert firsts < asked[0].actual.microusd + min(hold.worst.microusd for hold in again)
        outcome = bought(
            tmp_path, server, count=2, batch_size=1, caps=Caps(microusd=firsts), partial=True
        )
    assert outcome.sent == 2


def test_an_endpoint_that_breaks_its_limit_gets_no_further_batch(tmp_path: Path) -> None:
    tight = {"batch_size": 10, "caps": Caps(microusd=2_000), "partial": True}
    with serving(tmp_path, *QUICK, "--ignore-max-tokens-share", "1") as server:
        outcome = bought(tmp_path, server, **tight)
        first = server.bill()["requests"]
        again = bought(tmp_path, server, **tight)
        assert server.bill()["requests"] == first < 40
    assert outcome.status == again.status == "breached"


def test_a_live_pass_leaves_alone_what_is_in_a_batch(tmp_path: Path) -> None:
    with serving(tmp_path, "--batch-seconds", "600") as server:
        with pytest.raises(TimeoutError):
            _interrupted(tmp_path, server, count=10)
        live = annotate(job(tmp_path / "store", server.url, count=15))
        assert server.bill()["requests"] == 5
    assert live.status == "partial"
    assert sum("annotation.mode=batch" in a.failure for a in live.annotations) == 10
    assert live.ledger.held.requests == 10


def _interrupted(folder: Path, server: Server, **given: Any) -> None:
    """A batch pass that its process gives up while the batch is under way."""

    def give_up(progress: Any) -> None:
        if progress.in_flight:
            raise TimeoutError

    settings = {"mode": "batch", "batch_poll_seconds": 0.1} | given
    made = job(folder / "store", server.url, options={"rates": BATCH_RATES}, **settings)
    annotate(made, give_up)


def test_a_batch_of_an_earlier_process_is_collected(tmp_path: Path) -> None:
    with serving(tmp_path, "--batch-seconds", "1") as server:
        with pytest.raises(TimeoutError):
            _interrupted(tmp_path, server)
        outcome = bought(tmp_path, server)
        check(tmp_path, server, outcome)
        assert server.bill()["requests"] == 40
    assert outcome.status == "complete"
    assert outcomes(tmp_path) == ["completed"]


def test_what_is_in_a_batch_is_not_planned_again(tmp_path: Path) -> None:
    """What it holds, at its worst, leaves the cap less than its requests are expected to cost."""
    cap = Caps(microusd=5_000)
    with serving(tmp_path, "--batch-seconds", "1") as server:
        with pytest.raises(TimeoutError):
            _interrupted(tmp_path, server, caps=cap)
        here = job(tmp_path / "store", server.url, options={"rates": BATCH_RATES}, mode="batch")
        endpoint = worker.teacher_of(here.llm).describe()
        asked = plans.Asked(here, endpoint, (), worker.rank_questions(here, endpoint))
        with Database(tmp_path / "store" / "books.sqlite", read_only=True) as database:
            tally = plans._Tally(endpoint, here.annotation)
            tally.add(asked, Store(database))
            state = Ledger(database).state("test")
            in_batches = tally.in_batches(Store(database), RunConfig(budget={"name": "test"}))
            planned = entries.left(in_batches.collected(state))
            rankings = tally.plans(Store(database), planned)[1]
        under_way = state.held.requests
        assert 0 < under_way < 40
        assert (rankings.requests, rankings.to_send) == (40, 40 - under_way)
        assert entries.left(state).microusd < rankings.expected.microusd < planned.microusd
        outcome = bought(tmp_path, server, caps=cap)
        check(tmp_path, server, outcome)
        assert server.bill()["requests"] == 40
    assert outcome.status == "complete"


def test_a_batch_is_collected_although_the_limit_is_asked_for_by_another_name_now(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "--batch-seconds", "1") as server:
        with pytest.raises(TimeoutError):
            _interrupted(tmp_path, server, count=10)
        options = {"rates": BATCH_RATES, "output_limit_field": "max_completion_tokens"}
        settings = {"mode": "batch", "batch_poll_seconds": 0.1, "count": 10}
        outcome = annotate(job(tmp_path / "store", server.url, options=options, **settings))
        check(tmp_path, server, outcome)
        assert server.bill()["requests"] == 20  # other bodies are other questions
    assert outcome.status == "complete"
    assert outcomes(tmp_path) == ["completed"] * 2


def test_a_batch_that_nobody_can_collect_is_given_up_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALKD_HOME", str(tmp_path))
    monkeypatch.delenv("ALKD_BOOKS", raising=False)

    def told(*words: str, fails: bool = False) -> str:
        done = CliRunner().invoke(build(), words)
        assert bool(done.exit_code) is fails, done.output
        return f"{done.output} {done.exception}"

    with serving(tmp_path, "--batch-seconds", "600") as server:
        with pytest.raises(TimeoutError):
            _interrupted(tmp_path, server, count=10)
        with Database(tmp_path / "store" / "books.sqlite", read_only=True) as database:
            (entry,) = Batches(database).all_under_way()
            hold = Batches(database).holds(entry.label)[0].hold_id
        assert "held in batches: a run with annotation.mode=batch collects them" in told(
            "ledger", "show"
        )
        assert hold not in told("ledger", "show")
        refused = told("ledger", "resolve", hold, "--write-off", fails=True)
        assert f"alkd annotate abandon {entry.label}" in refused
        refused = told("ledger", "resolve", entry.label, "--write-off", fails=True)
        assert f"give it up first (alkd annotate abandon {entry.label})" in refused
        assert "no batch 'x' under way" in told("annotate", "abandon", "x", fails=True)
        assert "no batch '' under way" in told("annotate", "abandon", "", fails=True)
        assert f"alkd annotate abandon {entry.label}" in told("annotate", "status")
        assert "10 of its holds are unresolved" in told("annotate", "abandon", entry.batch_id)
        assert outcomes(tmp_path) == ["abandoned"]
        shown = told("ledger", "show")
        assert f"in batch {entry.label}" in shown
        assert "held in batches" not in shown
        live = annotate(job(tmp_path / "store", server.url, count=10))
        assert live.status == "complete"
        assert live.ledger.unresolved.requests == 10
        told("annotate", "abandon", entry.label, fails=True)  # it is over
        assert "10 unresolved holds written off" in told(
            "ledger", "resolve", entry.label, "--write-off"
        )
        with Database(tmp_path / "store" / "books.sqlite", read_only=True) as database:
            state = Ledger(database).state("test")
            assert Ledger(database).audit("test")
        assert state.settled.microusd == server.bill()["microusd"]
        assert state.held.requests == state.unresolved.requests == 0
