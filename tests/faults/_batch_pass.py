"""A pass by batches in a process of its own, which kills itself with -9 at a named step.

Run as ``python -m tests.faults._batch_pass FOLDER URL STEP SECONDS``; STEP "" runs undisturbed.
A batch that was perhaps submitted is looked for so many SECONDS.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alkd_ray.annotation import batch_collecting, batching
from alkd_ray.annotation.batch_collecting import BatchCollecting
from alkd_ray.annotation.batches import Batches
from alkd_ray.annotation.worker import annotate
from alkd_ray.llm_teachers._batch_client import BatchClient
from tests.annotation_rows import BATCH_RATES, job

ROWS = 40
BATCH_SIZE = 25

# step -> what is called then, and whether the process dies before or after the call
STEPS: dict[str, tuple[type, str, str]] = {
    "held": (BatchClient, "upload", "before"),
    "uploaded": (BatchClient, "upload", "after"),
    "submission noted": (BatchClient, "create", "before"),
    "created": (BatchClient, "create", "after"),
    "noted": (Batches, "note_submitted", "after"),
    "looked": (BatchClient, "status", "after"),
    "half recorded": (BatchCollecting, "_record", "after"),
    "all recorded": (Batches, "end", "before"),
    "ended": (Batches, "end", "after"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step: str) -> None:
    """Replaces the step's call with one that is the process's last."""
    owner, name, when = STEPS[step]
    call: Callable[..., Any] = getattr(owner, name)

    def plain(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            die()
        found = call(*arguments, **named)
        die()
        return found

    async def awaited(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            die()
        found = await call(*arguments, **named)
        die()
        return found

    setattr(owner, name, awaited if owner is BatchClient else plain)


def main() -> None:
    folder, url, step, seconds = sys.argv[1:]
    batch_collecting.LINES_AT_ONCE = 10
    batching.APPEARS_WITHIN_SECONDS = float(seconds)
    if step:
        arm(step)
    given = {"mode": "batch", "batch_poll_seconds": 0.1, "batch_size": BATCH_SIZE}
    outcome = annotate(job(Path(folder), url, count=ROWS, options={"rates": BATCH_RATES}, **given))
    sys.stdout.write(outcome.status)


if __name__ == "__main__":
    main()
