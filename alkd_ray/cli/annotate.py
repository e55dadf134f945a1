"""``alkd annotate``: what rankings will cost, buying them, looking at them, taking them along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alkd_ray.cli.ledger import existing_books
from alkd_ray.cli.run import ConfigArgument, YesOption
from alkd_ray.cli.show import JsonOption, OverridesArgument

if TYPE_CHECKING:
    from alkd_ray.annotation.overview import Overview

app = typer.Typer(no_args_is_help=True)

REASONS_SHOWN = 5


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
    from alkd_ray.cli.plan import print_plan
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
        print_plan(found)
        typer.echo(
            "Nothing was sent. The most is what would be held if all were in flight at once."
        )


@app.command("run")
def run(
    config: ConfigArgument = "quickstart",
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Buys the rankings of a config's selected sessions; what is in the store is not sent again.

    Exit status: 0 complete, 3 partial, 4 stopped by the cap, 5 cap breached by the endpoint.
    """
    from alkd_ray.cli.console import print_json
    from alkd_ray.cli.run import EXIT_STATUS, execute
    from alkd_ray.errors import InputError

    result = execute(config, overrides, "annotation", as_json, yes).result
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


@app.command("status")
def status(as_json: JsonOption = False) -> None:
    """Shows what the store holds: asked, answered, failed, batches under way; works beside a run.

    What was spent is shown by alkd ledger show.
    """
    from dataclasses import asdict

    from alkd_ray.annotation.database import Database
    from alkd_ray.annotation.overview import overview
    from alkd_ray.cli.console import print_json

    with Database(existing_books(), read_only=True) as database, database.transaction():
        found = overview(database)
    if as_json:
        print_json(asdict(found))
    else:
        _print_status(found)


@app.command("reparse")
def reparse(
    config: ConfigArgument = "quickstart",
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Reads a config's stored answers again with this version's parser; sends nothing.

    A run does the same by itself; this says what a new parser changes.
    """
    from dataclasses import asdict

    from alkd_ray.cli.console import RunDisplay, print_json
    from alkd_ray.config import load

    resolved = load(config, overrides)
    with RunDisplay(quiet=as_json) as display:
        from alkd_ray.runtime import driver

        found = driver.reread(resolved, display)
    if as_json:
        print_json(asdict(found) if found else {"questions": 0, "read": 0})
    elif found is None:
        typer.echo("Recorded rankings are replayed: there are no answers to read.")
    else:
        typer.echo(
            f"{found.read:,} of {found.questions:,} questions have stored answers; parser "
            f"{found.parser_version} finds rankings in {found.accepted:,} of them, and reads "
            f"{found.changed:,} differently than before"
        )


@app.command("hints")
def hints(as_json: JsonOption = False) -> None:
    """Lists the hints that were written: their keys, for hints.artifact, and what they say."""
    import json

    from alkd_ray.annotation.pricing import usd
    from alkd_ray.artifacts import run_root
    from alkd_ray.cli.console import print_json, printable

    files = sorted((run_root() / "hints").glob("*/hints.json"), key=lambda f: f.stat().st_mtime)
    found = {file.parent.name: json.loads(file.read_text("utf-8")) for file in files}
    found = {key: written for key, written in found.items() if written["text"]}
    if as_json:
        print_json(found)
        return
    for key, written in found.items():
        made = f"{written.get('model', '')} {written.get('prompt', '')}".strip()
        typer.echo(f"{key}  {made}  {usd(written['cost_microusd'])}")
        lines = written["text"].splitlines()[:5]
        typer.echo("".join(f"    {printable(line)}\n" for line in lines))
    if not found:
        typer.echo("no hints were written below this run root yet")


@app.command("retry")
def retry(
    reason: Annotated[
        str, typer.Option(help="Only refusals whose reason holds this text, e.g. 'HTTP 400'.")
    ] = "",
) -> None:
    """Lets the next run ask again what the endpoint refused for good (alkd annotate status)."""
    from alkd_ray.annotation.database import Database
    from alkd_ray.annotation.overview import refused_keys
    from alkd_ray.annotation.store import Store

    with Database(existing_books()) as database:
        found = refused_keys(database, reason)
        Store(database).ask_again(found, "to be asked again, by hand")
    typer.echo(f"{len(found):,} requests will be asked again by the next run that needs them")


@app.command("abandon")
def abandon(
    batch: Annotated[
        str, typer.Argument(help="Its label or the endpoint's id (alkd annotate status).")
    ],
) -> None:
    """Gives up a batch that nobody can collect any more, as where the endpoint or key is gone.

    Its holds become unresolved, and its requests can be asked again. Nothing is sent: a batch that
    is still under way there goes on, and is billed.
    """
    from alkd_ray.annotation.batches import Batches
    from alkd_ray.annotation.database import Database
    from alkd_ray.annotation.ledger import Ledger
    from alkd_ray.errors import InputError

    with Database(existing_books()) as database, database.transaction():
        ledger, batches = Ledger(database), Batches(database)
        ledger.recover()
        known = [e for e in batches.all_under_way() if batch and batch in (e.label, e.batch_id)]
        if not known:
            raise InputError(f"there is no batch {batch!r} under way; alkd annotate status lists")
        label = known[0].label
        if not batches.claim(label):
            raise InputError(f"a run that is alive has batch {batch!r}; end the run first")
        ledger.abandon(label)
        batches.end(label, "abandoned")
        # Those of a batch in doubt were unresolved before.
        left = sum(hold.status == "unresolved" for hold in batches.holds(label))
    typer.echo(
        f"batch {label} is given up; {left:,} of its holds are unresolved now "
        f"(not billed? alkd ledger resolve {label} --write-off)"
    )


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder for the Parquet files.")],
) -> None:
    """Writes requests, raw answers, rankings and failures of the store as Parquet."""
    from alkd_ray.annotation.database import Database
    from alkd_ray.annotation.store import Store

    with Database(existing_books(), read_only=True) as database:
        Store(database).export(folder)
    typer.echo(f"requests, answers, rankings and failures (.parquet) are in {folder}")


def _print_status(found: Overview) -> None:
    from alkd_ray.annotation.pricing import usd
    from alkd_ray.cli.console import printable

    for row in found.asked:
        tokens = row.prompt_tokens + row.completion_tokens
        typer.echo(f"{row.model} at {row.endpoint}, {row.kind}")
        typer.echo(
            f"  {row.requests:,} asked, {row.answered:,} answered, {row.failed:,} refused for good"
        )
        typer.echo(
            f"  {row.answers:,} answers, {tokens:,} tokens, {usd(row.cost_microusd)}"
            + (f", the last one {row.last_answer}" if row.last_answer else "")
        )
    for version, (accepted, failed) in found.read.items():
        typer.echo(f"read by parser {version}: {accepted:,} good, {failed:,} failed")
    for reason, requests in list(found.failures.items())[:REASONS_SHOWN]:
        typer.echo(f"refused for good: {requests:,} x {printable(reason)}")
    if found.failures:
        typer.echo("  (alkd annotate retry lets the next run ask these again)")
    for batch in found.batches:
        typer.echo(
            f"batch {batch.batch_id or '(not known to be submitted)'} of {batch.model}, prepared "
            f"{batch.prepared_at}: a run with annotation.mode=batch collects it "
            f"(alkd annotate abandon {batch.label} gives it up)"
        )
    if not found.asked:
        typer.echo("nothing was asked yet")
