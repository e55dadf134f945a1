"""The rate that the endpoint sees when a limit is set."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from alkd_ray.annotation.worker import annotate
from tests.annotation_rows import Server, job, serving


def admissions(server: Server) -> np.ndarray:
    """``[N, 3]``: seconds, prompt tokens, completion tokens of every admitted request."""
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/admissions") as answer:
        return np.array(json.load(answer), float)


@pytest.mark.parametrize(
    ("limits", "units"),
    [({"requests_per_minute": 1_200}, 1), ({"tokens_per_minute": 600_000}, 500)],
    ids=["requests", "tokens"],
)
def test_all_lanes_together_keep_to_the_rate(
    tmp_path: Path, limits: dict[str, int], units: int
) -> None:
    """Evenly spaced, so any stretch of four seconds is as good as a minute."""
    with serving(tmp_path, "--latency", "0.3", "--jitter", "0.4") as server:
        # What a request takes in tokens is learned first: estimates are not what is tested here.
        annotate(job(tmp_path / "store", server.url, count=20))
        outcome = annotate(job(tmp_path / "store", server.url, count=160, in_flight=64, **limits))
        seen = admissions(server)[20:]
    assert outcome.status == "complete"
    per_second = next(iter(limits.values())) / 60.0
    weight = np.ones(len(seen)) if units == 1 else seen[:, 1] + seen[:, 2]
    times = seen[:, 0]
    stretch = 4.0
    used = [
        weight[(times >= start) & (times < start + stretch)].sum()
        for start in times[times < times[-1] - stretch]
    ]
    assert used
    # A machine that stands still for a moment sends late what it then sends together.
    assert max(used) <= per_second * stretch + per_second * 0.5
    took = times[-1] - times[0]
    assert weight.sum() / took <= per_second * 1.02
    assert weight.sum() / took >= per_second * 0.90
