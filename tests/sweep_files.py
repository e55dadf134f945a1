"""A small sweep whose shared stages take seconds, and its run through Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from alkd_ray.runtime import sweep as running
from alkd_ray.runtime.sweep import SweepOutcome
from alkd_ray.stages import Silent
from alkd_ray.sweeps.config import load
from alkd_ray.sweeps.queue import TrialQueue
from alkd_ray.sweeps.shared import Shared
from alkd_ray.sweeps.standings import Standing

RUN = {
    "data": {"source": "synthetic", "options": {"size": "tiny"}},
    "teacher": {"dim": 16, "training": {"max_steps": 60}},
    "student": {"dim": 8, "training": {"max_steps": 60}},
    "candidates": {"size": 20},
    "hints": {"enabled": False},
    "difficulty": {"engine": "local"},
    "annotation": {"wanted": 10, "engine": "local", "in_flight": 16},
    "distillation": {"training": {"max_steps": 40, "validate_every": 10, "metric": "ndcg@10"}},
    "tracking": {"enabled": False},
}
OVER: dict[str, Any] = {
    "selection.strategy": {"grid": ["random", "alkdrec-exact"]},
    "selection.budget": {"grid": [10, 20]},
    "distillation.training.learning_rate": {"grid": [0.001, 0.01]},
}


class Told(Silent):
    """A listener that keeps what it was told of."""

    def __init__(self) -> None:
        self.shared_stages: Shared | None = None

    def trials(self, queue: TrialQueue, found: Sequence[Standing]) -> None:
        """Nothing."""

    def shared(self, shared: Shared) -> None:
        """Keeps it."""
        self.shared_stages = shared


def written(folder: Path, **fields: Any) -> Path:
    """The sweep's file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sweep.yaml"
    given = {"name": "small", "run": RUN, "seeds": [1, 2], "over": OVER, **fields}
    file.write_text(yaml.safe_dump(given))
    return file


def run(file: Path, *overrides: str, resume: bool = False) -> SweepOutcome:
    """Runs it; ``ALKD_HOME`` says where."""
    sweep = load(file, list(overrides))
    return running.execute(sweep, Told(), lambda plan: None, resume)


def table(outcome: SweepOutcome) -> list[tuple[str, dict[int, float], str]]:
    """What is compared of two sweeps: settings in order, values by seed, states."""
    return [(s.setting.id, s.by_seed, s.state) for s in outcome.standings]
