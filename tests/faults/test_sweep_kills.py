"""kill -9 of a sweep's driver and of its workers: no finished trial is lost or run twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
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
def sweeps(tmp_path: Path) -> Iterator[Sweeps]:
    with tempfile.TemporaryDirectory(prefix="alkd-", ignore_cleanup_errors=True) as scratch:
        here = Sweeps(written(tmp_path, run=SLOW), tmp_path / "home", Path(scratch))
        try:
            yield here
        finally:
            here.end()
            until(lambda: not here.processes(), WAIT_SECONDS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The table of the same sweep, in one process, without a kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = written(folder, run=SLOW)
    done = subprocess.run(
        [sys.executable, "-m", "alkd_ray", "sweep", str(file), "--json", "sweep.engine=local"],
        env={**os.environ, "ALKD_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout)["settings"]


def check_each_trial_was_run_once(sweeps: Sweeps) -> None:
    """By the journal, and by the outputs' own dates: what is there was made once."""
    trials = sweeps.trials()
    worked = Counter(event["trial"] for event in trials if not event["reused"])
    assert len({event["trial"] for event in trials}) == 2 * 2 * 2 * len((1, 2))
    assert all(times == 1 for times in worked.values())
    assert all(event["status"] == "complete" for event in trials)
    left = list((sweeps.home / "distillation").glob(".*.tmp"))
    assert not [folder for folder in left if Path(f"/proc/{folder.name.split('.')[-2]}").exists()]


@pytest.mark.parametrize(
    "kills", [3, pytest.param(KILLS_OF_DRIVER, marks=pytest.mark.slow)], ids=lambda n: f"{n}-kills"
)
@pytest.mark.timeout(3_600)
def test_a_killed_driver_resumes_to_the_same_table(
    sweeps: Sweeps, undisturbed: list[dict], kills: int
) -> None:
    rng = random.Random(kills)
    finished: set[str] = set()
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
    last = sweeps.start("--resume")
    assert last.wait(WAIT_SECONDS * 3) == 0, sweeps.said
    assert sweeps.table() == undisturbed
    check_each_trial_was_run_once(sweeps)


@pytest.mark.timeout(1_200)
def test_a_sweep_ends_without_help_when_its_workers_are_killed(
    sweeps: Sweeps, undisturbed: list[dict]
) -> None:
    driver = sweeps.start("sweep.pack=4")
    for number in range(3):
        assert until(lambda number=number: len(sweeps.trials()) > 2 * number, WAIT_SECONDS)
        assert until(lambda: bool(sweeps.workers()) or driver.poll() is not None, WAIT_SECONDS)
        for worker in sweeps.workers()[:1]:
            worker.kill()
    assert driver.wait(WAIT_SECONDS * 3) == 0, sweeps.said
    assert sweeps.table() == undisturbed
    check_each_trial_was_run_once(sweeps)


def test_the_sweep_varies_what_the_test_counts() -> None:
    assert [len(axis["grid"]) for axis in OVER.values()] == [2, 2, 2]
