"""Tables beside the cells: LLM rankings read, selection as seen afterwards, all trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alkd_ray.reproduction import effects, effects_table, efficiency
from alkd_ray.reproduction.cells import Entry
from alkd_ray.reproduction.entries import Finished, link_to
from alkd_ray.sweeps.config import points
from alkd_ray.sweeps.records import Setting

PRICED_FORM = "numbers"  # the form of answers that this project asks for


@dataclass(frozen=True, slots=True)
class Linked:
    """Text of a cell that leads somewhere, relative to the report."""

    text: str
    link: str


@dataclass(frozen=True, slots=True)
class Table:
    """A further table of the page.

    Attributes:
        title: its heading.
        lines: rows of text, numbers or :class:`Linked`, header first.
        note: what its reader should know.
        name: of its CSV file and in the JSON; "" = it is in neither. Tables of several datasets
            may share one.
        numbers: what stands there, header first: plain numbers, where ``lines`` has texts.
    """

    title: str
    lines: Sequence[Sequence[Any]]
    note: str = ""
    name: str = ""
    numbers: Sequence[Sequence[Any]] = ()


def asked(entries: Sequence[Entry], prices: Mapping[str, float]) -> Table:
    """LLM rankings that each system needs, and what they would cost.

    Args:
        entries: the systems.
        prices: dataset -> dollars for a ranking; {} = unknown.
    """
    lines: list[list[Any]] = [["dataset", "row", "system", "LLM rankings read, by seed", "USD"]]
    numbers: list[list[Any]] = [["dataset", "row", "system", "setting", "LLM rankings", "USD"]]
    for entry in entries:
        if entry.role == "distilled":
            rankings = entry.rankings or 0.0
            price = prices.get(entry.dataset)
            dollars = None if price is None else rankings * price
            where = [entry.dataset, entry.row]
            shown = None if dollars is None else round(dollars, 2)
            lines.append([*where, Linked(entry.column, entry.link), round(rankings), shown])
            numbers.append([*where, entry.column, entry.setting, rankings, dollars])
    note = (
        "Recorded rankings were replayed. USD: what so many would cost with "
        f"{efficiency.MODEL} answering in {PRICED_FORM}, tokens estimated (alkd reproduce "
        "efficiency); unusable answers, which cost as well, are not counted."
    )
    title = "What each reads of the LLM"
    return Table(title, lines, note if prices else "", "rankings", numbers)


def seen_afterwards(finished: Finished, root: Path) -> Table:
    """What the sessions that each setting selected turned out to be."""
    there = {one.setting.id: one for one in finished.standings}
    settings = [Setting(point) for point in points(finished.sweep.config)]
    settings = [one for one in settings if one.id in there]
    configs = {one.label: finished.sweep.of(one.point) for one in settings}
    links = {one.label: link_to(finished, there[one.id]) for one in settings}
    ids = {one.label: one.id for one in settings}
    rows = effects.collect(configs, root)

    def linked(name: str) -> str | Linked:
        """The last rows are no setting's."""
        return Linked(name, links[name]) if name in links else name

    header, *lines = effects_table.table(rows)
    first, *numbers = effects_table.numbers(rows)
    return Table(
        f"Selection as seen afterwards, {finished.dataset}",
        [header, *([linked(name), *rest] for name, *rest in lines)],
        "Shares of the selected sessions, means over seeds with 95% t-intervals. Effective: the "
        "LLM's first 10 hold the target, the student's before distillation do not; similar: both "
        "do; incorrect: the LLM's do not. Gains by the paper's game: with its mu of 10 those of a "
        "selection that reaches the first ranks are a few sessions' own (effects.csv has the "
        "shares that the first hundredth of the ranks and the largest pick carry, and in how many "
        "seeds the gain is above 0). The guarantees presuppose the game's shares of effective, "
        "similar and incorrect answers; where more are incorrect, less is gained.",
        "effects",
        [
            ["dataset", "id", *first],
            *([finished.dataset, ids[line[0]], *line] for line in numbers),
        ],
    )


def trials(entries: Sequence[Entry]) -> list[Table]:
    """The trials that each system's numbers come from; none where no sweep made them."""
    lines: list[list[Any]] = [["dataset", "row", "system", "setting", "trials"]]
    for entry in entries:
        if entry.setting:
            setting = Linked(entry.setting, entry.link) if entry.link else entry.setting
            lines.append(
                [
                    entry.dataset, entry.row, entry.column, setting,
                    " ".join(entry.runs) or entry.missing or "none was tested",
                ]
            )  # fmt: skip
    note = (
        "A trial's name is its setting and seed, in the sweep's journal and in MLflow as well; "
        "trials.csv beside the sweep's report has the keys of its models, which are the names of "
        "their folders below the run root. Each setting leads to its row in that report."
    )
    return [Table("Trials behind the numbers", lines, note)] if len(lines) > 1 else []


def merged(tables: Sequence[Table]) -> dict[str, list[Sequence[Any]]]:
    """Name -> the numbers of all tables of that name, one below another, header first."""
    found: dict[str, list[Sequence[Any]]] = {}
    for table in tables:
        if table.name:
            header, *lines = table.numbers
            found.setdefault(table.name, [header]).extend(lines)
    return found
