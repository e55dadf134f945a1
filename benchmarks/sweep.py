"""Trials per minute of a sweep: packed, reused actors, fresh actors, and a plain loop.

    python benchmarks/sweep.py                       half-second trials, all four forms
    python benchmarks/sweep.py --trials 1000 --seconds 1 --forms packed   overhead over the ideal
    python benchmarks/sweep.py --sweep tune_configs/figure3_budget.yaml --trials 60
                                 --slow-trials 20 --forms packed fresh    settings of a real sweep

All forms run real trials (distil on the embedded world, or as the sweep says, and validate) below
the same run root, from which the trials' outputs are removed in between; what trials share is made
before the clock starts, and Ray is running. Of a sweep (one without a scheduler and a storage) some
settings are drawn, each with all its seeds. The ideal is the trials' own seconds, divided among the
actors. Wall time holds Tune's start, the actors' start, and all hand-overs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from alkd_ray.pipeline import Engines
from alkd_ray.runtime import cluster, packs, pretraining
from alkd_ray.stages import Silent
from alkd_ray.sweeps import shared as sharing
from alkd_ray.sweeps import trials as one_trial
from alkd_ray.sweeps.config import Sweep, load
from alkd_ray.sweeps.queue import TrialQueue
from alkd_ray.sweeps.records import Setting, TrialRecord
from alkd_ray.sweeps.rungs import Rungs
from alkd_ray.sweeps.search import Listed, settings_of
from alkd_ray.sweeps.shared import Shared

FORMS = ("loop", "fresh", "reused", "packed")
STEPS_FIRST = 200
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Timed:
    """One form's run.

    Attributes:
        trials: how many.
        wall: seconds from the first trial asked for to the last one told.
        work: the trials' own seconds.
        actors: that worked at once.
        memory: most resident memory of all processes together, bytes.
    """

    trials: int
    wall: float
    work: float
    actors: int
    memory: int

    @property
    def per_minute(self) -> float:
        """Trials."""
        return 60 * self.trials / self.wall

    @property
    def over_ideal(self) -> float:
        """Share of time beside the trials' own."""
        return self.wall / (self.work / self.actors) - 1


def described(trials: int, steps: int) -> dict[str, Any]:
    """A sweep of ``trials`` settings whose trials train for ``steps`` steps."""
    return {
        "name": "benchmark",
        "seeds": [1],
        "run": {
            "data": {"source": "synthetic", "options": {"size": "tiny"}},
            "teacher": {"dim": 32, "training": {"max_steps": 60}},
            "student": {"dim": 10, "training": {"max_steps": 60}},
            "hints": {"enabled": False},
            "difficulty": {"engine": "local"},
            "selection": {"budget": 200},
            "annotation": {"engine": "local"},
            "distillation": {
                "training": {"max_steps": steps, "patience": steps, "validate_every": 20}
            },
        },
        "over": {
            "distillation.training.learning_rate": {
                "grid": [round(1e-4 + 1e-6 * number, 8) for number in range(trials)]
            }
        },
    }


def of_steps(folder: Path, trials: int, steps: int) -> Sweep:
    """The sweep of :func:`described`, from a file."""
    file = folder / f"sweep-{trials}-{steps}.yaml"
    file.write_text(yaml.safe_dump(described(trials, steps)))
    return load(file)


def drawn(sweep: Sweep, trials: int) -> list[Setting]:
    """Settings of a sweep that make about so many trials, drawn with a seed, in order."""
    found = settings_of(sweep.config)
    wanted = min(len(found), max(1, round(trials / len(sweep.seeds))))
    rows = np.random.default_rng(1).choice(len(found), wanted, replace=False)
    return [found[row] for row in sorted(rows.tolist())]


