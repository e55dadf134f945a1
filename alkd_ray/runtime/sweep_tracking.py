"""Whether, and how, MLflow follows a sweep; MLflow itself is imported only where it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alkd_ray import artifacts
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps.config import Sweep

# For what MLflow has not got by the end; a server that was down for a minute may come back.
LOG_PATIENCE_SECONDS = 180.0
LOG_PATIENCE_AFTER_ERRORS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Tracking:
    """A sweep in MLflow.

    Attributes:
        uri: MLflow's store, "" = none is used.
        run_id: the sweep's run, "" = there is none.
        champion: URI of the registered best student, "" = there is none.
        warning: why MLflow lacks something; "" normally.
    """

    uri: str = ""
    run_id: str = ""
    champion: str = ""
    warning: str = ""


def log(sweep: Sweep) -> Tracking:
    """Tells MLflow of a sweep from its journal alone; what is there is not written again.

    Raises:
        InputError: the sweep was not begun.
        AlkdError: MLflow cannot be reached, or another process is logging the sweep.
    """
    from alkd_ray.runtime import sweep_log, tracking

    uri = tracking.default_tracking_uri(artifacts.run_root())
    found = sweep_log.log(sweep, journals.folder_of(sweep), uri)
    return Tracking(uri, found.run_id, found.model_uri)


class Follower:
    """Has MLflow follow the journal; nobody waits for it before the sweep is over."""

    def __init__(self, sweep: Sweep, root: Path, folder: Path) -> None:
        from alkd_ray.runtime import sweep_log, tracking

        self.uri = tracking.default_tracking_uri(root)
        self._logger = sweep_log.SweepLogger(sweep, folder, self.uri)

    def notify(self) -> None:
        """Something was journalled."""
        self._logger.notify()

    def finish(self) -> Tracking:
        """Waits for what is left to be written."""
        found = self._logger.finish(LOG_PATIENCE_SECONDS)
        if isinstance(found, str):
            return Tracking(self.uri, warning=found)
        return Tracking(self.uri, found.run_id, found.model_uri)

    def give_up(self) -> None:
        """The sweep did not end; what is there is written, if that takes no time."""
        self._logger.finish(LOG_PATIENCE_AFTER_ERRORS_SECONDS)


class NoFollower:
    """For ``tracking.enabled=false``."""

    def notify(self) -> None:
        """Nothing."""

    def finish(self) -> Tracking:
        """Nothing."""
        return Tracking()


@contextlib.contextmanager
def followed(sweep: Sweep, root: Path, folder: Path) -> Iterator[Follower | NoFollower]:
    """Has MLflow follow a sweep, where its config wants that; ends with the block."""
    if not sweep.of({}).tracking.enabled:
        yield NoFollower()
        return
    follower = Follower(sweep, root, folder)
    try:
        yield follower
    except BaseException:
        follower.give_up()
        raise
