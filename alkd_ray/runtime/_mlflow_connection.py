"""A connection to MLflow that is silent, answers in bounded time, and leaves no trace behind."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from alkd_ray.errors import AlkdError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What the user has set stays. MLflow's own defaults wait for minutes and print to the terminal.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
LOGGERS = ("mlflow", "alembic")
SQLITE_WAIT_SECONDS = 30.0
# A new store takes MLflow 5 s on a free machine, several times that on a busy one.
CREATION_WAIT_SECONDS = 120.0
LONGEST_REASON = 300


@contextmanager
def connect(uri: str) -> Iterator[MlflowClient]:
    """A client of the store at ``uri``.

    Raises:
        AlkdError: the store cannot be reached, or refuses something within the block.
    """
    with _environment():
        import mlflow  # its import sets up loggers, so it comes before they are silenced
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        with _silence():
            try:
                with _one_at_a_time(sqlite_file(uri)):
                    client = mlflow.MlflowClient(tracking_uri=uri)
                    client.search_experiments(max_results=1)
                yield client
            except (
                MlflowException,
                SQLAlchemyError,
                sqlite3.Error,
                requests.RequestException,
                OSError,
            ) as error:
                raise AlkdError(
                    f"MLflow at {without_password(uri)} failed: {one_sentence(error)}"
                ) from error


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite URI; None for other stores."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(found[1]).absolute() if found else None


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps artifacts: beside an SQLite file, else where the server says.

    MLflow's own choice for SQLite is the working directory.
    """
    file = sqlite_file(uri)
    return (file.parent / "artifacts").as_uri() if file is not None else None


def without_password(uri: str) -> str:
    """``uri`` without what stands before an ``@``."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def one_sentence(error: BaseException) -> str:
    """The reason in an error's text: one line, not endless, no passwords."""
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


@contextmanager
def _one_at_a_time(file: Path | None) -> Iterator[None]:
    """Keeps other processes from opening the same new SQLite store at the same time.

    MLflow makes its tables at the first use, and two processes doing so disturb each other. It
    also tries again for minutes where a file cannot be written, so that is checked first.
    """
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        _wait_for(lock, file)
        with closing(sqlite3.connect(file, timeout=SQLITE_WAIT_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        yield


def _wait_for(lock: IO[str], file: Path) -> None:
    """Takes ``lock``; the system frees it when its holder ends, however that ends."""
    deadline = time.monotonic() + CREATION_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process has been opening {file} for {CREATION_WAIT_SECONDS:.0f} s"
                ) from None
            time.sleep(0.1)


@contextmanager
def _environment() -> Iterator[None]:
    """Variables that the user has not set, for the time of the block."""
    added = [name for name in DEFAULTS if not os.environ.get(name)]
    before = {name: os.environ.get(name) for name in added}
    os.environ.update({name: DEFAULTS[name] for name in added})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _silence() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
