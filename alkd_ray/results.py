"""A run's outputs, as they come to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from alkd_ray.artifacts import StageOutput
from alkd_ray.bought import Bought
from alkd_ray.config import RunConfig, canonical_hash
from alkd_ray.types import RunStatus


@dataclass(slots=True)
class RunResult:
    """What a run has made so far, and how it stands.

    Attributes:
        config: the run's config.
        run_id: its name and the hash of its config.
        dataset: output of the import.
        by_seed: name of an output (``teacher``, ``student``, ``difficulty``, ``selection``,
            ``candidates``, ``hints``, ``distilled``, ``ranks of <role>``) -> seed -> output.
        annotation: what was bought.
        baselines: name -> ranks of a plain recommender.
        report: the report's folder.
        status: how it stands; ``stopped`` and ``breached`` end a run at its annotation.
        reason: why, when it is not complete.
    """

    config: RunConfig
    run_id: str
    dataset: StageOutput
    by_seed: dict[str, dict[int, StageOutput]] = field(default_factory=dict)
    annotation: Bought | None = None
    baselines: dict[str, StageOutput] = field(default_factory=dict)
    report: StageOutput | None = None
    status: RunStatus = "complete"
    reason: str = ""

    @property
    def ends_here(self) -> bool:
        """A breach, or nothing to go on with."""
        return self.annotation is not None and self.annotation.ends_the_run

    def make(self, name: str, make: Callable[[int], StageOutput]) -> dict[int, StageOutput]:
        """An output of each seed, under ``name``."""
        self.by_seed[name] = {seed: make(seed) for seed in self.config.seeds}
        return self.by_seed[name]


def run_id_of(config: RunConfig) -> str:
    """Name and content of the config; where books and outputs are kept is no part of it."""
    return f"{config.name}-{canonical_hash(config.model_dump(exclude={'books', 'storage'}), 8)}"
