"""What a sweep looks like: one live table in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from alkd_ray.cli.console import PLAIN_LINE_SECONDS, RunDisplay, mlflow_command
from alkd_ray.cli.plan import approval_of, duration, print_plan
from alkd_ray.sweeps.records import short_names, value_text

if TYPE_CHECKING:
    from alkd_ray.artifacts import StageOutput
    from alkd_ray.plans import SharedPlan
    from alkd_ray.runtime.sweep import SweepOutcome
    from alkd_ray.runtime.sweep_tracking import Tracking
    from alkd_ray.sweeps.config import Sweep
    from alkd_ray.sweeps.queue import TrialQueue
    from alkd_ray.sweeps.shared import Shared
    from alkd_ray.sweeps.standings import Standing

BEST_SHOWN = 5
WORTH_A_LINE_SECONDS = 1.0


class SweepDisplay(RunDisplay):
    """A listener of sweeps. Use as a context manager."""

    def __init__(self, sweep: Sweep, quiet: bool = False) -> None:
        self._shared: Shared | None = None
        self._found: Sequence[Standing] = ()
        self._counts: dict[str, int] = {}
        self._began = self._told = time.monotonic()
        self._first: int | None = None
        self.sweep = sweep
        super().__init__(quiet)

    def stage_finished(self, output: StageOutput, seed: int | None) -> None:
        """A line for what took time; all of it would fill the screen."""
        if not output.reused and output.seconds >= WORTH_A_LINE_SECONDS:
            super().stage_finished(output, seed)
        else:
            self._end_task()

    def shared(self, shared: Shared) -> None:
        """Says what sharing saved."""
        self._end_task()
        self._shared = shared
        if not self.quiet:
            self.console.print(shared_in_words(shared))

    def trials(self, queue: TrialQueue, found: Sequence[Standing]) -> None:
        """Redraws the table, or prints a line every few seconds."""
        statuses = [record.status for record in queue.records.values()]
        self._found = found
        self._counts = {
            "done": statuses.count("complete"),
            "dropped": statuses.count("dropped"),
            "failed": statuses.count("failed"),
            "running": len(queue.running),
            "waiting": queue.left,
        }
        over = len(statuses)
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = over, now
        is_last = not self._counts["running"] and not self._counts["waiting"]
        if self.live or self.quiet or not (is_last or now - self._told >= PLAIN_LINE_SECONDS):
            return
        self._told = now
        self.console.print(f"  {self._line()}")

    def _line(self) -> str:
        counts = self._counts
        parts = [f"{count} {what}" for what, count in counts.items() if count or what == "done"]
        over = counts["done"] + counts["dropped"] + counts["failed"]
        new = over - (self._first or 0)
        seconds = time.monotonic() - self._began
        if new and counts["running"] + counts["waiting"]:
            rate = new / seconds
            left = (counts["running"] + counts["waiting"]) / rate
            parts.append(f"{60 * rate:,.0f} a minute, about {duration(left)} left")
        line = "trials: " + ", ".join(parts)
        if self._found and self._found[0].by_seed:
            best = self._found[0]
            line += f"; best {self.sweep.config.metric} {best.shown} ({best.setting.label})"
        return line

    def _view(self) -> RenderableType:
        if not self._counts:
            return super()._view()
        parts: list[RenderableType] = [Text(self._line())]
        if self._shared is not None and self._shared.microusd:
            parts.append(Text(shared_in_words(self._shared), style="dim"))
        parts.append(_table(self._found[:BEST_SHOWN], self.sweep.config.metric, "best so far"))
        return Group(super()._view(), *parts)


def shared_in_words(shared: Shared) -> str:
    """Requests with and without sharing, and what they cost."""
    if not shared.unshared:
        return "  no rankings are read: nothing was asked or paid"
    return (
        f"  {shared.requests:,} rankings serve all settings, "
        f"{shared.unshared:,} if each had asked for itself; "
        f"{shared.sent:,} requests were sent now, ${shared.microusd / 1e6:,.4f} in all"
    )


def approval(sweep: Sweep, display: RunDisplay, yes: bool) -> Callable[[SharedPlan], None]:
    """Shows the plan of all trials, and asks as for a run that any of their LLMs is asked in."""

    def approve(found: SharedPlan) -> None:
        from alkd_ray.runtime.sweep import configs_of

        if not display.quiet:
            display.interrupt()
            display.console.print(_saving(found))
        teachers = {config.llm.teacher for config in configs_of(sweep).values()}
        approval_of(teachers, display, yes)(found.plan)

    return approve


def print_shared_plan(found: SharedPlan) -> None:
    """The plan, and what sharing saves."""
    print_plan(found.plan)
    Console(highlight=False, markup=False).print(_saving(found))


def _saving(found: SharedPlan) -> str:
    return (
        f"{found.settings:,} settings ask {found.plan.requests:,} different requests; "
        f"{found.unshared:,} if each asked for itself."
    )


def print_outcome(outcome: SweepOutcome) -> None:
    """The table, what it says, and where to look."""
    console = Console(highlight=False, markup=False)
    print_standings(outcome.standings, outcome.sweep.config.metric)
    found = json.loads((outcome.report / "metrics.json").read_text("utf-8"))
    for sentence in found["headline"]:
        console.print(sentence)
    console.print(shared_in_words(outcome.shared).strip(), soft_wrap=True)
    failed = [record for record in outcome.records.values() if record.status == "failed"]
    for record in failed[:BEST_SHOWN]:
        console.print(
            f"failed   {record.setting.label} seed={record.seed}: {record.reason}", soft_wrap=True
        )
    if len(failed) > BEST_SHOWN:
        console.print(f"         and {len(failed) - BEST_SHOWN} more; see the journal")
    if outcome.status != "complete":
        console.print(f"{outcome.status}: {outcome.reason}", soft_wrap=True)
    console.print(f"report   {outcome.report / 'sweep.html'}", soft_wrap=True)
    print_tracking(outcome.tracking, console)
    console.print(f"journal  {outcome.folder / 'journal.jsonl'}", soft_wrap=True)


def print_tracking(tracking: Tracking, console: Console) -> None:
    """Where MLflow shows a sweep, or why it does not."""
    from alkd_ray.runtime._mlflow_connection import without_password

    uri = without_password(tracking.uri)
    if tracking.run_id:
        is_file = uri.startswith("sqlite")
        where = f"{mlflow_command()} ui --backend-store-uri {uri}" if is_file else uri
        console.print(f"mlflow   {where}, run {tracking.run_id}", soft_wrap=True)
    if tracking.champion:
        console.print(f"student  {tracking.champion}, alias champion", soft_wrap=True)
    if tracking.warning:
        console.print(
            f"mlflow   not all is logged: {tracking.warning}; alkd sweep log FILE logs the rest",
            soft_wrap=True,
        )


def print_standings(found: Sequence[Standing], metric: str) -> None:
    """All settings, best first."""
    Console(highlight=False, markup=False).print(_table(found, metric, "settings"))


def _table(found: Sequence[Standing], metric: str, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    names = short_names(list(found[0].setting.point)) if found else {}
    for name in names.values():
        table.add_column(name, justify="right")
    table.add_column(f"{metric}, validation", justify="right")
    table.add_column("seeds", justify="right")
    table.add_column("")
    for standing in found:
        values = [value_text(standing.setting.point[name]) for name in names]
        state = "" if standing.is_whole else standing.state
        table.add_row(*values, standing.shown, str(len(standing.by_seed)), state)
    return table
