"""What a run looks like: live bars in a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from alkd_ray.artifacts import StageOutput

PLAIN_LINE_SECONDS = 5.0


class RunDisplay:
    """A listener of runs. Use as a context manager, so that the terminal is left clean."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.live = self.console.is_terminal and not quiet
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.detail = ""
        self.view = Live(
            console=self.console, transient=True, get_renderable=self._view, refresh_per_second=8
        )
        self.task: TaskID | None = None
        self.name = ""
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self.view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_task()
        if self.live:
            self.view.stop()

    def stage_started(self, stage: str, seed: int | None) -> None:
        """Starts the stage's bar; a stage that is announced twice goes on."""
        name = stage if seed is None else f"{stage}, seed {seed}"
        if self.task is not None and name == self.name:
            return
        self._end_task()
        self.name = name
        self.started = self.last_line = time.monotonic()
        self.task = self.bars.add_task(self.name, total=None, rate="")

    def stage_finished(self, output: StageOutput, seed: int | None) -> None:
        """Ends the bar and leaves one line behind."""
        if not self.quiet:
            took = f"{time.monotonic() - self.started:.1f} s"
            took = "there already" if output.reused else took
            self.console.print(f"  {self.name:<34} {took:>14}   {output.key}")
        self._end_task()

    def progress(self, done: int, total: int, text: str) -> None:
        """Moves the bar, or prints a line every few seconds."""
        now = time.monotonic()
        rate = f"{done / max(now - self.started, 1e-9):,.0f}/s"
        if self.task is not None:
            self.bars.update(
                self.task,
                completed=done,
                total=total,
                rate=rate,
            )
            self.detail = text
        if not self.live and not self.quiet and now - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = now
            left = ""
            if done:
                seconds = (total - done) * (now - self.started) / done
                left = f", about {seconds:.0f} s left"
            self.console.print(f"  {self.name}: {done}/{total} {rate}{left}; {text}")

    def interrupt(self) -> None:
        """Takes the bar away, so that something else can be said or asked."""
        self._end_task()
        if self.live:
            self.view.refresh()

    def _view(self) -> RenderableType:
        detail = Text(f"  {self.detail}", overflow="ellipsis", no_wrap=True, style="dim")
        return Group(self.bars, detail) if self.detail else self.bars

    def _end_task(self) -> None:
        self.detail = ""
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def printable(text: str) -> str:
    """Foreign text without what would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def mlflow_command() -> str:
    """What a shell here has to be given to find mlflow: its whole path outside the environment."""
    beside = Path(sys.executable).with_name("mlflow")
    return "mlflow" if shutil.which("mlflow") or not beside.exists() else str(beside)
