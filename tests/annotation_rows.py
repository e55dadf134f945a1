"""Made-up sessions to be ranked, and the simulated endpoint as a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.config import AnnotationConfig, LLMConfig
from alkd_ray.types import Caps, Catalogue, RankRequest

ONE_DOLLAR = Caps(microusd=1_000_000)
SERIES, VOLUMES = 40, 10
WANTED = 10
MODEL = "simulated-title-reader"
RATES = {"input_usd_per_million": 0.15, "output_usd_per_million": 0.6}
BATCH_RATES = RATES | {"batch_input_usd_per_million": 0.075, "batch_output_usd_per_million": 0.3}


def catalogue() -> Catalogue:
    titles = [
        f"The Tale of House {chr(65 + series % 26)}{series}, Vol. {volume + 1} - fantasy"
        for series in range(SERIES)
        for volume in range(VOLUMES)
    ]
    ids = [f"id{number}" for number in range(len(titles))]
    return Catalogue(np.array(ids, dtype=object), np.array(titles, dtype=object))


def requests(count: int, seed: int = 0) -> tuple[RankRequest, ...]:
    """Sessions of three volumes in order; the fourth is among the candidates."""
    rng = np.random.default_rng(seed)
    made = []
    for session_id in range(count):
        first = (session_id % SERIES) * VOLUMES + session_id // SERIES % 6
        history = np.arange(first, first + 3)
        others = np.setdiff1d(np.arange(SERIES * VOLUMES), np.arange(first, first + 4))
        candidates = rng.permutation(np.append(rng.choice(others, 19, replace=False), first + 3))
        made.append(RankRequest(session_id, history, candidates, WANTED, ""))
    return tuple(made)


def job(
    folder: Path,
    url: str,
    *,
    count: int = 40,
    caps: Caps = ONE_DOLLAR,
    options: dict[str, Any] | None = None,
    **annotation: Any,
) -> AnnotationJob:
    """A pass over ``count`` rows against the endpoint at ``url``."""
    given: dict[str, Any] = {"base_url": url, "model": MODEL, "rates": RATES, "api_key_env": ""}
    return AnnotationJob(
        requests=requests(count),
        catalogue=catalogue(),
        domain="books",
        llm=LLMConfig(teacher="openai-chat", options=given | (options or {})),
        annotation=AnnotationConfig(wanted=WANTED, **{"in_flight": 8, **annotation}),
        budget_name="test",
        caps=caps,
        folder=folder,
        run_id="test-run",
    )


@dataclass(frozen=True)
class Server:
    """A running endpoint."""

    url: str
    bill_file: Path

    def bill(self) -> dict[str, Any]:
        """What it has billed so far."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/bill") as answer:
            return json.load(answer)


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Server]:
    """``alkd llm serve`` with ``flags``, ended on exit."""
    bill = folder / "bill.jsonl"
    command = [sys.executable, "-m", "alkd_ray", "llm", "serve", "--bill", str(bill), *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        yield Server(next(word for word in line.split() if word.startswith("http")), bill)
    finally:
        server.terminate()
        server.wait()
