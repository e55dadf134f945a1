"""What is told to MLflow, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class DatasetInput:
    """The dataset of a run.

    Attributes:
        name: its name.
        hash: fingerprint of its sessions; MLflow's digest (at most 36 characters).
        source: where it came from (a path, a generator and its settings).
        folder: where it lies in native form.
        rows: counts, by what is counted; shown as MLflow's profile.
    """

    name: str
    hash: str
    source: str
    folder: Path
    rows: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StudentRun:
    """One trained model of a run.

    Attributes:
        name: its role; the MLflow run is called ``<name>-<seed>``.
        seed: its seed.
        params: what it was made with.
        history: validations, each with ``step`` and numbers by name (``loss``, ``metric``,
            ``seconds`` since the start of the training).
        metrics: on the test sessions.
        cost: what its rankings cost; empty where it read none.
        artifacts: name -> file or folder, kept under that name.
        export_folder: the exported student, to be logged as a model; None = no model.
        tags: further tags.
    """

    name: str
    seed: int
    params: Mapping[str, str | int | float]
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    cost: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    export_folder: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of its MLflow run."""
        return f"{self.name}-{self.seed}"

    @property
    def best_validation(self) -> float:
        """The best validation metric; -inf where nothing was validated."""
        return max((row["metric"] for row in self.history if "metric" in row), default=-math.inf)


@dataclass(frozen=True, slots=True)
class SweepRun:
    """A sweep, as far as it does not change while it goes on.

    Attributes:
        id: of the sweep, by which its runs are found again.
        experiment: name of the experiment.
        params: its fields.
        began: when, in milliseconds since 1970.
    """

    id: str
    experiment: str
    params: Mapping[str, str | int | float]
    began: int


@dataclass(frozen=True, slots=True)
class SettingRun:
    """One setting of a sweep; a run below the sweep's.

    Attributes:
        id: of the setting, by which its run is found again.
        content: hash of all that this is made from.
        title: what its run is called.
        status: MLflow's: ``FINISHED``, ``FAILED``, ``KILLED``.
        params: the point, and what else it changes in the config.
        metrics: means over the seeds, and half widths of their intervals.
        history: means over the seeds by ``step``; () until every seed is there, since MLflow
            takes back no point.
        table: column -> value of each seed.
        tags: further tags.
        began: when its first trial began, in milliseconds since 1970.
        ended: when its last trial was over, in milliseconds since 1970.
        at: when this became known, in milliseconds since 1970.
    """

    id: str
    content: str
    title: str
    status: str
    params: Mapping[str, str | int | float]
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    table: Mapping[str, Sequence[Any]]
    tags: Mapping[str, str]
    began: int
    ended: int
    at: int


@dataclass(frozen=True, slots=True)
class TrackedSweep:
    """A sweep that MLflow holds.

    Attributes:
        run_id: the MLflow run of the sweep.
        experiment_id: its experiment.
        settings: setting -> MLflow run id.
        model_uri: the best student, ``models:/<name>/<version>``; "" when no setting is whole.
        written: settings that were written to MLflow now; the others were there already.
    """

    run_id: str
    experiment_id: str
    settings: Mapping[str, str]
    model_uri: str
    written: int


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run that MLflow holds.

    Attributes:
        run_id: the MLflow run of the whole.
        experiment_id: its experiment.
        students: ``<name>-<seed>`` -> MLflow run id.
        model_uri: the registered student, ``models:/<name>/<version>``; "" when none was logged.
        reused: whether it was there already, so that nothing was logged.
    """

    run_id: str
    experiment_id: str
    students: Mapping[str, str]
    model_uri: str
    reused: bool


def mean_history(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Several trainings' validations as one: means by ``step`` over those that got so far.

    Trainings that stop early are missing from the later means, so each point says as
    ``seeds_training`` how many it is of.
    """
    by_step: dict[float, list[Mapping[str, float]]] = {}
    for history in histories:
        for row in history:
            by_step.setdefault(row["step"], []).append(row)
    return [
        {
            **{
                name: sum(row[name] for row in rows) / len(rows)
                for name in rows[0]
                if all(name in row for row in rows)
            },
            "step": step,
            "seeds_training": len(rows),
        }
        for step, rows in sorted(by_step.items())
    ]
