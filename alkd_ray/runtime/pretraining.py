"""Pretraining of many models by Ray tasks, on whatever nodes there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray

from alkd_ray.runtime.cluster import check_root, ensure_ray
from alkd_ray.runtime.threads import one_thread
from alkd_ray.stages import Listener, Silent
from alkd_ray.storage import Storage
from alkd_ray.sweeps import shared
from alkd_ray.sweeps.shared import Training


def train(trainings: Sequence[Training], listener: Listener, root: Path) -> None:
    """Pretrains all of them, a task each; the outputs lie below ``root``, or in the storage."""
    if len(trainings) < 2:  # not worth a start of Ray
        shared.train_in_process(trainings, listener, root)
        return
    ensure_ray()
    check_root(root, Storage.of(trainings[0].config.storage))
    listener.stage_started("pretrain of all settings", None)
    task = ray.remote(_pretrain).options(num_cpus=1, max_retries=3)
    waiting = [task.remote(training, root) for training in trainings]
    while waiting:
        over, waiting = ray.wait(waiting, num_returns=1)
        ray.get(over)
        done = len(trainings) - len(waiting)
        listener.progress(done, len(trainings), "models pretrained")


def _pretrain(training: Training, root: Path) -> None:
    one_thread()
    shared.pretrain(training, Silent(), root)
