"""``alkd reproduce``: the paper's tables and figures, ours beside theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alkd_ray.cli.run import EXIT_STATUS, YesOption
from alkd_ray.cli.show import JsonOption, OverridesArgument

if TYPE_CHECKING:
    from rich.console import Console

    from alkd_ray.plans import SharedPlan
    from alkd_ray.reproduction.cells import Cell
    from alkd_ray.reproduction.layout import Grid
    from alkd_ray.reproduction.studies import Study
    from alkd_ray.runtime.reproduce import Outcome
    from alkd_ray.runtime.sweep import SweepListener
    from alkd_ray.sweeps.config import Sweep

EFFICIENCY, ALL = "efficiency", "all"
SHOWN_METRIC = "recall@10"  # the paper's ndcg is none

TargetArgument = Annotated[
    str,
    typer.Argument(
        help="table1, table2, figure2a, figure2b, figure3a, figure3b, efficiency, or all."
    ),
]
ConfigsOption = Annotated[
    Path | None,
    typer.Option(help="The folder of the sweeps' files; default: tune_configs here or beside us."),
]

DatasetOption = Annotated[
    str | None,
    typer.Option(help="One dataset alone: hetrec2011-ml or amazon-games; default: all it has."),
]


def reproduce(
    target: TargetArgument,
    overrides: OverridesArgument = None,
    configs: ConfigsOption = None,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Runs the sweeps of a table or figure of the paper and sets ours beside the paper's numbers.

    What a sweep has done is found again, so the command goes on where it was interrupted, and a
    second call writes the report alone.
    """
    from alkd_ray.errors import InputError
    from alkd_ray.reproduction.studies import STUDIES

    known = [*STUDIES, EFFICIENCY, ALL]
    if target not in known:
        raise InputError(f"there is no {target!r} to reproduce; known: {', '.join(known)}")
    folder = configs or _folder()
    chosen = [target]
    if target == ALL:
        has = [name for name, study in STUDIES.items() if dataset in (None, *study.sweeps)]
        if not has:
            raise InputError(f"nothing is made of {dataset!r}; see the datasets of table1")
        chosen = [*has, EFFICIENCY]
    described, worst = {}, 0
    for name in chosen:
        if name == EFFICIENCY:
            described[name] = _efficiency(folder, overrides or [], dataset, as_json)
            continue
        described[name], status = _study(
            STUDIES[name].of(dataset), folder, overrides or [], as_json, yes
        )
        worst = max(worst, EXIT_STATUS[status])
    if as_json:
        from alkd_ray.cli.console import print_json

        print_json(described if target == ALL else described[target])
    if worst:
        raise typer.Exit(worst)


def _folder() -> Path:
    """``tune_configs`` of the working directory, or of the repository this was installed from."""
    here = Path("tune_configs")
    return here if here.is_dir() else Path(__file__).parents[2] / "tune_configs"


def _study(
    study: Study, folder: Path, overrides: list[str], as_json: bool, yes: bool
) -> tuple[dict[str, Any], Any]:
    from alkd_ray.runtime import reproduce as making

    outcome = making.make(study, folder, overrides, _shown(as_json, yes))
    if not as_json:
        _print(outcome)
    written = outcome.written
    return {
        "status": outcome.status,
        "reason": outcome.reason,
        "findings": [str(finding) for finding in written.findings],
        "report": str(written.folder / "reproduction.html"),
    }, outcome.status


def _shown(quiet: bool, yes: bool) -> Any:
    from alkd_ray.cli.sweep_display import SweepDisplay, approval

    @contextmanager
    def shown(sweep: Sweep) -> Iterator[tuple[SweepListener, Callable[[SharedPlan], None]]]:
        with SweepDisplay(sweep, quiet=quiet) as display:
            yield display, approval(sweep, display, yes)

    return shown


def _print(outcome: Outcome) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    written = outcome.written
    for grid in written.grids:
        _print_grid(console, grid)
    for finding in written.findings:
        console.print(str(finding))
    console.print(f"report   {written.folder / 'reproduction.html'}", soft_wrap=True)
    if outcome.reason:
        console.print(f"{outcome.status}: {outcome.reason}")


def _print_grid(console: Console, grid: Grid) -> None:
    """A line for each system, or for each row of the study, whichever is narrower."""
    metric = next((line.metric for line in grid.lines if line.metric == SHOWN_METRIC), "")
    lines = [line for line in grid.lines if line.metric == metric]
    title = f"{grid.dataset}, test {metric}: ours (the paper's), 95% interval of ours"
    texts = [[_cell(cell) for cell in line.cells] for line in lines]
    rows, columns = [line.row for line in lines], list(grid.columns)
    if len(columns) > len(rows):
        texts = [list(column) for column in zip(*texts, strict=True)]
        rows, columns = columns, rows
    by_column = zip(columns, zip(*texts, strict=True), strict=True)
    _print_blocks(console, title, rows, {column: list(cells) for column, cells in by_column})


def _print_blocks(
    console: Console, title: str, names: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> None:
    """Columns of texts beside their rows' names, in as many tables as the terminal's width needs.

    A number that is cut off would be another one, so nothing is: texts are folded at worst.
    """
    from rich.table import Table

    def width_of(texts: Sequence[str]) -> int:
        """With a rule and two blanks."""
        return 3 + max((len(line) for text in texts for line in text.splitlines()), default=0)

    blocks: list[list[str]] = []
    left = 0
    for column, texts in columns.items():
        needed = width_of([column, *texts])
        if needed > left:
            blocks.append([])
            left = console.width - 1 - width_of(names)
        left -= needed
        blocks[-1].append(column)
    for number, block in enumerate(blocks):
        table = Table(title="" if number else title, title_justify="left")
        table.add_column("", overflow="fold")
        for column in block:
            table.add_column(column, justify="right", overflow="fold")
        for row, name in enumerate(names):
            table.add_row(name, *(columns[column][row] for column in block))
        console.print(table)


def _cell(cell: Cell | None) -> str:
    from alkd_ray.reproduction.layout import mark

    if cell is None:
        return "-"
    paper = "" if cell.paper is None else f" ({cell.paper:.4f}{mark(cell)})"
    if cell.ours is None:
        return f"-{paper}"
    low, high = (f"{number:.4f}".removeprefix("0") for number in (cell.ours.low, cell.ours.high))
    return f"{cell.ours.mean:.4f}{paper}\n{low}-{high}"


def _efficiency(
    folder: Path, overrides: list[str], dataset: str | None, as_json: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    from alkd_ray.reproduction import efficiency, efficiency_page
    from alkd_ray.runtime import reproduce as making

    found = making.measure_efficiency(folder, overrides, dataset)
    if not as_json:
        from rich.console import Console

        console = Console(highlight=False, markup=False)
        for name, one in found.items():
            title = f"{name}: what annotating so many sessions takes; Mtokens: millions of tokens"
            _print_blocks(console, title, *efficiency.quantities(one))
            which = {row.sessions: row.what for row in one.rows}
            console.print("; ".join(f"{count:,}: {what}" for count, what in which.items()))
            for note in one.notes:
                console.print(note)
        folder = making.efficiency_folder()
        console.print(f"report   {folder / efficiency_page.PAGE}", soft_wrap=True)
        for file in ("efficiency.csv", "notes.txt"):
            console.print(f"written  {folder / file}", soft_wrap=True)
    return {dataset: asdict(one) for dataset, one in found.items()}
