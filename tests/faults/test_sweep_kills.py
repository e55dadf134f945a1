"""kill -9 of a sweep's driver and of its workers: no finished trial is lost or run twice."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from alkd_ray.sweeps import journal as journals
from tests.faults._accounts import until
from tests.sweep_files import OVER, RUN, written

ACTOR = "ray::_PackActor"
WAIT_SECONDS = 180.0
# Trials of about a second, so that a kill finds some of them under way.
SLOW = {
    **RUN,
    "distillation": {
        "training": {"max_steps": 400, "validate_every": 10, "patience": 40, "metric": "ndcg@10"}
    },
}
KILLS_OF_DRIVER = 20
SEEDS = {3: [1, 2], KILLS_OF_DRIVER: list(range(1, 11))}  # kills -> so that work is left for most


@dataclass
class Sweeps:
    """Starts ``alkd sweep`` in processes of their own, each with a Ray of its own."""

    file: Path
    home: Path
    scratch: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "ALKD_HOME": str(self.home),
            "RAY_TMPDIR": str(self.scratch),
            "RAY_ADDRESS": "",
            "OMP_NUM_THREADS": "1",
        }
        with (self.home.parent / f"said-{len(self.started)}.txt").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "alkd_ray", "sweep", str(self.file), "--json", *words],
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    @property
    def said(self) -> str:
        """What the latest one printed."""
        return (self.home.parent / f"said-{len(self.started) - 1}.txt").read_text()

    def table(self) -> list[dict]:
        """The settings of a sweep that ended well."""
        text = self.said
        found = json.loads(text[text.index("{\n") :])
        assert found["status"] == "complete", found
        return found["settings"]

    def events(self) -> list[dict]:
        """All events of the journal."""
        folders = list((self.home / "sweeps").glob("*"))
        return journals.read(folders[0]) if folders else []

    def trials(self) -> list[dict]:
        """All trials in the journal, as often as they are there."""
        return [event for event in self.events() if event["event"] == "trial"]

    def processes(self) -> list[psutil.Process]:
        """All processes of this run root's sweeps, the Rays' too."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("RAY_TMPDIR") == str(self.scratch):
                found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The actors that run packs."""
        found = []
        for process in self.processes():
            try:
                if process.name().startswith(ACTOR[:15]) and ACTOR in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def end(self) -> None:
        """Ends everything that is left."""
        for process in self.started:
            process.kill()
            process.wait()
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue


@pytest.fixture
def kills() -> int:
    """How often it is killed; tests may say otherwise."""
    return min(SEEDS)


@pytest.fixture
def sweeps(tmp_path: Path, kills: int) -> Iterator[Sweeps]:
    file = written(tmp_path, run=SLOW, seeds=SEEDS[kills])
    with tempfile.TemporaryDirectory(prefix="alkd-", ignore_cleanup_errors=True) as scratch:
        here = Sweeps(file, tmp_path / "home", Path(scratch))
        try:
            yield here
        finally:
            here.end()
            until(lambda: not here.processes(), WAIT_SECONDS)


@pytest.fixture(scope="module")
def table_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict]]:
    """The table of the same sweep, by kills, in one process, without a kill."""

    @functools.cache
    def undisturbed(kills: int) -> list[dict]:
        folder = tmp_path_factory.mktemp("undisturbed")
        file = written(folder, run=SLOW, seeds=SEEDS[kills])
        done = subprocess.run(
            [sys.executable, "-m", "alkd_ray", "sweep", str(file), "--json", "sweep.engine=local"],
            env={**os.environ, "ALKD_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1_200,
            check=True,
        )
        return json.loads(done.stdout)["settings"]

    return undisturbed


@pytest.fixture
def undisturbed(table_of: Callable[[int], list[dict]], kills: int) -> list[dict]:
    """The table that a disturbed sweep has to end with."""
    return table_of(kills)


def check_each_trial_was_run_once(sweeps: Sweeps, seeds: int) -> None:
    """By the journal, and by the outputs' own dates: what is there was made once."""
    trials = sweeps.trials()
    worked = Counter(event["trial"] for event in trials if not event["reused"])
    assert len({event["trial"] for event in trials}) == 2 * 2 * 2 * seeds
    assert all(times == 1 for times in worked.values())
    assert all(event["status"] == "complete" for event in trials)
    left = list((sweeps.home / "distillation").glob(".*.tmp"))
    alive = {str(process.pid) for process in sweeps.processes()}
    assert not [folder for folder in left if folder.name.split(".")[-3] in alive]


@pytest.mark.parametrize(
    "kills", [3, pytest.param(KILLS_OF_DRIVER, marks=pytest.mark.slow)], ids=lambda n: f"{n}-kills"
)
@pytest.mark.timeout(3_600)
def test_a_killed_driver_resumes_to_the_same_table(
    sweeps: Sweeps, undisturbed: list[dict], kills: int
) -> None:
    rng = random.Random(kills)
    finished: set[str] = set()
    told = []
    for _ in range(kills):
        driver = sweeps.start()
        # At any time from the import to the last trial; half of the kills while trials run.
        if rng.random() < 0.5:
            before = len(sweeps.trials())
            until(lambda before=before: len(sweeps.trials()) > before, 60.0)
            time.sleep(rng.random() * 2)
        else:
            time.sleep(rng.random() * 25)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert until(lambda: not sweeps.processes(), WAIT_SECONDS)  # Ray ends with its driver
        now = {event["trial"] for event in sweeps.trials()}
        assert finished <= now
        finished = now
        told.append(f"{len(finished)} of {8 * len(SEEDS[kills])} trials were finished by then")
    print(*told, sep="\n")
    last = sweeps.start("--resume")
    assert last.wait(WAIT_SECONDS * 3) == 0, sweeps.said
    assert sweeps.table() == undisturbed
    check_each_trial_was_run_once(sweeps, len(SEEDS[kills]))


@pytest.mark.timeout(1_200)
def test_a_sweep_ends_without_help_when_its_workers_are_killed(
    sweeps: Sweeps, undisturbed: list[dict], kills: int
) -> None:
    driver = sweeps.start("sweep.pack=4")
    for number in range(3):
        assert until(lambda number=number: len(sweeps.trials()) > 2 * number, WAIT_SECONDS)
        assert until(lambda: bool(sweeps.workers()) or driver.poll() is not None, WAIT_SECONDS)
        for worker in sweeps.workers()[:1]:
            worker.kill()
    assert driver.wait(WAIT_SECONDS * 3) == 0, sweeps.said
    assert sweeps.table() == undisturbed
    check_each_trial_was_run_once(sweeps, len(SEEDS[kills]))


def test_the_sweep_varies_what_the_test_counts() -> None:
    assert [len(axis["grid"]) for axis in OVER.values()] == [2, 2, 2]
