"""Throughput of the annotator over HTTP against plain clients, the desk alone, and memory.

    python benchmarks/annotation.py            rates of all sides, their ratios, the desk's groups
    python benchmarks/annotation.py --soak N   memory of annotator and desk over N requests

All sides send the same requests to the same server, ``lean_server.py``, which takes the times: a
rate is the number of answers over the seconds from the first request to the last answer, so
planning, the actors' start and reading the results back are not in it; those are printed apart.
Processor time is that of the whole pass in this process, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ledger
import numpy as np
import psutil
from chat_clients import CLIENTS, ask_all
from lean_server import lean_server, serving, times

from alkd_ray.annotation import passes, worker
from alkd_ray.annotation.asking import Asker, AskingSettings
from alkd_ray.annotation.database import FILE_NAME, Database
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.operations import Finish, Hold, Pull, Record, Row, Verdict
from alkd_ray.annotation.passes import Progress
from alkd_ray.annotation.questions import RankQuestions
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.config import AnnotationConfig, LLMConfig
from alkd_ray.llm_teachers._behaviour import MODEL
from alkd_ray.runtime import annotators, cluster
from alkd_ray.types import AnnotationOutcome, Caps, Catalogue, RankRequest

IN_FLIGHT = (32, 128, 256)
CHECK_IN_FLIGHT = 128
GROUP = 64
ITEMS = 2_000
HINT = "Users who begin a series tend to go on with its next volume before they turn elsewhere."
RATES = {"input_usd_per_million": 0.15, "output_usd_per_million": 0.6}
PLENTY = Caps(microusd=10**12, tokens=10**12, requests=10**9)
SOAK_SHARES = (0.1, 0.5, 1.0)
SOAK_COLUMNS = ("done", "_Annotator", "_Annotator shared", "_Desk", "_Desk shared")
MEBIBYTE = 2**20
SIDES = {  # as printed
    "bare": "bytes over aiohttp, answers unread",
    "plain": "plain aiohttp, JSON in and out",
    "sdk": "openai SDK over aiohttp",
    "client": "the annotator's client alone",
    "no_ledger": "the annotator's asker, no ledger",
    "local": "annotator in this process",
    "actors_1": "annotator, 1 actor",
    "actors_2": "annotator, 2 actors of half",
}


@dataclass(frozen=True)
class Rows:
    """The size of the questions: titles before, titles to choose from, how many to name."""

    history: int
    candidates: int
    wanted: int
    hints: str


FULL_ROWS = Rows(8, 50, 25, "\n".join([HINT] * 10))  # 4.7 kB as sent
SHORT_ROWS = Rows(3, 5, 5, "")


@dataclass(frozen=True)
class Timed:
    """One side, once.

    Attributes:
        rate: answers a second, from the first request to the last answer.
        before, after: seconds from the call to the first request, and from the last answer on.
        cpu: milliseconds of this process's processor time a request, all of it counted.
    """

    rate: float
    before: float
    after: float
    cpu: float


def job(
    url: str, folder: Path, count: int, rows: Rows, in_flight: int, actors: int = 1
) -> AnnotationJob:
    """``count`` different rows, the same ones at every call, to be asked at ``url``."""
    rng = np.random.default_rng(1)
    ids = np.array([str(item) for item in range(ITEMS)], dtype=object)
    titles = [f"The Long Winter of House {item % 97}, Volume {item}" for item in range(ITEMS)]
    requests = []
    for session_id in range(count):
        items = rng.choice(ITEMS, rows.history + rows.candidates, replace=False)
        history, candidates = items[: rows.history], items[rows.history :]
        requests.append(RankRequest(session_id, history, candidates, rows.wanted, rows.hints))
    options = {"base_url": url, "model": MODEL, "api_key_env": "", "rates": RATES}
    return AnnotationJob(
        requests=tuple(requests),
        catalogue=Catalogue(ids, np.array(titles, dtype=object)),
        domain="books",
        llm=LLMConfig(teacher="openai-chat", options=options),
        annotation=AnnotationConfig(wanted=rows.wanted, actors=actors, in_flight=in_flight),
        budget_name="benchmark",
        caps=PLENTY,
        folder=folder,
        run_id="benchmark",
    )


def questions_of(here: AnnotationJob) -> RankQuestions:
    """The questions of a pass."""
    return worker.rank_questions(here, worker.teacher_of(here.llm).describe())


def bodies(here: AnnotationJob) -> list[dict[str, Any]]:
    """The requests as the annotator sends them, with their response format."""
    questions = questions_of(here)
    made = []
    for row in range(len(questions)):
        question = questions[row]
        schema = {"name": "ranking", "strict": True, "schema": question.schema}
        response_format = {"type": "json_schema", "json_schema": schema}
        made.append({**question.body, "response_format": response_format})
    return made


class GrantingDesk:
    """A desk that grants everything and keeps nothing, to see what the real one costs."""

    def __init__(self, rows: int) -> None:
        self.left = iter(range(rows))

    async def do(self, operation: Any) -> Any:
        """See :class:`alkd_ray.annotation.asking.DeskFace`."""
        if isinstance(operation, Pull):
            return tuple(Row(index, None) for index in itertools.islice(self.left, operation.most))
        return Verdict(granted=True) if isinstance(operation, Hold) else None


def ask_without_ledger(here: AnnotationJob) -> None:
    """The annotator's own asker with a desk that keeps nothing."""
    questions = questions_of(here)
    passes.begin(questions, None)  # which looks at every row first, as any pass does
    settings = AskingSettings("benchmark", here.annotation.in_flight, here.annotation.tries)
    rates = worker.rates_of(questions.endpoint)
    desk = GrantingDesk(len(questions))
    asyncio.run(Asker(questions, questions.endpoint, rates, desk, settings).run())


