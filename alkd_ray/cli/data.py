"""``alkd data import|describe|validate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from alkd_ray.cli.show import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from alkd_ray.types import Dataset

Result = TypeVar("Result")

app = typer.Typer(no_args_is_help=True)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A source of `alkd list sources`, e.g. table.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH] [KEY=VALUE]...",
            help="The file or folder to read, and the source's options, e.g. user=user_id",
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(help="The dataset's folder; data/<name> below the run root without it.")
    ] = "",
    max_bad: Annotated[
        int | None, typer.Option(min=0, help="Damaged lines that are left out, at most.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Reads sessions from a source and writes them as a dataset folder.

    Damaged input is an error that names the file, the line and the field;
    --max-bad allows some lines to be left out. Nothing is left half-written.
    """
    from pathlib import Path

    from alkd_ray import datasets, registry
    from alkd_ray.cli.console import print_json

    options = _options(source, words or [], max_bad)
    if out:
        datasets.check_free(Path(out), force)
    reader = registry.build("sources", source, options)
    dataset = _timed(f"reading {options.get('path', source)}", reader.load, as_json)
    folder = Path(out) if out else _default_folder(dataset.name)
    _timed(f"writing {folder}", lambda: datasets.write(dataset, folder, replace=force), as_json)
    if as_json:
        print_json({"folder": str(folder.resolve()), **datasets.describe(dataset)})
        return
    for problem in getattr(reader, "problems", ()):
        typer.echo(f"left out: {problem}", err=True)
    _print_facts(datasets.describe(dataset))
    typer.echo(f"dataset  {folder}")
    typer.echo(f"config   data: {{source: native, options: {{path: {folder}}}}}")


@app.command()
def describe(
    what: Annotated[
        str, typer.Argument(metavar="FOLDER_OR_CONFIG", help="A dataset's folder, or a config.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Counts, lengths, popularity, and the share of test targets unseen in training."""
    from pathlib import Path

    from alkd_ray import datasets
    from alkd_ray.cli.console import print_json

    folder = Path(what)
    dataset = datasets.read(folder) if folder.is_dir() else _of_config(what, as_json)
    facts = datasets.describe(dataset)
    if as_json:
        print_json(facts)
    else:
        _print_facts(facts)


@app.command()
def validate(
    folder: Annotated[str, typer.Argument(help="A dataset's folder.")], as_json: JsonOption = False
) -> None:
    """Says whether a dataset is valid; exit status 2 and the first problems, otherwise."""
    from pathlib import Path

    from alkd_ray import datasets
    from alkd_ray.cli.console import print_json

    problems = datasets.validate(Path(folder))
    if as_json:
        print_json({"folder": folder, "valid": not problems, "problems": problems})
    elif not problems:
        typer.echo(f"{folder}: valid")
    else:
        for problem in problems:
            typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(2)


def _options(source: str, words: list[str], max_bad: int | None) -> dict[str, Any]:
    """The source's options from a path, ``key=value`` words and ``--max-bad``."""
    from pathlib import Path

    import yaml

    from alkd_ray import registry
    from alkd_ray.errors import InputError

    fields = registry.find("sources", source).Config.model_fields
    given: dict[str, Any] = {}
    for position, word in enumerate(words):
        key, equals, value = word.partition("=")
        if position == 0 and (not equals or (key not in fields and Path(word).exists())):
            key, value = "path", word
        elif not equals:
            raise InputError(f"{word!r} is not of the form key=value, e.g. user=user_id")
        if key in given:
            raise InputError(f"{key} is given twice: {given[key]!r} and {value!r}; name it once")
        # Texts are taken as they are (a delimiter may mean something in YAML); pydantic reads
        # numbers and switches from text, but not lists and mappings.
        given[key] = yaml.safe_load(value) if value[:1] in ("[", "{") and value[1:] else value
    if max_bad is not None:
        if "max_bad" not in fields:
            raise InputError(f"the source {source} reads nothing that may be damaged; no --max-bad")
        given["max_bad"] = max_bad
    return given


def _default_folder(name: str) -> Path:
    import re

    from alkd_ray.artifacts import run_root

    return run_root() / "data" / (re.sub(r"[^\w.-]+", "-", name).strip(".-") or "dataset")


def _timed(doing: str, work: Callable[[], Result], quiet: bool) -> Result:
    """``work()``, said before it begins, since it may be long, and timed."""
    import time

    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, quiet=quiet)
    if not console.is_terminal:
        console.print(f"  {doing}", soft_wrap=True)
    started = time.perf_counter()
    with console.status(doing):
        result = work()
    console.print(f"  {doing}: {time.perf_counter() - started:.1f} s", soft_wrap=True)
    return result


def _of_config(config: str, quiet: bool) -> Dataset:
    """The dataset that a config names, imported below the run root unless it is there."""
    from alkd_ray import stages
    from alkd_ray.artifacts import run_root
    from alkd_ray.cli.console import RunDisplay
    from alkd_ray.config import load

    resolved = load(config)
    with RunDisplay(quiet=quiet) as display:
        return stages.load_dataset(
            stages.import_sessions(stages.Context(resolved, run_root(), display))
        )


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=facts["name"], title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in _rows(facts):
        table.add_row(name, text)
    Console(highlight=False, markup=False).print(table)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    counts, length, popularity = facts["counts"], facts["session_length"], facts["popularity"]
    return [
        ("source", facts["source"]),
        ("split", facts["split_rule"]),
        *((name, f"{counts[name]:,}") for name in ("sessions", "items", "interactions")),
        ("train / valid / test", " / ".join(f"{counts[n]:,}" for n in ("train", "valid", "test"))),
        (
            "records a session",
            f"{length['min']} to {length['max']}, median {length['median']:g}, "
            f"mean {length['mean']:.2f}",
        ),
        ("interactions of the top 1% items", f"{popularity['top_1_percent_share']:.1%}"),
        ("interactions of the top 10% items", f"{popularity['top_10_percent_share']:.1%}"),
        ("Gini coefficient of items", f"{popularity['gini']:.3f}"),
        ("test targets unseen in training", f"{facts['unseen_test_targets']:.1%}"),
        ("test targets in their own input", f"{facts['repeated_test_targets']:.1%}"),
        ("items without a title", f"{facts['untitled_items']:,}"),
        ("damaged lines left out", f"{facts['damaged_lines']:,}"),
        ("content hash", facts["hash"]),
    ]
