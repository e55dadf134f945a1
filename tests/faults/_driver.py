"""One pass by Ray actors as a program of its own, so that it can be killed.

``python -m tests.faults._driver JOB`` reads a description of the pass, in JSON, buys
what is missing, and prints the outcome as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.runtime import annotators, cluster
from alkd_ray.types import Caps
from tests.annotation_rows import job


def job_of(described: dict) -> AnnotationJob:
    """The pass of a description: folder, url, count, cap in micro-dollars, actors, in flight."""
    return job(
        Path(described["folder"]),
        described["url"],
        count=described["count"],
        caps=Caps(microusd=described["microusd"]),
        actors=described["actors"],
        in_flight=described["in_flight"],
        partial=True,
    )


def main() -> None:
    """Runs the pass."""
    try:
        outcome = annotators.annotate(job_of(json.loads(sys.argv[1])))
    finally:
        cluster.shutdown()
    told = {
        "status": outcome.status,
        "reason": outcome.reason,
        "sent": outcome.sent,
        "rankings": [[a.session_id, a.ranking.tolist()] for a in outcome.annotations],
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
