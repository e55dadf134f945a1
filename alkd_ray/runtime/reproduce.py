"""Makes a table or figure of the paper: runs its sweeps, then sets ours beside the paper's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alkd_ray import artifacts, buying, datasets, stages
from alkd_ray import sessions as windows_of
from alkd_ray.config import canonical_hash
from alkd_ray.config import load as load_run
from alkd_ray.errors import InputError
from alkd_ray.evaluation.wording import recall_cap
from alkd_ray.plans import SharedPlan
from alkd_ray.reproduction import effects, efficiency, report
from alkd_ray.reproduction.cells import Entry
from alkd_ray.reproduction.efficiency import Efficiency
from alkd_ray.reproduction.entries import Finished, entries_of
from alkd_ray.reproduction.report import Reproduced, Table, Written
from alkd_ray.reproduction.studies import GAMES, HETREC, Study
from alkd_ray.runtime import sweep as running
from alkd_ray.runtime.sweep import SweepListener, SweepOutcome
from alkd_ray.stages import Context, Silent
from alkd_ray.sweeps.config import OWN, Sweep, load, points
from alkd_ray.sweeps.records import Setting
from alkd_ray.sweeps.tables import as_csv
from alkd_ray.types import RunStatus

RUNS = {HETREC: "hetrec_fpmc", GAMES: "games_fpmc"}
"""Dataset -> file of its run, whose annotation is priced."""

PRICED_FORM = "numbers"  # the form of answers that this project asks for
WORSE: tuple[RunStatus, ...] = ("complete", "partial", "stopped", "breached")

Approve = Callable[[SharedPlan], None]
# Shows one sweep, and approves of what it will cost.
Shown = Callable[[Sweep], AbstractContextManager[tuple[SweepListener, Approve]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a table or figure.

    Attributes:
        written: the report.
        status: the worst of its sweeps.
        reason: why, when it is not complete.
    """

    written: Written
    status: RunStatus
    reason: str


def make(study: Study, configs: Path, overrides: Sequence[str], shown: Shown) -> Outcome:
    """Runs the sweeps of ``study``, or finds what they left, and writes its report.

    Args:
        study: a table or figure.
        configs: the folder with the sweeps' files.
        overrides: ``key=value``, for every sweep.
        shown: shows a sweep.

    Raises:
        InputError: a sweep's file is not there, or bad; or a sweep ended without any setting.
    """
    sweeps = {
        dataset: load(_file(configs, name), list(overrides))
        for dataset, name in study.sweeps.items()
    }
    ids = [sweep.sweep_id for sweep in sweeps.values()]
    of_files = [load(_file(configs, name), []).sweep_id for name in study.sweeps.values()]
    changes = () if ids == of_files else tuple(overrides)
    root = artifacts.run_root()
    outcomes = []
    finished = []
    for dataset, sweep in sweeps.items():
        started = time.perf_counter()
        with shown(sweep) as (listener, approve):
            outcome = running.execute(sweep, listener, approve)
        outcomes.append(outcome)
        finished.append(_finished(dataset, outcome, time.perf_counter() - started))
    worst = max(outcomes, key=lambda outcome: WORSE.index(outcome.status))
    reasons = [
        f"{dataset}: {outcome.status}, {outcome.reason}"
        for dataset, outcome in zip(sweeps, outcomes, strict=True)
        if outcome.status != "complete"
    ]
    entries = [entry for one in finished for entry in entries_of(study, one, root)]
    prices = _prices(finished, root)
    tables = [_asked(entries, prices)]
    if study.effects:
        tables += [_seen_afterwards(one, root) for one in finished]
    data = Reproduced(
        study,
        entries,
        finished,
        finished[0].sweep.of({}).evaluation.resamples,
        [*reasons, *(note for one in finished for note in _notes(one, root))],
        prices,
        tables,
        changes,
    )
    suffix = f"-{canonical_hash(ids, 8)}" if changes else ""
    written = report.write(data, root / "reproduction" / f"{study.folder}{suffix}")
    return Outcome(written, worst.status, "; ".join(reasons))


