"""kill -9 of the books' writer at random instants: what it reported as committed is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from alkd_ray.annotation.database import FILE_NAME, Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.store import Store
from alkd_ray.types import Amounts, Caps

KILLS = 10
MOST_AT_ONCE = 5
CAPS = Caps(microusd=2_000_000, tokens=3_000_000, requests=20_000)
WORST = Amounts(100, 150, 1)

# Groups of 1 to 5 requests: hold in one commit, store and settle in another; each commit is
# reported in one line after it. Every fourth request is released, every seventh unresolved.
CHILD = """
import random, sys
from pathlib import Path
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.store import Store
from alkd_ray.types import Amounts, Usage

path, life = Path(sys.argv[1]), sys.argv[2]
database = Database(path)
ledger, store = Ledger(database), Store(database)
ledger.recover()
draw = random.Random(life)
number = 0
while True:
    ids = [f"{life}-{number + i}" for i in range(draw.randint(1, 5))]
    with database.transaction():
        for hold_id in ids:
            assert not ledger.hold("budget", hold_id, Amounts(100, 150, 1), "run", key=hold_id)
    print("held", *ids, flush=True)
    with database.transaction():
        for i, hold_id in enumerate(ids, start=number):
            if i % 7 == 6:
                ledger.leave_unresolved(hold_id, "timeout")
            elif i % 4 == 3:
                ledger.release(hold_id)
            else:
                usage = Usage(60 + i % 7, 20)
                store.put_answer(
                    hold_id, 1, f"answer {hold_id} " + "x" * draw.randint(0, 5000),
                    usage=usage, cost_microusd=70, hold_id=hold_id, finish_reason="stop")
                ledger.settle(hold_id, Amounts(70, usage.total_tokens, 1))
    print("ended", *ids, flush=True)
    number += len(ids)
"""


def live_and_die(path: Path, life: str, seconds: float) -> list[list[str]]:
    """One writer, killed ``seconds`` after its first commit; the lines it reported."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), life],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    lines = [child.stdout.readline()]
    reader = threading.Thread(target=lambda: lines.extend(child.stdout))
    reader.start()
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    reader.join()
    _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors
    # The last line may be cut off in the middle by the kill; it was written after its commit.
    return [line.split() for line in lines if line.endswith("\n")]


def test_kill_at_random_instants_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with Database(path) as database:
        Ledger(database).open_budget("budget", CAPS)
    draw = random.Random(2024)
    reported: dict[str, set[str]] = {"held": set(), "ended": set()}
    interrupted = 0
    for life in range(10 * KILLS):
        if life >= KILLS and interrupted:
            break
        for what, *ids in live_and_die(path, str(life), draw.uniform(0.02, 0.4)):
            reported[what].update(ids)
        with Database(path, read_only=True) as beside:  # the dead writer's WAL is read, not lost
            before = {entry.hold_id: entry for entry in Ledger(beside).entries()}
        with Database(path) as database:
            ledger, store = Ledger(database), Store(database)
            left = ledger.recover()
            assert left <= MOST_AT_ONCE
            interrupted += left
            entries = {entry.hold_id: entry for entry in ledger.entries()}
            answers = store.answers(entries)
            assert set(before) == set(entries)
            assert reported["held"] <= set(entries)
            assert {entry.status for entry in entries.values()} <= {
                "settled",
                "released",
                "unresolved",
            }
            for hold_id in reported["ended"]:
                assert before[hold_id].status == entries[hold_id].status != "held"
            settled = {hold_id for hold_id, e in entries.items() if e.status == "settled"}
            assert set(answers) == settled  # an answer and its settlement, or neither
            for hold_id, (answer,) in answers.items():
                assert answer.raw.startswith(f"answer {hold_id} ")
                assert answer.usage is not None
                tokens = answer.usage.total_tokens
                assert entries[hold_id].actual == Amounts(answer.cost_microusd, tokens, 1)
            unresolved = [entry for entry in entries.values() if entry.status == "unresolved"]
            killed = [entry for entry in unresolved if entry.why != "timeout"]
            assert len(killed) == interrupted
            state = ledger.state("budget")
            assert state.held == Amounts()
            assert state.unresolved.microusd == len(unresolved) * WORST.microusd
            assert state.settled.microusd == 70 * len(settled)
            assert ledger.audit("budget")
            assert state.settled.microusd + state.unresolved.microusd <= 2_000_000
    assert len(reported["ended"]) > KILLS
    assert interrupted > 0  # some kill hit a request between its two commits


def test_the_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with Database(path) as database:
        Ledger(database).open_budget("budget", CAPS)
    live_and_die(path, "only", 0.0)
    started = time.monotonic()
    with Database(path):
        assert time.monotonic() - started < 5
