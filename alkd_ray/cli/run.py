"""``alkd run`` and each stage alone: train, score, select, distill, evaluate, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from alkd_ray.cli.show import JsonOption, OverridesArgument

if TYPE_CHECKING:
    from alkd_ray.runtime.driver import Finished

EXIT_STATUS = {"complete": 0, "partial": 3, "stopped": 4, "breached": 5}

# verb -> (last stage, what it is for)
STAGE_VERBS = {
    "train": ("pretrain", "Train the conventional teacher and the student."),
    "score": ("difficulty", "Score how hard each training session is for the teacher."),
    "select": ("selection", "Pick the sessions worth an LLM's ranking; costs nothing."),
    "distill": ("distillation", "Everything up to the distilled student."),
    "evaluate": ("evaluation", "Rank the test sessions under every system."),
    "report": ("report", "Write the report of a run, making what is missing."),
}

ConfigArgument = Annotated[
    str, typer.Argument(help="A YAML file; without one, the embedded quickstart.")
]


YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Pay what the plan says without asking.")
]


def run(
    config: ConfigArgument = "quickstart",
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Runs everything: sessions in, a distilled student and a report out.

    What is there already is not made again: an interrupted run goes on where it stopped, and a
    changed field re-runs only what depends on it.
    """
    finished = execute(config, overrides, "report", as_json, yes)
    show(finished, as_json)


def execute(
    config: str, overrides: list[str] | None, until: str, quiet: bool, yes: bool = False
) -> Finished:
    """Loads and runs a config with a display; ``yes`` = what it costs is not asked about."""
    from alkd_ray.cli.console import RunDisplay
    from alkd_ray.cli.plan import approval
    from alkd_ray.config import load

    resolved = load(config, overrides)
    with RunDisplay(quiet=quiet) as display:
        from alkd_ray.runtime import driver

        return driver.execute(resolved, display, until, approval(resolved, display, yes))


def show(finished: Finished, as_json: bool) -> None:
    """Prints what a run ended with, and ends the process with its exit status."""
    from alkd_ray.cli.console import print_json

    result = finished.result
    if as_json:
        import json

        print_json(json.loads(finished.record.read_text("utf-8")))
    else:
        _print_outcome(finished)
    if EXIT_STATUS[result.status]:
        raise typer.Exit(EXIT_STATUS[result.status])


def _print_outcome(finished: Finished) -> None:
    from rich.console import Console
    from rich.table import Table

    from alkd_ray.cli.console import mlflow_command
    from alkd_ray.runtime._mlflow_connection import without_password

    result = finished.result
    console = Console(highlight=False, markup=False)  # reasons are the endpoint's words
    if result.report is not None:
        from alkd_ray import summary

        header, *rows = _fitting(summary.table(result), console.width)
        table = Table(title=result.config.name, title_justify="left")
        for column, name in enumerate(header):
            table.add_column(name, justify="left" if column == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for line in summary.sentences(result):
            console.print(line)
        console.print(f"report   {result.report.folder / 'report.html'}", soft_wrap=True)
    for line in finished.lines:
        console.print(line, soft_wrap=True)
    if result.status != "complete":
        console.print(f"{result.status}: {result.reason}", soft_wrap=True)
    if finished.tracking_run_id:
        console.print(
            f"mlflow   {mlflow_command()} ui --backend-store-uri {finished.tracking_uri}"
            if finished.tracking_uri.startswith("sqlite")
            else f"mlflow   {without_password(finished.tracking_uri)}, "
            f"run {finished.tracking_run_id}",
            soft_wrap=True,
        )
    if finished.warning:
        console.print(f"mlflow   not logged: {finished.warning}", soft_wrap=True)
    console.print(f"record   {finished.record}", soft_wrap=True)


def _fitting(table: list[list[str]], width: int) -> list[list[str]]:
    """``table``, on a narrow terminal without the metrics at smaller cutoffs and the sizes."""
    if sum(max(len(row[c]) for row in table) + 3 for c in range(len(table[0]))) < width:
        return table
    header = table[0]
    last = max(c for c, name in enumerate(header) if name.startswith("recall"))
    keep = [0, *range(last, len(header))]
    return [[row[c] for c in keep] for row in table]


def add_to(app: typer.Typer) -> None:
    """Mounts ``run`` and the stages' verbs."""
    app.command("run")(run)
    for verb, (stage, text) in STAGE_VERBS.items():
        app.command(verb, help=text)(_stage_verb(stage))


def _stage_verb(stage: str):
    def command(
        config: ConfigArgument = "quickstart",
        overrides: OverridesArgument = None,
        as_json: JsonOption = False,
    ) -> None:
        show(execute(config, overrides, stage, as_json), as_json)

    return command
