"""Reserve and settle: one commit for each operation against groups of 64.

    python benchmarks/ledger.py [--folder DIR] [--seconds 3]

Prints one JSON object. ``folder`` should lie on the disk that a run root would: what is measured
is mostly how long that disk takes to make a commit durable.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from alkd_ray.annotation.database import FILE_NAME, Database, now
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.stored import StoredAnswer
from alkd_ray.types import Amounts, Caps, Usage

GROUP = 64
WORST = Amounts(2_000, 3_000, 1)
USAGE = Usage(1_200, 100)
ACTUAL = Amounts(800, USAGE.total_tokens, 1)
ANSWER = '{"choices": [{"message": {"content": "{\\"ranking\\": [1, 2, 3]}"}}]}' + " " * 400


def main() -> None:
    """Runs the benchmark on fresh books in a folder of its own."""
    parser = argparse.ArgumentParser(description="Ledger: one commit each against groups.")
    parser.add_argument("--folder", type=Path, default=None, help="default: the temporary folder")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each of the two")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
        Database(Path(folder) / FILE_NAME) as database,
    ):
        books = Books(database)
        ungrouped = rate(lambda: books.requests(1), 1, given.seconds)
        grouped = rate(lambda: books.requests(GROUP), GROUP, given.seconds)
        assert books.ledger.audit("benchmark")
    found = {
        "ungrouped_per_second": round(ungrouped),
        "grouped_per_second": round(grouped),
        "group": GROUP,
        "ratio": round(grouped / ungrouped, 1),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(found, indent=1))


class Books:
    """What the annotator does to the books for a request, without the request."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ledger, self.store = Ledger(database), Store(database)
        self.ledger.open_budget("benchmark", Caps(microusd=10**12, tokens=10**12, requests=10**9))
        self.count = 0

    def requests(self, group: int) -> None:
        """Holds ``group`` requests in one commit, then stores and settles them in another."""
        ids = [f"hold-{self.count + number}" for number in range(group)]
        self.count += group
        with self.ledger.sheet(ids, ids) as sheet:
            for key in ids:
                refused = sheet.hold(
                    *("benchmark", key, WORST), owner="run", key=key, kind="", attempt=1, batch=""
                )
                assert not refused, refused
        at = now()
        with self.ledger.sheet(ids) as sheet:
            answers = [StoredAnswer(key, 1, ANSWER, "stop", USAGE, 800, key, at) for key in ids]
            self.store.put_answers(answers, self.store.attempts(ids))
            for key in ids:
                sheet.settle(key, ACTUAL)


def rate(work: Callable[[], None], done_each: int, seconds: float) -> float:
    """Requests held and settled per second, over at least ``seconds``."""
    work()
    done, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        work()
        done += done_each
    return done / took


if __name__ == "__main__":
    main()
