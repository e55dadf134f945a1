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