def measure_efficiency(
    configs: Path, overrides: Sequence[str], dataset: str | None = None
) -> dict[str, Efficiency]:
    """What annotating would cost, by dataset; kept below the run root as CSV, the notes as text.

    Args:
        configs: the folder with the runs' files.
        overrides: ``key=value``; those of sweeps (``sweep.key=value``) are not for it.
        dataset: one alone; None = all.

    Raises:
        InputError: a run's file is not there, or bad; or there is no such dataset.
    """
    if dataset not in (None, *RUNS):
        raise InputError(f"there is no dataset {dataset!r}; known: {', '.join(RUNS)}")
    root = artifacts.run_root()
    of_runs = [text for text in overrides if not text.startswith(OWN)]
    found = {}
    for name, file in RUNS.items():
        if dataset in (None, name):
            run = load_run(_file(configs, file), of_runs)
            found[name] = efficiency.measure(run, root, Silent())
    tables = [efficiency.table(one) for one in found.values()]
    lines = [tables[0][0], *(line for table in tables for line in table[1:])]
    notes = [f"{name}: {note}" for name, one in found.items() for note in one.notes]
    folder = root / "reproduction" / "efficiency"
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_text(folder / "efficiency.csv", as_csv(lines))
    artifacts.write_text(folder / "notes.txt", "\n".join(notes) + "\n")
    return found


def _finished(dataset: str, outcome: SweepOutcome, seconds: float) -> Finished:
    if not outcome.standings:
        raise InputError(f"{dataset}: the sweep ended before any trial: {outcome.reason}")
    return Finished(
        dataset,
        outcome.sweep,
        outcome.standings,
        outcome.records,
        outcome.shared,
        outcome.tested,
        seconds,
    )


def _file(configs: Path, name: str) -> Path:
    file = configs / f"{name}.yaml"
    if not file.is_file():
        raise InputError(
            f"{file}: there is no such file; the sweeps of the tables and figures lie in "
            "tune_configs/ of the repository: run there, or say where with --configs"
        )
    return file


def _notes(finished: Finished, root: Path) -> list[str]:
    """What a reader has to know of the data."""
    config = finished.sweep.of({})
    data = stages.load_dataset(stages.import_sessions(Context(config, root, Silent())))
    found = [f"{finished.dataset}: {finding}" for finding in recall_cap(datasets.describe(data))]
    recorded = buying.recorded_ids(config)
    if recorded is not None:
        train = windows_of.of_split(data.sessions, "train").ids
        found.append(
            f"{finished.dataset}: every strategy selects among the "
            f"{np.isin(train, recorded).sum():,} of {len(train):,} training sessions whose "
            "rankings were recorded, and difficulty ranks and guarantees are within those. Which "
            "these are was decided by the selections of the paper's authors: random selection is "
            "random among them alone."
        )
    return found


def _prices(finished: Sequence[Finished], root: Path) -> dict[str, float]:
    """Dataset -> dollars for a ranking, where recordings are replayed: see ``efficiency``."""
    found = {}
    for one in finished:
        config = one.sweep.of({})
        if config.llm.teacher == "replay":
            rows = efficiency.measure(config, root, Silent()).rows
            row = next(row for row in rows if row.form == PRICED_FORM)
            found[one.dataset] = row.dollars.expected / row.sessions
    return found


def _asked(entries: Sequence[Entry], prices: Mapping[str, float]) -> Table:
    """LLM rankings that each system needs, and what they would cost."""
    lines: list[list[object]] = [["dataset", "row", "system", "LLM rankings read, by seed", "USD"]]
    for entry in entries:
        if entry.role == "distilled":
            rankings = entry.rankings or 0.0
            price = prices.get(entry.dataset)
            dollars = None if price is None else round(rankings * price, 2)
            lines.append([entry.dataset, entry.row, entry.column, round(rankings), dollars])
    note = (
        "Recorded rankings were replayed. USD: what so many would cost with "
        f"{efficiency.MODEL} answering in {PRICED_FORM}, tokens estimated (alkd reproduce "
        "efficiency); unusable answers, which cost as well, are not counted."
    )
    return Table("What each reads of the LLM", lines, note if prices else "")


def _seen_afterwards(finished: Finished, root: Path) -> Table:
    """What the sessions that each setting selected turned out to be."""
    there = {one.setting.id for one in finished.standings}
    settings = [Setting(point) for point in points(finished.sweep.config)]
    configs = {one.label: finished.sweep.of(one.point) for one in settings if one.id in there}
    return Table(
        f"Selection as seen afterwards, {finished.dataset}",
        effects.table(effects.collect(configs, root)),
        "Shares of the selected sessions, means over seeds with 95% t-intervals. Effective: the "
        "LLM's first 10 hold the target, the student's before distillation do not; similar: both "
        "do; incorrect: the LLM's do not. Gains by the paper's game: with its mu of 10 those of a "
        "selection that reaches the first ranks are a few sessions' own (see the shares carried). "
        "The guarantees presuppose the game's shares of effective, similar and incorrect answers; "
        "where more are incorrect, less is gained.",
    )
