"""Outputs of stages, kept by what they were made from.

A stage's output lives in ``<run root>/<stage>/<key>/`` where ``key`` hashes the stage's name and
version, the keys of its inputs, the part of the config it declares, and the seed. It is written
under a temporary name and renamed, so that a folder that exists is whole: a second run finds it
and does nothing, an interrupted one leaves no half.
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

from alkd_ray import __version__
from alkd_ray.config import canonical_hash
from alkd_ray.errors import InputError


@dataclass(frozen=True, slots=True)
class StageOutput:
    """Where a stage's output lies, and what it took to make."""

    stage: str
    key: str
    folder: Path
    reused: bool
    seconds: float


def run_root() -> Path:
    """``ALKD_HOME``, or ``runs/`` below the working directory."""
    return Path(os.environ.get("ALKD_HOME") or "runs").resolve()


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
) -> StageOutput:
    """The output of ``stage``, made by ``make(folder)`` unless it is there.

    Args:
        root: the run root.
        stage: name of the stage, a folder below ``root``.
        make: writes the whole output into the empty folder it is given.
        version: raised when the stage's code changes what it writes.
        inputs: name -> key of each input.
        settings: the part of the config that the stage declares, JSON-able.
        seed: the run's seed, where the stage draws.
    """
    key = stage_key(stage, version, inputs, settings, seed)
    folder = root / stage / key
    record = folder / "stage.json"
    if record.is_file():
        seconds = json.loads(record.read_text("utf-8"))["seconds"]
        return StageOutput(stage, key, folder, True, seconds)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep_abandoned(folder)
    temporary = folder.with_name(f".{key}.{os.getpid()}.tmp")
    temporary.mkdir()
    started = time.perf_counter()
    try:
        make(temporary)
        seconds = time.perf_counter() - started
        write_json(
            temporary / "stage.json",
            {
                "stage": stage,
                "version": version,
                "key": key,
                "inputs": dict(inputs),
                "settings": settings,
                "seed": seed,
                "code_version": __version__,
                "seconds": round(seconds, 3),
            },
        )
        try:
            temporary.rename(folder)
        except OSError:
            if not record.is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return StageOutput(stage, key, folder, False, seconds)


def found(root: Path, stage: str, key: str, storage: None = None) -> StageOutput:
    """The output with a known key."""
    folder = root / stage / key
    record = folder / "stage.json"
    if not record.is_file():
        raise InputError(f"{folder}: there is no such output")
    return StageOutput(stage, key, folder, True, json.loads(record.read_text("utf-8"))["seconds"])


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` under a temporary name, then renames it to ``path``."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` (UTF-8) under a temporary name, then renames it to ``path``."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """``write`` fills a file of a temporary name beside ``path``, which then takes its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep_abandoned(folder: Path) -> None:
    """Removes what a killed process of this machine left of the same output."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        process = left.name.split(".")[-2]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(left, ignore_errors=True)
