"""``alkd annotate plan|run|export``: what rankings will cost, buying them, taking them along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alkd_ray.cli.run import ConfigArgument
from alkd_ray.cli.show import JsonOption, OverridesArgument

if TYPE_CHECKING:
    from alkd_ray.annotation.planning import Plan

app = typer.Typer(no_args_is_help=True)


@app.command("plan")
def plan(
    config: ConfigArgument = "quickstart",
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Says what hints and rankings will cost - least, expected, most - and sends nothing.

    Makes all that comes before them (training, selection, candidates), which costs nothing.
    """
    from dataclasses import asdict

    from alkd_ray.cli.console import RunDisplay, print_json
    from alkd_ray.config import load

    resolved = load(config, overrides)
    with RunDisplay(quiet=as_json) as display:
        from alkd_ray.runtime import driver

        found = driver.plan(resolved, display)
    if as_json:
        print_json(asdict(found) if found else {"requests": 0, "to_send": 0})
    elif found is None:
        typer.echo("Recorded rankings are replayed: nothing will be sent, nothing will be paid.")
    else:
        _print_plan(found)


@app.command("run")
def run(
    config: ConfigArgument = "quickstart",
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Buys the rankings of a config's selected sessions; what is in the store is not sent again.

    Exit status: 0 complete, 3 partial, 4 stopped by the cap, 5 cap breached by the endpoint.
    """
    from alkd_ray.cli.console import print_json
    from alkd_ray.cli.run import EXIT_STATUS, execute
    from alkd_ray.errors import InputError

    result = execute(config, overrides, "annotation", as_json).result
    if result.annotation is None:
        raise InputError(
            f"distillation.method {result.config.distillation.method!r} reads no rankings, so "
            "there are none to buy; choose another method, e.g. alkdrec"
        )
    figures = result.annotation.figures()
    if as_json:
        print_json(figures)
    else:
        for name, value in figures.items():
            typer.echo(f"{name:<20} {'no cap' if value is None else value}")
    if EXIT_STATUS[result.status]:
        raise typer.Exit(EXIT_STATUS[result.status])


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder for the Parquet files.")],
) -> None:
    """Writes requests, raw answers and rankings of the store as Parquet."""
    from alkd_ray import buying
    from alkd_ray.annotation.database import FILE_NAME, Database
    from alkd_ray.annotation.store import Store
    from alkd_ray.artifacts import run_root

    with Database(buying.store_folder(run_root()) / FILE_NAME, read_only=True) as database:
        Store(database).export(folder)
    typer.echo(f"requests.parquet, answers.parquet and rankings.parquet are in {folder}")


def _print_plan(found: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from alkd_ray.annotation.pricing import usd

    console = Console(highlight=False)
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
        *("no cap" if value is None else value for value in (
            None if left.microusd is None else usd(left.microusd),
            None if left.tokens is None else f"{left.tokens:,}",
            None if left.requests is None else f"{left.requests:,}",
        )),
    )  # fmt: skip
    console.print(table)
    console.print(f"rates    {found.rates}", soft_wrap=True)
    console.print("Nothing was sent. The most is what would be held if all were in flight at once.")
