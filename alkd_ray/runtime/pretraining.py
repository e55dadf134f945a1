"""Pretraining of many models by Ray tasks, on whatever nodes there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alkd_ray.runtime.tasks import by_tasks
from alkd_ray.stages import Listener, Silent
from alkd_ray.storage import Storage
from alkd_ray.sweeps import shared
from alkd_ray.sweeps.shared import Training


def train(trainings: Sequence[Training], listener: Listener, root: Path) -> None:
    """Pretrains all of them, a task each; the outputs lie below ``root``, or in the storage."""
    if len(trainings) < 2:  # not worth a start of Ray
        shared.train_in_process(trainings, listener, root)
        return
    listener.stage_started("pretrain of all settings", None)
    by_tasks(
        _pretrain,
        [(training, root) for training in trainings],
        root,
        Storage.of(trainings[0].config.storage),
        lambda done: listener.progress(done, len(trainings), "models pretrained"),
    )


def _pretrain(training: Training, root: Path) -> None:
    shared.pretrain(training, Silent(), root)
