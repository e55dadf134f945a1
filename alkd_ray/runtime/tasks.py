"""The same work on many things by Ray tasks, on whatever nodes there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from alkd_ray.errors import AlkdError
from alkd_ray.runtime.cluster import check_root, ensure_ray
from alkd_ray.runtime.threads import one_thread
from alkd_ray.storage import Storage

RETRIES = 3  # of a task whose process or node was lost


def by_tasks(
    work: Callable[..., Any],
    things: Sequence[tuple[Any, ...]],
    root: Path,
    storage: Storage | None,
    done: Callable[[int], None],
) -> list[Any]:
    """``[work(*thing) for thing in things]``, a task of one CPU and one thread each.

    Args:
        work: leaves its outputs below ``root``, or in the storage; may run twice when a node is
            lost.
        things: its arguments, the longest work first.
        root: the run root.
        storage: where the nodes share outputs, if they do.
        done: told how many are done, after each.

    Raises:
        InputError: there are nodes that do not see ``root``, and no storage.
        AlkdError: the work's own.
    """
    ensure_ray()
    check_root(root, storage)
    task = ray.remote(_in_one_thread).options(num_cpus=1, max_retries=RETRIES)
    answers = [task.remote(work, thing) for thing in things]
    waiting = list(answers)
    try:
        while waiting:
            over, waiting = ray.wait(waiting, num_returns=1)
            ray.get(over)
            done(len(answers) - len(waiting))
        return ray.get(answers)
    except RayTaskError as error:
        raise said_by_ours(error) from error


def said_by_ours(error: RayTaskError) -> BaseException:
    """What the task's or actor's code raised, if it is meant for the user, else the whole."""
    cause = error.cause
    return cause if isinstance(cause, AlkdError) else error


def _in_one_thread(work: Callable[..., Any], thing: tuple[Any, ...]) -> Any:
    one_thread()
    return work(*thing)
