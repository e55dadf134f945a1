"""``alkd ledger``: what was spent, held and left unresolved, and how to settle it by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alkd_ray.cli.show import JsonOption

if TYPE_CHECKING:
    from alkd_ray.annotation.entries import HoldEntry
    from alkd_ray.annotation.ledger import Ledger
    from alkd_ray.types import Amounts

app = typer.Typer(no_args_is_help=True)

HOLDS_LISTED = 20

# Columns of an exported hold -> names of their Arrow types.
ROW_TYPES = {
    "hold_id": "string",
    "budget": "string",
    "status": "string",
    "owner": "string",
    "key": "string",
    "kind": "string",
    "worst_microusd": "int64",
    "worst_tokens": "int64",
    "worst_requests": "int64",
    "actual_microusd": "int64",
    "actual_tokens": "int64",
    "actual_requests": "int64",
    "breached": "bool_",
    "breach_accepted": "bool_",
    "by_hand": "bool_",
    "why": "string",
    "held_at": "string",
    "ended_at": "string",
}


@app.command()
def show(
    budget: Annotated[str | None, typer.Argument(help="One budget only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Shows each budget: settled, held, unresolved, cap and what is left; works beside a run."""
    from alkd_ray.annotation.database import Database
    from alkd_ray.annotation.ledger import Ledger
    from alkd_ray.cli.console import print_json

    with Database(existing_books(), read_only=True) as database, database.transaction():
        ledger = Ledger(database)
        names = ledger.budgets()
        if budget is not None:
            ledger.state(budget)  # says which there are when it is not one of them
            names = [budget]
        found = [_described(ledger, name) for name in names]
    if as_json:
        print_json({"books": database.place, "budgets": found})
        return
    for described in found:
        _print_budget(described)
    if not found:
        typer.echo("no budgets yet")


@app.command()
def resolve(
    hold_id: Annotated[
        str,
        typer.Argument(help="The hold, or batch to be written off, as alkd ledger show lists it."),
    ],
    write_off: Annotated[bool, typer.Option(help="It was not billed: settle it at 0.")] = False,
    dollars: Annotated[
        str | None, typer.Option(help="Settle it at what the endpoint billed, in dollars.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="The tokens billed; without this, all that were held."),
    ] = None,
    accept_breach: Annotated[
        bool,
        typer.Option(
            "--accept-breach", help="For a settled hold that was billed above its limit: go on."
        ),
    ] = False,
) -> None:
    """Settles an unresolved hold by hand, or accepts a breach, so that its budget goes on.

    Of a batch, --write-off settles all holds that are unresolved.
    """
    from alkd_ray.annotation.batches import Batches
    from alkd_ray.annotation.database import Database
    from alkd_ray.annotation.ledger import Ledger
    from alkd_ray.annotation.pricing import usd
    from alkd_ray.errors import InputError

    if (write_off, dollars is not None, accept_breach).count(True) != 1:
        raise InputError("give one of --write-off, --dollars X and --accept-breach")
    if tokens is not None and dollars is None:
        raise InputError("--tokens goes with --dollars")
    billed = None if dollars is None else _microusd(dollars)
    with Database(existing_books()) as database:
        ledger = Ledger(database)
        ledger.recover()  # of a run that is alive, nothing is touched
        in_batch = Batches(database).holds(hold_id) if write_off else []
        entry = in_batch[0] if in_batch else ledger.entry(hold_id)
        if in_batch:
            if not any(hold.status == "unresolved" for hold in in_batch):
                raise InputError(
                    f"batch {hold_id} has no unresolved holds to be written off; if it is under "
                    f"way and nobody will collect it, give it up first (alkd annotate abandon "
                    f"{hold_id})"
                )
            what = f"{_counted(ledger.write_off(hold_id), 'unresolved hold')} written off"
        elif accept_breach:
            ledger.accept_breach(hold_id)
            what = "breach accepted"
        else:
            actual = _actual(entry, billed, tokens)
            ledger.resolve(hold_id, actual)
            what = f"settled at {usd(actual.microusd)}"
        state = ledger.state(entry.budget)
    from alkd_ray.annotation.entries import left

    remaining = left(state).microusd
    rest = "no cap in dollars" if remaining is None else f"{usd(remaining)} left"
    typer.echo(f"{hold_id}: {what}; budget {entry.budget}: {rest}")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="A .csv or .parquet file.")],
) -> None:
    """Writes every hold of every budget to a file, one row each."""
    import pyarrow as pa
    import pyarrow.csv as arrow_csv
    import pyarrow.parquet as pq

    from alkd_ray import artifacts
    from alkd_ray.annotation.database import Database
    from alkd_ray.annotation.ledger import Ledger
    from alkd_ray.errors import InputError

    writers = {".csv": arrow_csv.write_csv, ".parquet": pq.write_table}
    write = writers.get(out.suffix)
    if write is None:
        raise InputError(f"{out}: the name must end in .csv or .parquet")
    with Database(existing_books(), read_only=True) as database:
        rows = [_row(entry) for entry in Ledger(database).entries()]
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in ROW_TYPES.items()])
    table = pa.Table.from_pylist(rows, schema)
    out.parent.mkdir(parents=True, exist_ok=True)
    artifacts.replace_file(out, lambda path: write(table, path))
    typer.echo(f"{out}: {len(rows)} holds")


def existing_books() -> Path | str:
    """The books that ``ALKD_BOOKS`` names, else those below the run root.

    Raises:
        InputError: there are none yet.
    """
    from alkd_ray.annotation.database import books_of, is_url
    from alkd_ray.artifacts import run_root
    from alkd_ray.errors import InputError

    books = books_of("", run_root() / "store")
    if not is_url(books) and not Path(books).is_file():
        raise InputError(
            f"{books}: nothing was bought below this run root yet; set ALKD_HOME to look "
            "elsewhere, or ALKD_BOOKS for a database"
        )
    return books


