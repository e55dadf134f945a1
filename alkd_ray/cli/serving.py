"""``alkd recommend`` and ``alkd export``: students outside their run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alkd_ray.cli.show import JsonOption

if TYPE_CHECKING:
    from alkd_ray.serving.recommend import Recommendation, Student

RoleOption = Annotated[
    str, typer.Option(help="Which model of the run: distilled, student or teacher.")
]
SeedOption = Annotated[int | None, typer.Option(help="Which seed; default: the run's first.")]

# Some sessions were answered, others had no known item.
PARTIAL = 3


def recommend(
    student: Annotated[
        str,
        typer.Argument(help="An exported folder, a run id, or latest.", metavar="RUN_OR_FOLDER"),
    ],
    session: Annotated[
        list[str] | None,
        typer.Option(help="Item ids, oldest first, with commas between; may be repeated."),
    ] = None,
    sessions: Annotated[
        Path | None,
        typer.Option(
            help="A .jsonl file (a list of item ids a line) or .csv file (session_id,item_id)."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Items wanted for a session.")] = 10,
    role: RoleOption = "distilled",
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recommends the next items for sessions given by the item ids of the data's owner.

    Ids that the catalogue does not have are ignored and reported. Exit status 3: some sessions had
    no known id and so no answer.
    """
    from alkd_ray.errors import InputError

    asked = _asked(session, sessions)
    answers = dict(
        zip(asked, _load(student, role, seed).recommend(list(asked.values()), top), strict=True)
    )
    failed = [
        f"session {name}: {answer.problem}" for name, answer in answers.items() if answer.problem
    ]
    if len(failed) == len(answers):
        raise InputError(
            failed[0]
            if len(failed) == 1
            else f"{failed[0]}; no other session has a known item either"
        )
    if as_json:
        _print_json(student, top, asked, answers)
    else:
        _print_tables(answers)
    if failed:
        raise typer.Exit(PARTIAL)


def export(
    run: Annotated[str, typer.Argument(help="A run id, or latest.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    role: RoleOption = "distilled",
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Writes a student to a folder that recommends without the dataset or the run."""
    from alkd_ray.artifacts import run_root
    from alkd_ray.cli.console import print_json
    from alkd_ray.serving import records
    from alkd_ray.serving.export import export as write
    from alkd_ray.serving.export import read_export

    found = records.find_student(run_root(), run, role, seed)
    write(
        found.checkpoint,
        found.catalogue(),
        found.window,
        out.absolute(),
        test_metrics=found.test_metrics(),
    )
    if as_json:
        print_json({"run_id": found.run_id, "seed": found.seed, **read_export(out)})
    else:
        typer.echo(f"{found.role} student of {found.run_id}, seed {found.seed}: {out}")


def add_to(app: typer.Typer) -> None:
    """Mounts both verbs."""
    app.command("recommend")(recommend)
    app.command("export")(export)


def _asked(session: list[str] | None, sessions: Path | None) -> dict[str, list[str]]:
    from alkd_ray.errors import InputError
    from alkd_ray.serving.session_files import read_sessions

    if bool(session) == (sessions is not None):
        raise InputError("give sessions either by --session ID,ID,... or by --sessions FILE")
    if sessions is not None:
        return read_sessions(sessions)
    return {
        str(number): [source.strip() for source in text.split(",") if source.strip()]
        for number, text in enumerate(session or [], start=1)
    }


def _load(student: str, role: str, seed: int | None) -> Student:
    """A folder wins over a run of the same name."""
    from alkd_ray.artifacts import run_root
    from alkd_ray.serving import records
    from alkd_ray.serving.recommend import Student, load_student
    from alkd_ray.training import checkpoint

    if Path(student).is_dir():
        return load_student(student)
    found = records.find_student(run_root(), student, role, seed)
    return Student(checkpoint.load(found.checkpoint), found.catalogue(), found.window)


def _print_json(
    student: str, top: int, asked: dict[str, list[str]], answers: dict[str, Recommendation]
) -> None:
    from dataclasses import asdict

    from alkd_ray.cli.console import print_json

    print_json(
        {
            "student": student,
            "top": top,
            "sessions": [
                {"session_id": name, "session": asked[name], **asdict(answer)}
                for name, answer in answers.items()
            ],
        }
    )


def _print_tables(answers: dict[str, Recommendation]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from alkd_ray.cli.console import printable

    console = Console(highlight=False)
    for name, answer in answers.items():
        title = f"session {name}" if len(answers) > 1 else None
        table = Table(title=title and Text(printable(title)), title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column("item")
        table.add_column("score", justify="right")
        table.add_column("title")
        for rank, item in enumerate(answer.items, start=1):
            # Titles and ids are foreign text: no markup, no control characters.
            table.add_row(
                str(rank),
                Text(printable(item.source_id)),
                f"{item.score:.4f}",
                Text(printable(item.title)),
            )
        if answer.problem:
            console.print(Text(printable(f"session {name}: {answer.problem}")), soft_wrap=True)
        else:
            console.print(table)
        if answer.unknown:
            console.print(
                Text(printable(f"not in the catalogue, ignored: {', '.join(answer.unknown)}")),
                soft_wrap=True,
            )
