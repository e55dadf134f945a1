"""The ledger's rules one by one, and ``alkd ledger``; interleavings are in tests/property."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from alkd_ray.annotation import pricing
from alkd_ray.annotation.database import FILE_NAME, Database
from alkd_ray.annotation.entries import left
from alkd_ray.annotation.ledger import BREACHED, IN_FLIGHT, Ledger, LedgerError
from alkd_ray.cli.ledger import app
from alkd_ray.errors import InputError
from alkd_ray.types import Amounts, Caps

ONE = Amounts(100, 50, 1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    database = Database(tmp_path / FILE_NAME)
    yield Ledger(database)
    database.close()


@pytest.mark.parametrize(
    ("caps", "admitted", "sentence"),
    [
        (
            Caps(microusd=1_000),
            10,
            "the cap of 0.001 USD of budget 'b' leaves 0.00 USD, "
            "and the next request may cost 0.0001 USD",
        ),
        (
            Caps(tokens=199),
            3,
            "the cap of 199 tokens of budget 'b' leaves 49 tokens, "
            "and the next request may cost 50 tokens",
        ),
        (
            Caps(requests=7),
            7,
            "the cap of 7 requests of budget 'b' leaves 0 requests, "
            "and the next request may cost 1 request",
        ),
        (
            Caps(microusd=500, tokens=10_000, requests=100),
            5,
            "the cap of 0.0005 USD of budget 'b' leaves 0.00 USD, "
            "and the next request may cost 0.0001 USD",
        ),
    ],
)
def test_a_cap_admits_what_fits_exactly_and_says_what_does_not(
    ledger: Ledger, caps: Caps, admitted: int, sentence: str
) -> None:
    ledger.open_budget("b", caps)
    for number in range(admitted):
        assert ledger.hold("b", f"{number}", ONE) == ""
    assert ledger.hold("b", "more", ONE) == sentence
    assert len(ledger.entries("b")) == admitted


def test_without_caps_everything_is_admitted(ledger: Ledger) -> None:
    state = ledger.open_budget("b", Caps())
    assert left(state) == Caps()
    assert ledger.hold("b", "one", Amounts(10**15, 10**15, 1)) == ""


def test_a_cap_of_zero_admits_what_is_free(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps(microusd=0))
    assert ledger.hold("b", "free", Amounts(0, 50, 1)) == ""
    assert ledger.hold("b", "paid", Amounts(1, 50, 1)) != ""


def test_settling_gives_back_what_was_not_needed(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps(microusd=150))
    ledger.hold("b", "one", ONE)
    assert ledger.hold("b", "two", ONE) != ""
    assert ledger.settle("one", Amounts(30, 20, 1)) is False
    assert ledger.hold("b", "two", ONE) == ""
    state = ledger.state("b")
    assert (state.settled, state.held) == (Amounts(30, 20, 1), ONE)
    assert left(state) == Caps(microusd=20)
    ledger.release("two")
    assert left(ledger.state("b")) == Caps(microusd=120)


def test_unresolved_is_not_free_until_somebody_settles_it(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps(microusd=200))
    ledger.hold("b", "late", ONE)
    ledger.hold("b", "lost", ONE)
    ledger.leave_unresolved("late", "timeout after the bytes were sent")
    ledger.leave_unresolved("lost", "connection reset")
    assert ledger.state("b").unresolved == Amounts(200, 100, 2)
    assert ledger.hold("b", "next", Amounts(1, 1, 1)) != ""
    assert ledger.settle("late", Amounts(60, 30, 1)) is False
    assert ledger.entry("late").why == "timeout after the bytes were sent"
    ledger.resolve("lost", Amounts())
    lost = ledger.entry("lost")
    assert (lost.status, lost.by_hand, lost.actual) == ("settled", True, Amounts())
    assert ledger.state("b").unresolved == Amounts()
    assert ledger.state("b").settled == Amounts(60, 30, 1)


@pytest.mark.parametrize(
    "actual", [Amounts(101, 50, 1), Amounts(100, 51, 1), Amounts(0, 0, 2), Amounts(900, 900, 9)]
)
def test_a_breach_is_settled_in_full_and_stops_admission(ledger: Ledger, actual: Amounts) -> None:
    ledger.open_budget("b", Caps(microusd=10_000))
    ledger.hold("b", "over", ONE)
    ledger.hold("b", "other", ONE)
    assert ledger.settle("over", actual) is True
    assert ledger.state("b").settled == actual
    beyond = Amounts(
        max(actual.microusd - 100, 0), max(actual.tokens - 50, 0), max(actual.requests - 1, 0)
    )
    assert ledger.total_breach("b") == ledger.entry("over").overshoot == beyond
    assert ledger.state("b").breached_microusd == beyond.microusd
    assert ledger.hold("b", "next", ONE).startswith(BREACHED)
    ledger.settle("other", ONE)  # what is in flight is still settled
    ledger.open_budget("b", Caps(microusd=10_000))  # the same cap again lifts nothing
    assert ledger.hold("b", "next", ONE).startswith(BREACHED)
    ledger.accept_breach("over")
    assert ledger.hold("b", "next", ONE) == ""
    assert ledger.total_breach("b") == beyond  # on record for good
    assert ledger.audit("b")


@pytest.mark.parametrize("raised", [Caps(microusd=10_001), Caps()])
def test_raising_the_cap_lifts_a_breach(ledger: Ledger, raised: Caps) -> None:
    ledger.open_budget("b", Caps(microusd=10_000))
    ledger.hold("b", "over", ONE)
    ledger.settle("over", Amounts(200, 50, 1))
    ledger.open_budget("b", Caps(microusd=9_000))
    assert ledger.hold("b", "next", ONE).startswith(BREACHED)
    ledger.open_budget("b", raised)
    assert ledger.open_breaches("b") == 0
    assert ledger.hold("b", "next", ONE) == ""
    assert ledger.audit("b")


def test_a_breach_stops_its_own_budget_only(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps())
    ledger.open_budget("c", Caps())
    ledger.hold("b", "over", ONE)
    ledger.settle("over", Amounts(200, 50, 1))
    assert ledger.hold("c", "other", ONE) == ""
    assert ledger.total_breach("c") == Amounts()
    assert ledger.total_breach() == Amounts(100, 0, 0)


def test_lowering_a_cap_below_what_is_spent_stops_admission(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps(microusd=1_000))
    ledger.hold("b", "one", ONE)
    ledger.settle("one", ONE)
    assert ledger.open_budget("b", Caps(microusd=40)).settled == ONE
    assert "leaves 0.00 USD" in ledger.hold("b", "two", Amounts(0, 0, 1))
    assert left(ledger.state("b")) == Caps(microusd=0)


def test_one_request_in_flight_per_key_in_the_whole_file(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps())
    ledger.open_budget("c", Caps())
    assert ledger.hold("b", "one", ONE, key="same") == ""
    assert ledger.hold("c", "two", ONE, key="same").startswith(f"{IN_FLIGHT}: ")
    assert ledger.hold("c", "three", ONE, key="other") == ""
    ledger.settle("one", ONE)
    assert ledger.hold("c", "two", ONE, key="same") == ""
    ledger.leave_unresolved("two", "timeout")
    assert ledger.hold("b", "four", ONE, key="same") == ""


@pytest.mark.parametrize("end", ["settle", "release", "resolve"])
def test_a_hold_ends_once(ledger: Ledger, end: str) -> None:
    ledger.open_budget("b", Caps(microusd=1_000))
    ledger.hold("b", "one", ONE)
    if end == "settle":
        ledger.settle("one", ONE)
    elif end == "release":
        ledger.release("one")
    else:
        ledger.leave_unresolved("one", "timeout")
        ledger.resolve("one", ONE)
    before = ledger.state("b"), ledger.entry("one")
    for again in (
        lambda: ledger.settle("one", ONE),
        lambda: ledger.release("one"),
        lambda: ledger.leave_unresolved("one", "why"),
        lambda: ledger.resolve("one", ONE),
    ):
        with pytest.raises(LedgerError, match=r"hold 'one' is (settled|released)"):
            again()
    assert (ledger.state("b"), ledger.entry("one")) == before


def test_mistakes_change_nothing(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps(microusd=1_000))
    ledger.hold("b", "one", ONE)
    before = ledger.state("b")
    for mistake in (
        lambda: ledger.hold("nowhere", "two", ONE),
        lambda: ledger.hold("b", "one", ONE),
        lambda: ledger.hold("b", "two", Amounts(-1, 0, 1)),
        lambda: ledger.hold("b", "two", Amounts(10**18, 0, 1)),
        lambda: ledger.settle("one", Amounts(-1, 0, 0)),
        lambda: ledger.settle("unknown", ONE),
        lambda: ledger.resolve("one", ONE),  # it is still in flight
        lambda: ledger.accept_breach("one"),
        lambda: ledger.open_budget("b", Caps(microusd=-1)),
        lambda: ledger.state("nowhere"),
    ):
        with pytest.raises(LedgerError):
            mistake()
    assert ledger.state("b") == before
    assert [entry.status for entry in ledger.entries("b")] == ["held"]


def test_recovery_marks_what_earlier_writers_held_and_nothing_else(tmp_path: Path) -> None:
    with Database(tmp_path / FILE_NAME) as database:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        ledger.hold("b", "dead", ONE, owner="run-1", key="k", kind="rank")
        ledger.hold("b", "done", ONE)
        ledger.settle("done", ONE)
    with Database(tmp_path / FILE_NAME) as database:
        ledger = Ledger(database)
        ledger.hold("b", "mine", ONE)
        assert ledger.recover() == 1
        assert ledger.recover() == 0
        statuses = {entry.hold_id: entry.status for entry in ledger.entries()}
        assert statuses == {"dead": "unresolved", "done": "settled", "mine": "held"}
        assert {name: ledger.status_of(name) for name in statuses} == statuses
        assert ledger.status_of("never held") is None
        dead = ledger.entry("dead")
        assert (dead.owner, dead.key, dead.kind) == ("run-1", "k", "rank")
        assert "ended before the answer was recorded" in dead.why
        assert ledger.audit("b")


def test_audit_notices_totals_that_do_not_add_up(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps())
    ledger.hold("b", "one", ONE)
    ledger.settle("one", Amounts(200, 50, 1))
    assert ledger.audit("b")
    for column in ("settled_tokens", "held_microusd", "unresolved_requests", "breached_microusd"):
        ledger.database.execute(f"UPDATE budgets SET {column} = {column} + 1")
        assert not ledger.audit("b"), column
        ledger.database.execute(f"UPDATE budgets SET {column} = {column} - 1")
    assert ledger.audit("b")


def test_spending_by_owner_and_rates_are_on_record(ledger: Ledger) -> None:
    ledger.open_budget("b", Caps())
    for number, owner in enumerate(["run-2", "run-1", "run-2", "run-3"]):
        ledger.hold("b", f"{number}", ONE, owner=owner)
    for number in range(3):
        ledger.settle(f"{number}", Amounts(number + 1, 10, 1))
    assert ledger.spent_by_owner("b") == {
        "run-1": Amounts(2, 10, 1),
        "run-2": Amounts(4, 20, 2),
    }
    rates = pricing.rates_of("gpt-4-0613", "https://api.openai.com/v1")
    ledger.note_rates("b", "gpt-4-0613", rates)
    ledger.note_rates("b", "gpt-4-0613", rates)
    (noted,) = ledger.noted_rates("b")
    assert (noted.model, noted.source) == ("gpt-4-0613", rates.source)
    assert json.loads(noted.rates)["output"] == 60_000_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Books of a run that was killed: settled, breached, unresolved and held."""
    monkeypatch.setenv("ALKD_HOME", str(tmp_path))
    with Database(tmp_path / "store" / FILE_NAME) as database:
        ledger = Ledger(database)
        ledger.open_budget("quick", Caps(microusd=1_000_000, requests=100))
        ledger.open_budget("other", Caps())
        for name in ("settled", "breached", "lost", "held"):
            ledger.hold("quick", name, Amounts(2_000, 500, 1), owner="run-1")
        ledger.settle("settled", Amounts(1_500, 300, 1))
        ledger.settle("breached", Amounts(2_500, 500, 1))
        ledger.leave_unresolved("lost", "timeout")
    return tmp_path