def _microusd(dollars: str) -> int:
    """Micro-dollars of what the user typed, rounded up, without going through a float."""
    from decimal import ROUND_CEILING, Decimal, InvalidOperation

    from alkd_ray.errors import InputError

    try:
        value = Decimal(dollars) * 1_000_000
        if not value.is_finite() or value < 0:
            raise InvalidOperation
    except InvalidOperation as error:
        raise InputError(f"--dollars {dollars}: is not an amount of 0 or more") from error
    return int(value.to_integral_value(ROUND_CEILING))


def _actual(entry: HoldEntry, billed: int | None, tokens: int | None) -> Amounts:
    from alkd_ray.types import Amounts

    if billed is None:
        return Amounts()
    return Amounts(billed, entry.worst.tokens if tokens is None else tokens, entry.worst.requests)


def _described(ledger: Ledger, name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from alkd_ray.annotation.entries import left

    state = ledger.state(name)
    return {
        "budget": name,
        "settled": asdict(state.settled),
        "held": asdict(state.held),
        "unresolved": asdict(state.unresolved),
        "caps": asdict(state.caps),
        "left": asdict(left(state)),
        "breached": asdict(ledger.total_breach(name)),
        "open_breaches": ledger.open_breaches(name),
        "by_owner": {owner: asdict(spent) for owner, spent in ledger.spent_by_owner(name).items()},
        "held_holds": [_row(entry) for entry in ledger.entries(name, "held")],
        "unresolved_holds": [_row(entry) for entry in ledger.entries(name, "unresolved")],
        "breached_holds": [
            _row(entry)
            for entry in ledger.entries(name, "settled")
            if entry.breached and not entry.breach_accepted
        ],
        "rates": [asdict(noted) for noted in ledger.noted_rates(name)],
    }


def _row(entry: HoldEntry) -> dict[str, Any]:
    """One hold, flat: ``worst`` and ``actual`` become a column for each unit."""
    from dataclasses import asdict

    row: dict[str, Any] = {}
    for name, value in asdict(entry).items():
        if isinstance(value, dict):
            row.update({f"{name}_{unit}": amount for unit, amount in value.items()})
        else:
            row[name] = value
    return row


def _print_budget(described: dict[str, Any]) -> None:
    from alkd_ray.annotation.pricing import usd

    columns = ("settled", "held", "unresolved", "caps", "left")
    typer.echo(f"budget {described['budget']}")
    headings = (*columns[:3], "cap", "left")
    typer.echo("  " + " " * 9 + "".join(f"{heading:>20}" for heading in headings))
    for unit, name, shown in (
        ("microusd", "dollars", usd),
        ("tokens", "tokens", "{:,}".format),
        ("requests", "requests", "{:,}".format),
    ):
        values = [described[column][unit] for column in columns]
        cells = ["no cap" if value is None else shown(value) for value in values]
        typer.echo(f"  {name:<9}" + "".join(f"{cell:>20}" for cell in cells))
    for owner, spent in described["by_owner"].items():
        typer.echo(f"  spent by {owner or '(no owner)'}: {_sums(spent)}")
    if any(described["breached"].values()):
        typer.echo(f"  billed beyond what was held: {_sums(described['breached'])}")
    _print_holds(
        described["breached_holds"],
        "breached: nothing more is admitted until these are accepted "
        "(alkd ledger resolve HOLD_ID --accept-breach) or the cap is raised",
        "actual",
    )
    _print_holds(
        described["unresolved_holds"],
        "unresolved: settle these by the endpoint's bill "
        "(alkd ledger resolve HOLD_ID --dollars X, or --write-off)",
        "worst",
    )
    held = described["held_holds"]
    _print_holds(
        [row for row in held if not row["batch"]],
        "held: in flight, or left by a run that was killed (then the next run, or alkd ledger "
        "resolve, makes them unresolved)",
        "worst",
    )
    _print_batches([row for row in held if row["batch"]])


def _print_holds(rows: list[dict[str, Any]], heading: str, kind: str) -> None:
    if not rows:
        return
    typer.echo(f"  {heading}")
    for row in rows[:HOLDS_LISTED]:
        amounts = {unit: row[f"{kind}_{unit}"] for unit in ("microusd", "tokens", "requests")}
        why = f"  {row['why']}" if row["why"] else ""
        batch = f"  in batch {row['batch']}" if row["batch"] else ""
        typer.echo(f"    {row['hold_id']}  {row['held_at']}  {_sums(amounts)}{batch}{why}")
    if len(rows) > HOLDS_LISTED:
        typer.echo(f"    and {len(rows) - HOLDS_LISTED} more (--json lists all)")


def _print_batches(rows: list[dict[str, Any]]) -> None:
    """The held requests of batches, a line for each batch."""
    if not rows:
        return
    typer.echo(
        "  held in batches: a run with annotation.mode=batch collects them "
        "(alkd annotate abandon BATCH makes their holds unresolved)"
    )
    for label in dict.fromkeys(row["batch"] for row in rows):
        of_it = [row for row in rows if row["batch"] == label]
        units = ("microusd", "tokens", "requests")
        amounts = {unit: sum(row[f"worst_{unit}"] for row in of_it) for unit in units}
        typer.echo(f"    {label}  {of_it[0]['held_at']}  {_sums(amounts)}")


def _sums(amounts: dict[str, int]) -> str:
    from alkd_ray.annotation.pricing import usd

    requests = _counted(amounts["requests"], "request")
    return f"{usd(amounts['microusd'])}, {amounts['tokens']:,} tokens, {requests}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
