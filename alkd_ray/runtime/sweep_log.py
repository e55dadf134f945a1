"""A sweep in MLflow: a view of its journal and its trials' outputs, from which it can be rebuilt.

The journal is the truth. While a sweep goes on, a thread of the driver follows the journal and
writes what is new; nobody waits for it, and where MLflow does not answer it tries again.
"""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alkd_ray.errors import AlkdError, InputError
from alkd_ray.runtime._mlflow_connection import connect
from alkd_ray.runtime._mlflow_records import TrackedSweep
from alkd_ray.runtime._sweep_view import SweepView
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps.config import Sweep

LOCK = ".mlflow.lock"
_LOG = logging.getLogger(__name__)


class SweepLogger:
    """Logs a sweep from a thread of its driver while it goes on; nobody waits for MLflow.

    Nothing is kept here but how far the journal was read: what a server that is down does not take
    is read from the journal again. The thread ends with the process; what it had not written by
    then, :func:`log` writes later.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        uri: str,
        *,
        every_seconds: float = 3.0,
        first_wait_seconds: float = 1.0,
        longest_wait_seconds: float = 30.0,
    ) -> None:
        """Waits for the first :meth:`notify`.

        Args:
            sweep: the sweep.
            folder: of its journal.
            uri: MLflow's store.
            every_seconds: from one look at the journal to the next, at least.
            first_wait_seconds: before a store that failed is tried again; doubled each time.
            longest_wait_seconds: the most of that.
        """
        self._sweep, self._folder, self._uri = sweep, folder, uri
        self._every = every_seconds
        self._waits = (first_wait_seconds, longest_wait_seconds)
        self._news, self._ending, self._given_up = (threading.Event() for _ in range(3))
        self._tracked: TrackedSweep | None = None
        self._problem = ""
        self._thread = threading.Thread(target=self._work, name="sweep-log", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why the last try failed; "" = it did not."""
        return self._problem

    def notify(self) -> None:
        """Something was journalled."""
        self._news.set()

    def finish(self, patience_seconds: float = 120.0) -> TrackedSweep | str:
        """Writes what is left and ends the sweep's run; or why that could not be done in time."""
        if not (self._folder / journals.FILE).is_file():
            self._given_up.set()
            self._news.set()
            return f"{self._folder}: this sweep was not begun"
        if self._problem:
            _LOG.warning("%s; it is tried for up to %.0f s", self._problem, patience_seconds)
        self._ending.set()
        self._news.set()
        self._thread.join(patience_seconds)
        self._given_up.set()
        if self._tracked is not None:
            return self._tracked
        return self._problem or f"MLflow took more than {patience_seconds:.0f} s for what was left"

    def _work(self) -> None:
        first, longest = self._waits
        wait = first
        self._news.wait()
        view = SweepView(self._sweep, self._folder)
        while not self._given_up.is_set():
            try:
                with _alone(self._folder), connect(self._uri) as client:
                    tracker = view.open(client, self._uri)
                    self._problem, wait = "", first
                    while not self._ending.is_set():
                        self._news.clear()
                        view.follow(tracker)
                        self._ending.wait(self._every)
                        self._news.wait()
                    self._tracked = view.finish(tracker)
                    return
            except AlkdError as error:
                self._problem = str(error)
            except Exception as error:  # a defect here must not end the sweep
                self._problem = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
                return
            if self._ending.is_set():
                self._given_up.wait(wait)
            elif self._ending.wait(wait):
                wait = first
                continue
            wait = min(2 * wait, longest)


def log(sweep: Sweep, folder: Path, uri: str) -> TrackedSweep:
    """Logs a sweep from its journal alone; what is in MLflow already is not written again.

    Raises:
        InputError: the sweep was not begun.
        AlkdError: MLflow failed, or another process is logging the sweep.
    """
    if not (folder / journals.FILE).is_file():
        raise InputError(f"{folder}: this sweep was not begun; run it first")
    with _alone(folder), connect(uri) as client:
        view = SweepView(sweep, folder)
        return view.finish(view.open(client, uri), _is_locked(folder / ".lock"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps two processes from making the same runs; the system frees the lock with its holder."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlkdError(f"{folder}: another process is logging this sweep to MLflow") from None
        yield


def _is_locked(file: Path) -> bool:
    """Whether a process holds the lock: the sweep is being run."""
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
