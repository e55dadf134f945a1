"""Outputs of stages, kept by what they were made from.

A stage's output lives in ``<run root>/<stage>/<key>/`` where ``key`` hashes the stage's name and
version, the keys of its inputs, the part of the config it declares, and the seed. It is written
under a temporary name and renamed, so that a folder that exists is whole: a second run finds it
and does nothing, an interrupted one leaves no half. A :class:`~alkd_ray.storage.Storage` holds
copies that other machines find.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alkd_ray import __version__, temporary
from alkd_ray.config import canonical_hash
from alkd_ray.errors import InputError
from alkd_ray.storage import RECORD, Storage


@dataclass(frozen=True, slots=True)
class StageOutput:
    """Where a stage's output lies, and what it took to make.

    Attributes:
        stage: name of the stage.
        key: see :func:`stage_key`.
        folder: below the run root.
        reused: it was there, or came from the storage; else it was made now.
        seconds: what making it took, whenever and wherever.
    """

    stage: str
    key: str
    folder: Path
    reused: bool
    seconds: float


def run_root() -> Path:
    """``ALKD_HOME``, or ``runs/`` below the working directory.

    Raises:
        InputError: there is a file of that name, or nothing can be written there.
    """
    root = Path(os.environ.get("ALKD_HOME") or "runs").expanduser().resolve()
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"ALKD_HOME: {there} is not a folder; name one, which may be new")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"ALKD_HOME: nothing may be written to {there}; name another folder")
    return root


def stage_key(
    stage: str, version: int, inputs: Mapping[str, str], settings: Any, seed: int | None
) -> str:
    """The content key of an output; equal inputs, settings and seed give equal keys."""
    return canonical_hash([stage, version, dict(inputs), settings, seed])


def produce(
    root: Path,
    stage: str,
    make: Callable[[Path], None],
    *,
    version: int,
    inputs: Mapping[str, str],
    settings: Any,
    seed: int | None = None,
    storage: Storage | None = None,
) -> StageOutput:
    """The output of ``stage``: found below ``root``, else in ``storage``, else made and kept there.

    Args:
        root: the run root.
        stage: name of the stage, a folder below ``root``.
        make: writes the whole output into the empty folder it is given.
        version: raised when the stage's code changes what it writes.
        inputs: name -> key of each input.
        settings: the part of the config that the stage declares, JSON-able.
        seed: the run's seed, where the stage draws.
        storage: where other machines look; what is found below ``root`` is kept there too.

    Raises:
        AlkdError: the storage cannot be used; what was made is below ``root`` all the same.
    """
    key = stage_key(stage, version, inputs, settings, seed)
    folder = root / stage / key
    output = _there(root, stage, key, storage)
    if output is None:
        record = {
            "stage": stage,
            "version": version,
            "key": key,
            "inputs": dict(inputs),
            "settings": settings,
            "seed": seed,
            "code_version": __version__,
        }
        output = StageOutput(stage, key, folder, False, _make(folder, make, record))
    if storage is not None:
        # Also what is reused: it may have been made before there was a storage.
        storage.keep(stage, key, folder)
    return output


def found(root: Path, stage: str, key: str, storage: Storage | None = None) -> StageOutput:
    """The output of ``stage`` with a known key: below ``root``, or fetched from ``storage``.

    Raises:
        InputError: it is in neither.
    """
    output = _there(root, stage, key, storage)
    if output is None:
        places = f"{root}, nor at {storage.url}" if storage else f"{root}"
        raise InputError(f"{stage}/{key}: there is no such output below {places}")
    return output


def is_there(root: Path, stage: str, key: str, storage: Storage | None = None) -> bool:
    """Whether :func:`found` finds the output; then it is below ``root`` afterwards."""
    return _there(root, stage, key, storage) is not None


def _there(root: Path, stage: str, key: str, storage: Storage | None) -> StageOutput | None:
    folder = root / stage / key
    record = folder / RECORD
    if not record.is_file():
        if storage is None:
            return None
        temporary.sweep_abandoned(folder)
        if not storage.fetch(stage, key, folder):
            return None
    seconds = json.loads(record.read_text("utf-8"))["seconds"]
    return StageOutput(stage, key, folder, True, seconds)


def _make(folder: Path, make: Callable[[Path], None], record: dict[str, Any]) -> float:
    """Has ``folder`` made under a temporary name, with its ``stage.json``; returns the seconds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.sweep_abandoned(folder)
    made = temporary.beside(folder)
    made.mkdir()
    started = time.perf_counter()
    try:
        make(made)
        seconds = time.perf_counter() - started
        write_json(made / RECORD, {**record, "seconds": round(seconds, 3)})
        temporary.take_place(made, folder, RECORD)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return seconds


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` under a temporary name, then renames it to ``path``."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` (UTF-8) under a temporary name, then renames it to ``path``."""
    replace_file(path, lambda written: written.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """``write`` fills a file of a temporary name beside ``path``, which then takes its place."""
    written = temporary.beside(path)
    try:
        write(written)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
