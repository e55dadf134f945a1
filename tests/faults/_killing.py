"""Passes in processes of their own, and kill -9 of one part of them or of all."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults._accounts import until

ROOT = Path(__file__).resolve().parents[2]
ACTOR_TITLES = {"annotator": "ray::_Annotator", "desk": "ray::_Desk"}
GONE_SECONDS = 60.0


@dataclass(frozen=True)
class Programs:
    """Starts passes; each has a Ray of its own, whose files lie in ``folder``."""

    folder: Path
    started: list[Program] = field(default_factory=list)

    def start(self, described: dict[str, Any]) -> Program:
        """``tests/faults/_driver.py`` in a session of its own."""
        output = self.folder / f"program-{len(self.started)}.txt"
        environment = {
            **os.environ,
            "RAY_TMPDIR": str(self.folder),
            "RAY_ADDRESS": "",
            "OMP_NUM_THREADS": "1",
        }
        with output.open("wb") as written:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults._driver", json.dumps(described)],
                cwd=ROOT,
                env=environment,
                start_new_session=True,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        self.started.append(Program(process, output))
        return self.started[-1]


@dataclass(frozen=True)
class Program:
    """A running pass."""

    process: subprocess.Popen[bytes]
    output: Path
    seen: list[psutil.Process] = field(default_factory=list)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """All that it printed."""
        return self.output.read_text("utf-8", errors="replace")

    def outcome(self) -> dict[str, Any]:
        """What it ends with."""
        assert self.process.wait(300) == 0, self.said()
        return json.loads(self.said().splitlines()[-1])

    def parts(self) -> list[psutil.Process]:
        """The driver and everything it started, Ray included."""
        session = self.process.pid
        found = {part.pid: part for part in psutil.process_iter() if _session(part) == session}
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(session)
            found |= {part.pid: part for part in [driver, *driver.children(recursive=True)]}
        return list(found.values())

    def kill(self, kind: str, draw: random.Random) -> list[psutil.Process]:
        """kill -9 of ``driver``, one ``annotator``, the ``desk`` or ``everything``.

        Returns:
            Driver and actors as they were before: all that can send or write.
        """
        parts = self.parts()
        self.seen.extend(parts)  # Ray's own agents outlive a killed driver by a minute
        actors = [part for part in parts if "ray::_" in _title(part)]
        if kind == "driver":
            victims = [part for part in parts if part.pid == self.process.pid]
        elif kind == "everything":
            victims = parts
        else:
            found = [part for part in parts if ACTOR_TITLES[kind] in _title(part)]
            victims = [draw.choice(sorted(found, key=lambda part: part.pid))]
        watched = [part for part in parts if part.pid == self.process.pid or part in actors]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        return watched


@contextlib.contextmanager
def programs() -> Iterator[Programs]:
    """A place for them; what still runs at the end is killed.

    Its path is short, since Ray's sockets lie below it, and their paths may not be long.
    """
    made = Programs(Path(tempfile.mkdtemp(prefix="alkd")))
    try:
        yield made
    finally:
        for program in made.started:
            for part in filter(_is_alive, [*program.seen, *program.parts()]):
                with contextlib.suppress(psutil.NoSuchProcess):
                    part.kill()
            program.process.wait()
        shutil.rmtree(made.folder, ignore_errors=True)


def are_gone(parts: list[psutil.Process]) -> bool:
    """Whether all have ended, in time."""
    return until(lambda: not any(map(_is_alive, parts)), GONE_SECONDS)


def _session(part: psutil.Process) -> int:
    try:
        return os.getsid(part.pid)
    except ProcessLookupError:
        return -1


def _is_alive(part: psutil.Process) -> bool:
    try:
        return part.is_running() and part.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(part: psutil.Process) -> str:
    try:
        return " ".join(part.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