class Bench:
    """A prepared sweep, some of whose trials can be run again and again."""

    def __init__(self, sweep: Sweep, root: Path, trials: int) -> None:
        self.root = root
        self.sweep = sweep
        self.settings = drawn(sweep, trials)
        self.shared: Shared = sharing.prepare(
            {setting.id: sweep.of(setting.point) for setting in self.settings},
            self.sweep.sweep_id,
            self.root,
            Silent(),
            Engines(),
            pretraining.train,
            lambda plan: None,
        )

    def run(self, form: str) -> Timed:
        """Runs all trials in one form."""
        for stage in ("distillation", "validation"):
            shutil.rmtree(self.root / stage, ignore_errors=True)
        seeds = len(self.sweep.seeds)
        trials = len(self.settings) * seeds
        queue = TrialQueue(
            Listed(self.settings),
            lambda setting: self.shared.trials(setting, self.sweep.of(setting.point)),
            lambda setting: self.sweep.of(setting.point).student.backbone,
            self.sweep.config.metric,
            seeds,
            {},
        )
        records: list[TrialRecord] = []
        most = 0

        def tell(found: list[TrialRecord]) -> None:
            nonlocal most
            most = max(most, memory())
            records.extend(found)
            for record in found:
                queue.tell(record)

        started = time.perf_counter()
        if form == "loop":
            while trial := next(iter(queue.take(1)), None):
                config = self.sweep.of(trial.point)
                tell([one_trial.run(config, trial, self.root, self.sweep.config.metric)])
            actors = 1
        else:
            update = {} if form == "packed" else {"pack": 1}
            config = self.sweep.config.model_copy(update=update)
            sweep = Sweep(config, self.sweep.base, self.sweep.where)
            packs.run(
                sweep, self.root, queue, Rungs(config.asha), tell, reuse_actors=form != "fresh"
            )
            actors = os.cpu_count() or 1
        wall = time.perf_counter() - started
        assert len(records) == trials
        assert all(record.status == "complete" and not record.reused for record in records)
        return Timed(trials, wall, sum(record.seconds for record in records), actors, most)


def memory() -> int:
    """Resident memory of this process and all below it, bytes; shared pages count each time."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def steps_for(folder: Path, seconds: float) -> int:
    """Training steps of a trial that takes about ``seconds``, measured in this process."""
    bench = Bench(of_steps(folder, 3, STEPS_FIRST), folder / "home", 3)
    bench.run("loop")  # warm
    timed = bench.run("loop")
    return max(20, round(STEPS_FIRST * seconds / (timed.work / timed.trials)))


def main() -> None:
    """Times each form and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--slow-trials", type=int, default=12, help="of fresh and reused actors")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a trial, about")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--sweep", type=Path, help="a sweep file; --seconds is then its own")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cluster.ensure_ray()
    found: dict[str, Timed] = {}
    with tempfile.TemporaryDirectory(prefix="alkd-sweep-") as scratch:
        folder = Path(scratch)
        if given.sweep:
            sweep_of = lambda trials: load(given.sweep)  # noqa: E731
            print(f"trials of {given.sweep}, {os.cpu_count()} CPUs", flush=True)
        else:
            steps = steps_for(folder, given.seconds)
            sweep_of = lambda trials: of_steps(folder, trials, steps)  # noqa: E731
            print(f"trials of {steps} steps, {os.cpu_count()} CPUs", flush=True)
        for form in given.forms:
            trials = given.slow_trials if form in ("fresh", "reused") else given.trials
            found[form] = timed = Bench(sweep_of(trials), folder / "home", trials).run(form)
            print(
                f"{form:<8} {timed.trials:>5} trials {timed.wall:8.1f} s  "
                f"{timed.per_minute:7.1f} a minute  {timed.wall / timed.trials:6.2f} s a trial  "
                f"work {timed.work / timed.trials:5.2f} s  {timed.over_ideal:7.0%} over the ideal  "
                f"{timed.memory / MEBIBYTE:6.0f} MiB",
                flush=True,
            )
    cluster.shutdown()
    if {"packed", "fresh"} <= found.keys():
        ratio = found["packed"].per_minute / found["fresh"].per_minute
        goal = "" if given.sweep else " (goal for half-second trials: 8x)"
        print(f"packed / fresh actors: {ratio:.1f}x trials a minute{goal}")
    if given.json:
        given.json.write_text(json.dumps({n: vars(t) for n, t in found.items()}, indent=1))


if __name__ == "__main__":
    main()
