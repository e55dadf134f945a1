"""``alkd sweep``: run, plan, show and log a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from alkd_ray.cli.run import EXIT_STATUS, YesOption
from alkd_ray.cli.show import JsonOption, OverridesArgument

if TYPE_CHECKING:
    from alkd_ray.runtime.sweep import SweepOutcome


class _RunUnlessNamed(TyperGroup):
    """``alkd sweep FILE`` is ``alkd sweep run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not {*self.commands, "--help"} & set(args):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_RunUnlessNamed)

SweepArgument = Annotated[str, typer.Argument(help="The YAML file of a sweep.")]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Fail when there is nothing to go on with. It goes on anyway."),
]


@app.callback()
def _group() -> None:
    """Many runs that share what was paid for. `alkd sweep FILE` runs the sweep of a file."""


@app.command("run")
def run(
    config: SweepArgument,
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
    resume: ResumeOption = False,
) -> None:
    """Runs a sweep: shared stages once, one pass over all requests, then the trials in packs.

    Interrupted or killed, the same command goes on; no finished trial is run twice.
    """
    from alkd_ray.cli.console import print_json
    from alkd_ray.cli.sweep_display import SweepDisplay, approval, print_outcome
    from alkd_ray.sweeps.config import load

    sweep = load(config, overrides)
    with SweepDisplay(sweep, quiet=as_json) as display:
        from alkd_ray.runtime import sweep as running

        outcome = running.execute(sweep, display, approval(sweep, display, yes), resume)
    if as_json:
        print_json(described(outcome))
    else:
        print_outcome(outcome)
    if EXIT_STATUS[outcome.status]:
        raise typer.Exit(EXIT_STATUS[outcome.status])


@app.command("plan")
def plan(
    config: SweepArgument, overrides: OverridesArgument = None, as_json: JsonOption = False
) -> None:
    """Says what the rankings of all trials will cost, equal requests counted once; sends nothing.

    Makes all that comes before them (training, selection, candidates), shared parts once.
    """
    from dataclasses import asdict

    from alkd_ray.cli.console import RunDisplay, print_json
    from alkd_ray.cli.sweep_display import print_shared_plan
    from alkd_ray.sweeps.config import load

    sweep = load(config, overrides)
    with RunDisplay(quiet=as_json) as display:
        from alkd_ray.runtime import sweep as running

        settings, found = running.plan(sweep, display)
    if as_json:
        print_json(asdict(found) if found else {"plan": None, "trials": settings})
    elif found is None:
        typer.echo(f"{settings:,} settings replay recorded rankings: nothing is sent or paid.")
    else:
        print_shared_plan(found)
        typer.echo("Nothing was sent.")


@app.command("show")
def show(
    config: SweepArgument, overrides: OverridesArgument = None, as_json: JsonOption = False
) -> None:
    """Shows how a sweep stands, from its journal; runs nothing, also beside a running one."""
    from alkd_ray.cli.console import print_json
    from alkd_ray.cli.sweep_display import print_standings
    from alkd_ray.sweeps import journal
    from alkd_ray.sweeps.config import load
    from alkd_ray.sweeps.standings import standings

    sweep = load(config, overrides)
    events = journal.read(journal.folder_of(sweep))
    if not events:
        typer.echo(f"{journal.folder_of(sweep)}: this sweep was not begun.")
        raise typer.Exit(2)
    records = journal.trials(events)
    found = standings(records.values(), sweep.config.metric, sweep.seeds)
    if as_json:
        print_json([standing_of(standing) for standing in found])
        return
    ended = journal.last(events, "ended")
    print_standings(found, sweep.config.metric)
    typer.echo(f"{len(records):,} trials are over; " + (ended["status"] if ended else "not ended"))


@app.command("log")
def log(config: SweepArgument, overrides: OverridesArgument = None) -> None:
    """Tells MLflow of a sweep, from its journal; what is there already is not written again."""
    from rich.console import Console

    from alkd_ray.cli.sweep_display import print_tracking
    from alkd_ray.runtime import sweep_tracking
    from alkd_ray.sweeps.config import load

    found = sweep_tracking.log(load(config, overrides))
    print_tracking(found, Console(highlight=False, markup=False))


def described(outcome: SweepOutcome) -> dict[str, Any]:
    """How a sweep ended, for programs."""
    shared = outcome.shared
    return {
        "sweep": outcome.sweep.sweep_id,
        "status": outcome.status,
        "reason": outcome.reason,
        "trials": len(outcome.records),
        "requests": shared.requests,
        "requests_unshared": shared.unshared,
        "requests_sent": shared.sent,
        "dollars": shared.microusd / 1e6,
        "settings": [standing_of(standing) for standing in outcome.standings],
        "report": str(outcome.report),
        "tracking_run_id": outcome.tracking.run_id,
        "champion": outcome.tracking.champion,
        "folder": str(outcome.folder),
    }


def standing_of(standing: Any) -> dict[str, Any]:
    """A setting's standing, for programs."""
    return {
        "setting": standing.setting.id,
        "point": standing.setting.point,
        "mean": standing.mean if standing.by_seed else None,
        "half_width": standing.half_width,
        "by_seed": standing.by_seed,
        "state": standing.state,
    }