def call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_show_prints_what_was_spent_and_what_needs_a_person(home: Path) -> None:
    shown = call("show", "quick")
    assert "budget quick" in shown
    assert "budget other" not in shown
    dollars = next(line for line in shown.splitlines() if line.split()[:1] == ["dollars"])
    assert dollars.split()[1::2] == ["0.004", "0.002", "0.002", "1.00", "0.992"]
    requests = next(line for line in shown.splitlines() if line.split()[:1] == ["requests"])
    assert requests.split()[1:] == ["2", "1", "1", "100", "96"]
    assert "spent by run-1: 0.004 USD, 800 tokens, 2 requests" in shown
    for name in ("breached", "lost", "held"):
        assert any(line.split()[:1] == [name] for line in shown.splitlines()), name
    everything = json.loads(call("show", "--json"))
    assert [budget["budget"] for budget in everything["budgets"]] == ["other", "quick"]
    quick = everything["budgets"][1]
    assert quick["left"] == {"microusd": 992_000, "tokens": None, "requests": 96}
    assert [hold["hold_id"] for hold in quick["unresolved_holds"]] == ["lost"]
    with pytest.raises(LedgerError, match="there are: other, quick"):
        call("show", "nowhere")


def test_show_works_beside_a_run_and_resolve_says_who_is_writing(home: Path) -> None:
    with Database(home / "store" / FILE_NAME):
        assert "budget quick" in call("show")
        done = subprocess.run(
            [sys.executable, "-m", "alkd_ray", "ledger", "resolve", "lost", "--write-off"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"process {os.getpid()}" in done.stderr


def test_resolve_settles_by_hand(home: Path) -> None:
    assert "lost: settled at 0.00 USD" in call("resolve", "lost", "--write-off")
    call("resolve", "held", "--dollars", "0.0012345", "--tokens", "321")
    call("resolve", "breached", "--accept-breach")
    with Database(home / "store" / FILE_NAME) as database:
        ledger = Ledger(database)
        assert ledger.entry("held").actual == Amounts(1_235, 321, 1)  # rounded up
        assert ledger.state("quick").unresolved == ledger.state("quick").held == Amounts()
        assert ledger.hold("quick", "next", ONE) == ""
        assert ledger.audit("quick")


@pytest.mark.parametrize(
    "words",
    [
        ["lost"],
        ["lost", "--write-off", "--dollars", "1"],
        ["lost", "--write-off", "--tokens", "1"],
        ["lost", "--dollars", "-1"],
        ["lost", "--dollars", "one"],
        ["lost", "--dollars", "nan"],
    ],
)
def test_resolve_refuses_what_is_not_clear(home: Path, words: list[str]) -> None:
    with pytest.raises(InputError):
        call("resolve", *words)
    with Database(home / "store" / FILE_NAME, read_only=True) as database:
        assert Ledger(database).entry("lost").status == "unresolved"


def test_export_writes_every_hold(home: Path) -> None:
    call("export", str(home / "out" / "holds.csv"))
    call("export", str(home / "holds.parquet"))
    rows = list(csv.DictReader((home / "out" / "holds.csv").open()))
    table = pq.read_table(home / "holds.parquet").to_pylist()
    for found in (rows, table):
        assert [row["hold_id"] for row in found] == ["settled", "breached", "lost", "held"]
        assert sum(int(row["actual_microusd"]) for row in found) == 4_000
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        call("export", str(home / "holds.xlsx"))


def test_without_books_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALKD_HOME", str(tmp_path))
    for words in (["show"], ["resolve", "x", "--write-off"], ["export", "x.csv"]):
        with pytest.raises(InputError, match="nothing was bought"):
            call(*words)
    assert list(tmp_path.iterdir()) == []
