"""kill -9 of a pass by batches at each of its steps: nothing is lost, nothing is paid twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.worker import annotate
from tests.annotation_rows import job, serving
from tests.faults._batch_pass import BATCH_SIZE, ROWS, STEPS
from tests.troubled_batches import LateList
from tests.troubled_batches import serving as serving_late

ROOT = Path(__file__).parents[2]


# It was noted that the batch is submitted next, and that is all that anybody knows.
IN_DOUBT = "submission noted"


def run(
    folder: Path, url: str, step: str, looked_for_seconds: float = 3.0
) -> subprocess.CompletedProcess[str]:
    arguments = [str(folder), url, step, str(looked_for_seconds)]
    words = [sys.executable, "-m", "tests.faults._batch_pass", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_pass_goes_on_as_if_nothing_had_happened(tmp_path: Path, step: str) -> None:
    books = tmp_path / "store"
    with serving(tmp_path, "--batch-seconds", "0.5") as server:
        killed = run(books, server.url, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with Database(books / "books.sqlite", read_only=True) as database:
            before = Ledger(database).state("test").settled
        after = run(books, server.url, "")
        assert (after.returncode, after.stdout) == (0, "complete"), after.stderr
        bill = server.bill()
        live = annotate(job(books, server.url, count=ROWS))
    assert bill["requests"] == ROWS
    with Database(books / "books.sqlite", read_only=True) as database:
        ledger = Ledger(database)
        state = ledger.state("test")
        assert ledger.audit("test")
    assert before.requests <= state.settled.requests == ROWS
    assert state.settled.microusd == bill["microusd"]
    assert state.held.requests == 0
    assert state.unresolved.requests == (BATCH_SIZE if step == IN_DOUBT else 0)
    assert live.sent == 0
    assert live.status == "complete"
    assert all(len(annotation.ranking) for annotation in live.annotations)


def test_a_batch_that_is_listed_late_is_not_bought_again(tmp_path: Path) -> None:
    trouble = LateList(lists=5)
    with serving_late(trouble) as place:
        killed = run(tmp_path, place.url, "created", 600)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert trouble.lists == 5  # nobody has looked yet
        after = run(tmp_path, place.url, "", 600)
        assert (after.returncode, after.stdout) == (0, "complete"), after.stderr
        bill = place.bill.totals()
    with Database(tmp_path / "books.sqlite", read_only=True) as database:
        state = Ledger(database).state("test")
        assert Ledger(database).audit("test")
    assert bill["requests"] == state.settled.requests == ROWS
    assert state.settled.microusd == bill["microusd"]
    assert state.held.requests == state.unresolved.requests == 0