def checked(outcome: AnnotationOutcome) -> None:
    """A pass that did not buy everything is not a time."""
    assert outcome.status == "complete", outcome.reason
    assert outcome.ledger.settled.requests == outcome.sent == len(outcome.annotations)


def side(name: str, url: str, folder: Path, count: int, in_flight: int) -> Timed:
    """One side once, on fresh books."""
    actors = 2 if name == "actors_2" else 1
    here = job(url, folder, count, FULL_ROWS, in_flight // actors, actors)
    sent: list[Any] = bodies(here)
    if name == "bare":
        sent = [json.dumps(body).encode() for body in sent]
    alone = {
        each: functools.partial(ask_all, client, url, sent, in_flight)
        for each, client in CLIENTS.items()
    }
    annotator = {
        "no_ledger": lambda: ask_without_ledger(here),
        "local": lambda: checked(worker.annotate(here)),
        "actors_1": lambda: checked(annotators.annotate(here)),
        "actors_2": lambda: checked(annotators.annotate(here)),
    }
    work = (alone | annotator)[name]
    times(url)
    began, cpu = time.monotonic(), time.process_time()
    work()
    ended, cpu = time.monotonic(), time.process_time() - cpu
    seen = times(url)
    assert seen.answers == count, f"{name}: {seen.answers} answers to {count} requests"
    rate = count / (seen.last - seen.first)
    return Timed(rate, seen.first - began, ended - seen.last, 1e3 * cpu / count)


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Prints all sides by requests in flight, the sides in turn, and the ratios."""
    started = time.perf_counter()
    cluster.ensure_ray()
    found: dict[str, Any] = {"ray_start_seconds": time.perf_counter() - started}
    found["simulated"] = simulated_rate(given)
    print(f"Ray started in {found['ray_start_seconds']:.1f} s; {os.cpu_count()} CPUs")
    print(f"alkd llm serve, {CHECK_IN_FLIGHT} in flight, bytes: {found['simulated']:.0f}/s")
    names = list(SIDES)
    with lean_server(given.latency, FULL_ROWS.wanted) as url:
        for in_flight in given.in_flight:
            count = in_flight * given.waves
            runs: dict[str, list[Timed]] = {name: [] for name in names}
            for turn in range(given.rounds):
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                        runs[name].append(side(name, url, Path(folder), count, in_flight))
            found[str(in_flight)] = show(in_flight, count, runs)
    cluster.shutdown()
    return found


def simulated_rate(given: argparse.Namespace) -> float:
    """Requests a second of the project's simulated endpoint, asked as barely as can be."""
    words = ["-m", "alkd_ray", "llm", "serve", "--latency", str(given.latency), "--port", "0"]
    with serving([*words, "--until-stdin-closes"]) as url:
        here = job(url, Path(), CHECK_IN_FLIGHT * given.waves, FULL_ROWS, CHECK_IN_FLIGHT)
        sent = [json.dumps(body).encode() for body in bodies(here)]
        started = time.perf_counter()
        ask_all(CLIENTS["bare"], url, sent, CHECK_IN_FLIGHT)
        return len(sent) / (time.perf_counter() - started)


def show(in_flight: int, count: int, runs: dict[str, list[Timed]]) -> dict[str, Any]:
    """Prints, and returns, the medians of one number in flight."""
    medians = {
        name: {
            field: statistics.median(getattr(run, field) for run in timed)
            for field in ("rate", "before", "after", "cpu")
        }
        for name, timed in runs.items()
    }
    load = f"load of the machine {os.getloadavg()[1]:.1f}"
    print(f"\n{in_flight} in flight, {count} requests, medians of {len(runs['bare'])}; {load}")
    print(f"{'':34}{'per s':>8}{'/bare':>7}{'/plain':>8}{'/no ledger':>12}{'ms cpu':>8}", end="")
    print(f"{'s before':>10}{'s after':>9}")
    for name, words in SIDES.items():
        found = medians[name]
        bare, plain, free = (
            found["rate"] / medians[other]["rate"] for other in ("bare", "plain", "no_ledger")
        )
        cpu = "" if name.startswith("actors") else f"{found['cpu']:.2f}"
        print(f"{words:34}{found['rate']:8.0f}{bare:7.2f}{plain:8.2f}{free:12.2f}{cpu:>8}", end="")
        print(f"{found['before']:10.2f}{found['after']:9.2f}", flush=True)
    return medians


def desk_rate(folder: Path | None, seconds: float = 3.0) -> dict[str, float]:
    """Rows a second that the desk holds, records and finishes, in groups and one by one."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as inner,
        Database(Path(inner) / FILE_NAME) as database,
    ):
        desk = Desk(database, "benchmark", PLENTY, "benchmark")
        numbers = itertools.count()

        def rows(group: int) -> None:
            keys = [f"{number:064d}" for number in itertools.islice(numbers, group)]
            holds = [Hold(key, key, "rank", 1, ledger.WORST, "benchmark") for key in keys]
            assert all(verdict.granted for verdict in desk.apply(holds))
            came = (1, ledger.ANSWER, "stop", ledger.USAGE, 264, ledger.ACTUAL)
            desk.apply([Record(key, key, *came) for key in keys])
            ranking = tuple(range(25))
            desk.apply([Finish("benchmark", 0, key, ranking, (), "") for key in keys])

        found = {
            "one_by_one": ledger.rate(functools.partial(rows, 1), 1, seconds),
            "grouped": ledger.rate(functools.partial(rows, GROUP), GROUP, seconds),
        }
        assert desk.ledger.audit("benchmark")
    words = f"{found['grouped']:.0f} in groups of {GROUP}, {found['one_by_one']:.0f} one by one"
    print(f"\nthe desk alone holds, records and finishes, rows a second: {words}")
    return found


def soak(given: argparse.Namespace) -> dict[str, Any]:
    """Prints the memory of the processes of a pass by Ray with one actor as it goes on."""
    cluster.ensure_ray()
    samples: list[dict[str, float]] = []

    def sample(progress: Progress) -> None:
        found: dict[str, float] = {"done": progress.done}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title, memory = "".join(process.cmdline()[:1]), process.memory_info()
                for part in ("_Annotator", "_Desk"):
                    if title.startswith(f"ray::{part}"):
                        found[part] = memory.rss / MEBIBYTE
                        found[f"{part} shared"] = memory.shared / MEBIBYTE
        if "_Annotator" in found and "_Desk" in found:
            samples.append(found)

    with (
        lean_server(given.latency, SHORT_ROWS.wanted) as url,
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
    ):
        here = job(url, Path(folder), given.soak, SHORT_ROWS, CHECK_IN_FLIGHT)
        times(url)
        checked(annotators.annotate(here, sample))
        seen = times(url)
        books = sum(file.stat().st_size for file in Path(folder).iterdir()) / MEBIBYTE
    cluster.shutdown()
    rate = given.soak / (seen.last - seen.first)
    print(f"{given.soak} requests, {rate:.0f}/s, books of {books:.0f} MiB; resident MiB, and how")
    print("much of it is shared with other processes (libraries, Ray's object store)")
    print(f"{'done':>10}{'annotator':>12}{'shared':>9}{'desk':>8}{'shared':>9}")
    for share in SOAK_SHARES:
        # The last sample is the nearest to the end: an annotator that is done is ended.
        reached = (found for found in samples if found["done"] >= share * given.soak)
        found = next(reached, samples[-1])
        print("{:10.0f}{:12.0f}{:9.0f}{:8.0f}{:9.0f}".format(*map(found.get, SOAK_COLUMNS)))
    return {"requests": given.soak, "rate": rate, "books_mebibytes": books, "samples": samples}


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description="Annotation over HTTP.")
    parser.add_argument("--latency", type=float, default=0.1, help="of the server, seconds")
    parser.add_argument("--in-flight", type=int, nargs="+", default=IN_FLIGHT)
    parser.add_argument("--waves", type=int, default=20, help="requests for each one in flight")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="of the books; the disk counts")
    parser.add_argument(
        "--soak", type=int, nargs="?", const=20_000, default=None, help="requests (20,000)"
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the figures there")
    given = parser.parse_args()
    if given.soak is not None:
        found = soak(given)
    else:
        found = compare(given)
        found["desk"] = desk_rate(given.folder)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
