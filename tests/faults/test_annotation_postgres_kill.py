"""Several drivers on one budget in PostgreSQL, and what is left when one of them, or it, dies."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("psycopg")

from alkd_ray.annotation import database, worker
from alkd_ray.annotation.batches import SUBMITTING
from alkd_ray.annotation.database import BooksError, Database, are_there
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.store import Store
from alkd_ray.types import AnnotationOutcome
from tests.annotation_rows import BATCH_RATES, ONE_DOLLAR, Server, job, serving
from tests.conftest import ROOT
from tests.postgres_server import Postgres, running

COUNT, IN_FLIGHT = 60, 6
LATENCY = ("--latency", ".1")
# A pass then takes seconds, so that what is done in the middle of it comes in the middle.
SLOW = ("--latency", ".5")
BATCH_SIZE = 10

# One driver: says what its pass ended with in one line of JSON.
DRIVER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from alkd_ray.annotation import database, worker
from alkd_ray.types import Caps
from tests.annotation_rows import job

print("ready", flush=True)
sys.stdin.readline()
endpoint, books, folder, count, cap, run, options, annotation = sys.argv[1:]
here = replace(
    job(Path(folder), endpoint, count=int(count), caps=Caps(microusd=int(cap)), partial=True,
        options=json.loads(options), **json.loads(annotation)),
    books_url=books, run_id=run)
found = worker.annotate(here)
print(json.dumps({
    "status": found.status, "reason": found.reason, "sent": found.sent,
    "rankings": [a.ranking.tolist() for a in found.annotations],
    "held": found.ledger.held.requests}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as started:
        yield started


def driver(
    endpoint: Server, url: str, folder: Path, run: str, cap: int, mode: str = "live"
) -> subprocess.Popen[str]:
    """A process that is about to begin its pass, and waits for :func:`go`."""
    annotation: dict = {"in_flight": IN_FLIGHT}
    if mode == "batch":
        annotation |= {"mode": mode, "batch_poll_seconds": 0.1, "batch_size": BATCH_SIZE}
    given = [endpoint.url, url, str(folder), str(COUNT), str(cap), run]
    given += [json.dumps({"rates": BATCH_RATES}), json.dumps(annotation)]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *given],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def said(process: subprocess.Popen[str]) -> dict:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out)


def wait_for_bill(endpoint: Server, requests: int) -> None:
    while endpoint.bill()["requests"] < requests:
        time.sleep(0.02)


def wait_until_both_are_at_work(url: str, victim: subprocess.Popen[str]) -> None:
    """Until both have answers, and the victim waits for some; it is stopped then."""
    while not are_there(url):
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.02)
    with Database(url, read_only=True) as reader:
        while True:
            assert victim.poll() is None, victim.communicate()
            answered, waiting = owners(reader)
            if answered == {"victim", "other"} and "victim" in waiting:
                stop(victim)
                if "victim" in owners(reader)[1]:
                    return
                victim.send_signal(signal.SIGCONT)
            time.sleep(0.005)


def owners(reader: Database) -> tuple[set[str], set[str]]:
    """Who has answers, and who waits for some."""
    entries = Ledger(reader).entries()
    answered = {entry.owner for entry in entries if entry.status == "settled"}
    return answered, {entry.owner for entry in entries if entry.status == "held"}


def stop(victim: subprocess.Popen[str]) -> None:
    """Lets a driver do nothing more, but live."""
    victim.send_signal(signal.SIGSTOP)
    time.sleep(1.0)  # what it has sent to the books is written by then


def test_two_drivers_buy_the_same_rows_once(server: Postgres, tmp_path: Path) -> None:
    url = server.database()
    with serving(tmp_path, *SLOW) as endpoint:
        drivers = [driver(endpoint, url, tmp_path, f"run {n}", 1_000_000) for n in range(2)]
        go(*drivers)
        found = [said(process) for process in drivers]
        bill = endpoint.bill()
    assert [one["status"] for one in found] == ["complete", "complete"]
    assert found[0]["rankings"] == found[1]["rankings"]
    assert len(found[0]["rankings"]) == bill["requests"] == COUNT
    assert sum(one["sent"] for one in found) == COUNT
    assert min(one["sent"] for one in found) > 0  # they share the work
    with Database(url, read_only=True) as reader:
        ledger = Ledger(reader)
        assert ledger.state("test").settled.microusd == bill["microusd"]
        assert ledger.state("test").held.requests == 0
        assert ledger.audit("test")
        assert {entry.status for entry in ledger.entries()} == {"settled"}


@pytest.mark.parametrize("other", ["batch", "live"])
def test_drivers_buy_the_same_rows_once_by_batches_too(
    server: Postgres, tmp_path: Path, other: str
) -> None:
    url = server.database()
    with serving(tmp_path, *LATENCY, "--batch-seconds", "1") as endpoint:
        drivers = [
            driver(endpoint, url, tmp_path, f"run {n}", 1_000_000, mode)
            for n, mode in enumerate(("batch", other))
        ]
        go(*drivers)
        found = [said(process) for process in drivers]
        after = driver(endpoint, url, tmp_path, "run after", 1_000_000)
        go(after)
        third = said(after)
        bill = endpoint.bill()
    # By batches one waits for what the other has under way. A live pass does not wait for batches,
    # which may take a day: such rows fail, and are there later.
    assert found[0]["status"] == third["status"] == "complete", found
    assert found[1]["status"] in {"batch": ("complete",), "live": ("complete", "partial")}[other]
    assert found[0]["rankings"] == third["rankings"]
    assert third["sent"] == 0
    assert bill["requests"] == sum(one["sent"] for one in found) == COUNT
    with Database(url, read_only=True) as reader:
        ledger = Ledger(reader)
        assert ledger.state("test").settled.microusd == bill["microusd"]
        assert ledger.state("test").held.requests == 0
        assert ledger.audit("test")


@pytest.mark.parametrize("is_there", [True, False], ids=["at work", "begun later"])
def test_a_killed_drivers_batches_are_taken_over(
    server: Postgres, tmp_path: Path, is_there: bool
) -> None:
    url = server.database()
    with serving(tmp_path, "--batch-seconds", "6") as endpoint:
        victim, other = (
            driver(endpoint, url, tmp_path, name, 1_000_000, "batch")
            for name in ("victim", "other")
        )
        go(victim)
        # The one that comes later may find some that were not submitted.
        while submitted(url) < (COUNT // BATCH_SIZE if is_there else 1):
            assert victim.poll() is None, victim.communicate()
            time.sleep(0.05)
        stop_between_submissions(url, victim)
        if is_there:
            go(other)
            time.sleep(2.0)
        kill(victim)
        if not is_there:
            go(other)
        found = said(other)
        bill = endpoint.bill()
    assert found["status"] == "complete"
    assert len(found["rankings"]) == COUNT
    assert bill["requests"] == COUNT  # the batches that were under way were not bought again
    with Database(url, read_only=True) as reader:
        ledger = Ledger(reader)
        assert ledger.state("test").settled.microusd == bill["microusd"]
        assert ledger.state("test").held.requests == ledger.state("test").unresolved.requests == 0
        assert ledger.audit("test")


def test_of_two_that_wait_for_a_killed_driver_both_end_within_the_cap(
    server: Postgres, tmp_path: Path
) -> None:
    with serving(tmp_path, "--batch-seconds", "4") as endpoint:
        whole = worker.annotate(job(tmp_path / "free", endpoint.url, count=COUNT))
        before = endpoint.bill()["microusd"]
        cap = int(whole.ledger.settled.microusd * 0.2)
        url = server.database()
        drivers = [
            driver(endpoint, url, tmp_path, name, cap, "batch") for name in ("victim", "one", "two")
        ]
        victim, *others = drivers
        go(victim)
        while not submitted(url):
            assert victim.poll() is None, victim.communicate()
            time.sleep(0.05)
        stop_between_submissions(url, victim)
        go(*others)
        time.sleep(1.0)
        kill(victim)
        found = [said(process) for process in others]
        billed = endpoint.bill()["microusd"] - before
    assert {one["status"] for one in found} == {"stopped"}
    assert all("the cap of" in one["reason"] for one in found)
    with Database(url, read_only=True) as reader:
        ledger = Ledger(reader)
        state = ledger.state("test")
        assert ledger.audit("test")
    assert state.held.requests == state.unresolved.requests == 0
    assert 0 < billed == state.settled.microusd <= cap


def stop_between_submissions(url: str, victim: subprocess.Popen[str]) -> None:
    """Stops one that has batches under way, none of them about to be submitted.

    Of such a one nobody would know whether the endpoint has it, which those who are left find out
    by looking for ten minutes (``test_annotation_batch_kill`` has that case).
    """
    while True:
        assert victim.poll() is None, victim.communicate()
        stop(victim)
        if not _batches(url, f"outcome = '{SUBMITTING}'"):
            break
        victim.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    assert under_way(url)  # and stays so, since it collects none


def kill(victim: subprocess.Popen[str]) -> None:
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL


def submitted(url: str) -> int:
    """Batches that the endpoint has taken."""
    return _batches(url, "batch_id <> ''")


def under_way(url: str) -> int:
    """Batches that nobody has collected."""
    return _batches(url, "is_over = 0")


def _batches(url: str, condition: str) -> int:
    if not are_there(url):
        return 0
    with Database(url, read_only=True) as reader:
        row = reader.execute(f"SELECT count(*) FROM batches WHERE {condition}").fetchone()
        return row[0] if row else 0


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_two_drivers_keep_to_one_cap_and_use_it_up(
    server: Postgres, tmp_path: Path, share: float
) -> None:
    with serving(tmp_path, *LATENCY) as endpoint:
        whole = worker.annotate(job(tmp_path / "free", endpoint.url, count=COUNT))
        before = endpoint.bill()["microusd"]
        cap = int(whole.ledger.settled.microusd * share)
        url = server.database()
        drivers = [driver(endpoint, url, tmp_path, f"run {n}", cap) for n in range(2)]
        go(*drivers)
        found = [said(process) for process in drivers]
        billed = endpoint.bill()["microusd"] - before
    assert {one["status"] for one in found} == {"stopped"}
    assert all("the cap of" in one["reason"] for one in found)
    with Database(url, read_only=True) as reader:
        state = Ledger(reader).state("test")
        dearest = max(entry.worst.microusd for entry in Ledger(reader).entries())
        assert Ledger(reader).audit("test")
    assert billed == state.settled.microusd <= cap
    # What was left to the last one to stop was less than its next request may cost.
    assert cap - billed < 1.1 * dearest


def test_a_killed_driver_leaves_the_rest_to_the_other(server: Postgres, tmp_path: Path) -> None:
    url = server.database()
    with serving(tmp_path, *SLOW) as endpoint:
        victim = driver(endpoint, url, tmp_path, "victim", 1_000_000)
        other = driver(endpoint, url, tmp_path, "other", 1_000_000)
        go(victim, other)
        wait_until_both_are_at_work(url, victim)
        kill(victim)
        found = said(other)
        bill = endpoint.bill()
    assert found["status"] == "complete"
    assert 0 < found["sent"] < COUNT
    assert len(found["rankings"]) == COUNT
    with Database(url, read_only=True) as reader:
        ledger = Ledger(reader)
        state = ledger.state("test")
        left = ledger.entries("test", "unresolved")
        assert ledger.audit("test")
    assert 0 < len(left) <= IN_FLIGHT  # it was waiting for answers when it died
    assert {entry.owner for entry in left} == {"victim"}
    assert state.held.requests == 0
    assert state.settled.microusd <= bill["microusd"]
    assert bill["microusd"] <= state.settled.microusd + state.unresolved.microusd
    assert bill["requests"] <= COUNT + IN_FLIGHT


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_server_that_comes_back_costs_nothing(
    server: Postgres, tmp_path: Path, engine: str
) -> None:
    """What was in flight is answered while it is down, and recorded when it is back."""
    url = server.database()
    with serving(tmp_path, *LATENCY) as endpoint, annotating(engine) as annotate:
        here = job(tmp_path, endpoint.url, count=COUNT, in_flight=IN_FLIGHT)

        def restart() -> None:
            wait_for_bill(endpoint, 12)
            server.kill()
            server.start()

        restarter = threading.Thread(target=restart)
        restarter.start()
        found = annotate(replace(here, books_url=url))
        restarter.join()
        bill = endpoint.bill()
    assert found.status == "complete"
    assert len(found.annotations) == found.sent == bill["requests"] == COUNT
    assert found.ledger.settled.microusd == bill["microusd"]
    assert found.ledger.held.requests == found.ledger.unresolved.requests == 0
    with Database(url, read_only=True) as reader:
        assert Ledger(reader).audit("test")


def test_nothing_is_sent_while_the_server_is_down(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 4.0)
    url = server.database()
    at_kill = 0
    with serving(tmp_path, *SLOW) as endpoint:
        here = job(tmp_path, endpoint.url, count=COUNT, in_flight=IN_FLIGHT)
        here = replace(here, books_url=url)

        def end_server() -> None:
            nonlocal at_kill
            wait_for_bill(endpoint, 12)
            server.kill()
            at_kill = endpoint.bill()["requests"]

        killer = threading.Thread(target=end_server)
        killer.start()
        with pytest.raises(BooksError, match="nothing is sent without the books"):
            worker.annotate(here)
        killer.join()
        billed = endpoint.bill()["requests"]
        with pytest.raises(BooksError, match="cannot be reached"):
            worker.annotate(here)
        assert endpoint.bill()["requests"] == billed <= at_kill + IN_FLIGHT
        server.start()
        found = worker.annotate(here)
        bill = endpoint.bill()
    assert found.status == "complete"
    assert len(found.annotations) == COUNT
    assert bill["requests"] <= COUNT + IN_FLIGHT  # only what was in flight is paid for twice
    assert found.ledger.held.requests == 0
    assert found.ledger.settled.microusd <= bill["microusd"]
    counted = found.ledger.settled.microusd + found.ledger.unresolved.microusd
    assert bill["microusd"] <= counted <= ONE_DOLLAR.microusd
    with Database(url, read_only=True) as reader:
        assert Ledger(reader).audit("test")
        assert len(Store(reader).answers([a.key for a in found.annotations])) == COUNT


@contextlib.contextmanager
def annotating(engine: str) -> Iterator[Callable[[worker.AnnotationJob], AnnotationOutcome]]:
    """The form of a pass, with its Ray."""
    if engine == "local":
        yield worker.annotate
        return
    from alkd_ray.runtime import annotators, cluster

    cluster.ensure_ray(num_cpus=2)
    try:
        yield annotators.annotate
    finally:
        cluster.shutdown()
