"""``alkd sweep plan``: what all trials of a sweep cost together."""

from __future__ import annotations

from typing import Annotated

import typer

from alkd_ray.cli.show import JsonOption, OverridesArgument

app = typer.Typer(no_args_is_help=True)

SweepArgument = Annotated[str, typer.Argument(help="The YAML file of a sweep.")]


@app.callback()
def _group() -> None:
    """Many runs that share what was paid for."""


@app.command("plan")
def plan(
    config: SweepArgument, overrides: OverridesArgument = None, as_json: JsonOption = False
) -> None:
    """Says what the rankings of all trials will cost, equal requests counted once; sends nothing.

    Makes all that comes before them (training, selection, candidates), shared parts once.
    """
    from dataclasses import asdict

    from alkd_ray import sweeps
    from alkd_ray.cli.console import RunDisplay, print_json
    from alkd_ray.cli.plan import print_plan

    _, trials = sweeps.load(config, overrides)
    with RunDisplay(quiet=as_json) as display:
        from alkd_ray.runtime import driver

        found = driver.plan_sweep(trials, display)
    if as_json:
        print_json(asdict(found) if found else {"plan": None, "trials": len(trials)})
    elif found is None:
        typer.echo(
            f"{len(trials):,} trials replay recorded rankings: nothing will be sent or paid."
        )
    else:
        print_plan(found.plan)
        typer.echo(
            f"{found.trials:,} trials ask {found.plan.requests:,} different requests; "
            f"{found.unshared:,} if each asked for itself. Nothing was sent."
        )
