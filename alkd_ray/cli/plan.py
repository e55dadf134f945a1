"""A plan for people, and the question whether to pay for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rich.console import Console

    from alkd_ray.annotation.planning import Plan
    from alkd_ray.cli.console import RunDisplay
    from alkd_ray.config import RunConfig


FREE_TEACHERS = {"simulated", "replay"}


def print_plan(found: Plan, console: Console | None = None) -> None:
    """Least, expected and most, and what the cap leaves."""
    from rich.console import Console
    from rich.table import Table

    from alkd_ray.annotation.pricing import usd

    console = console or Console(highlight=False, markup=False)
    table = Table(
        title=f"{found.to_send:,} of {found.requests:,} requests to be sent", title_justify="left"
    )
    table.add_column("")
    for column in ("dollars", "tokens", "requests"):
        table.add_column(column, justify="right")
    for name in ("least", "expected", "most"):
        amounts = getattr(found, name)
        table.add_row(name, usd(amounts.microusd), f"{amounts.tokens:,}", f"{amounts.requests:,}")
    left = found.left
    table.add_row(
        "the cap leaves",
        "no cap" if left.microusd is None else usd(left.microusd),
        "no cap" if left.tokens is None else f"{left.tokens:,}",
        "no cap" if left.requests is None else f"{left.requests:,}",
    )
    console.print(table)
    console.print(f"rates    {found.rates}", soft_wrap=True)
    based = "assumptions: nothing was asked there yet"
    if found.learned_from:
        based = f"the latest {found.learned_from:,} answers of that endpoint"
    console.print(f"from     {based}", soft_wrap=True)
    if found.seconds is not None:
        console.print(f"time     about {duration(found.seconds)} at the configured rate")


def duration(seconds: float) -> str:
    """A wait for people: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def approval(config: RunConfig, display: RunDisplay, yes: bool) -> Callable[[Plan], None]:
    """Shows the plan of a run; asks as :func:`approval_of` says."""
    return approval_of([config.llm.teacher], display, yes)


def approval_of(
    teachers: Collection[str], display: RunDisplay, yes: bool
) -> Callable[[Plan], None]:
    """Shows a plan; asks, where real money is at stake and somebody is there to answer.

    The simulated endpoint's money is not real, and a recording costs nothing. Without a terminal
    nobody is asked: the cap is the answer that was given beforehand.

    Args:
        teachers: ``llm.teacher`` of all whose requests are in the plan.
        display: what is shown.
        yes: nobody is asked.
    """
    is_paid = not FREE_TEACHERS.issuperset(teachers)

    def approve(found: Plan) -> None:
        from alkd_ray.errors import BudgetError

        if display.quiet:
            return
        display.interrupt()
        print_plan(found, display.console)
        is_real = is_paid and found.most.microusd > 0
        if not is_real or yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return
        import typer

        if not typer.confirm("Send them? (--yes answers this)", err=True):
            raise BudgetError("nothing was sent, as you answered")

    return approve
