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
from tests.faults._batch_pass import ROWS, STEPS

ROOT = Path(__file__).parents[2]


def run(folder: Path, url: str, step: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.faults._batch_pass", str(folder), url, step]
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
    assert state.held.requests == state.unresolved.requests == 0
    assert live.sent == 0
    assert live.status == "complete"
    assert all(len(annotation.ranking) for annotation in live.annotations)
