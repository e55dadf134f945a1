"""Makes a table or figure of the paper: runs its sweeps, then sets ours beside the paper's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from alkd_ray.reproduction import efficiency, efficiency_page, further, report
from alkd_ray.reproduction.efficiency import Efficiency
from alkd_ray.reproduction.entries import Finished, entries_of
from alkd_ray.reproduction.further import PRICED_FORM
from alkd_ray.reproduction.report import Reproduced, Written
from alkd_ray.reproduction.studies import GAMES, HETREC, Study
from alkd_ray.runtime import sweep as running
from alkd_ray.runtime.sweep import SweepListener, SweepOutcome
from alkd_ray.stages import Context, Silent
from alkd_ray.sweeps.config import OWN, Axis, Sweep, load
from alkd_ray.sweeps.records import value_text
from alkd_ray.sweeps.tables import as_csv
from alkd_ray.types import RunStatus

RUNS = {HETREC: "hetrec_fpmc", GAMES: "games_fpmc"}
"""Dataset -> file of its run, whose annotation is priced."""

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
        InputError: a sweep's file is not there, or bad; or it is no sweep that could be laid out
            as the study; or a sweep ended without any setting.
    """
    sweeps = {
        dataset: load(_file(configs, name), list(overrides))
        for dataset, name in study.sweeps.items()
    }
    for sweep in sweeps.values():
        _can_be_laid_out(study, sweep)
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
    tables = [further.asked(entries, prices)]
    if study.effects:
        tables += [further.seen_afterwards(one, root) for one in finished]
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
    """What annotating would cost, by dataset; kept below the run root as page, CSV and notes.

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
    notes = [f"{name}: {note}" for name, one in found.items() for note in one.notes]
    folder = efficiency_folder()
    folder.mkdir(parents=True, exist_ok=True)
    numbers = efficiency.numbers(list(found.values()))
    artifacts.write_text(folder / efficiency_page.PAGE, efficiency_page.render(found))
    artifacts.write_text(folder / "efficiency.csv", as_csv(numbers))
    artifacts.write_text(folder / "notes.txt", "\n".join(notes) + "\n")
    return found


def efficiency_folder() -> Path:
    """Where ``efficiency.html``, ``efficiency.csv`` and ``notes.txt`` are kept."""
    return artifacts.run_root() / "reproduction" / "efficiency"


def _can_be_laid_out(study: Study, sweep: Sweep) -> None:
    """Refuses, before anything is run or paid, a sweep whose result has no place in the study.

    Raises:
        InputError: an axis of the study is not varied, or is drawn from a range; another axis
            varies as well; or not all settings are tested.
    """
    over = sweep.config.over
    laid_out = [axis for axis in (study.rows, study.columns) if axis]
    for name in laid_out:
        if name not in over:
            raise InputError(
                f"{sweep.where}: {study.name} is laid out by {' and '.join(laid_out)}, but "
                f"sweep.over has no {name!r}; it has {', '.join(over)}"
            )
        if over[name].listed is None:
            raise InputError(
                f"{sweep.where}: sweep.over: {name}: {study.name} has a place for each of its "
                "values, so they have to be listed: give a grid, cases or a choice"
            )
    further_axes = [name for name in over if name not in laid_out and _varies(over[name])]
    if further_axes:
        raise InputError(
            f"{sweep.where}: sweep.over: {', '.join(further_axes)}: {study.name} is laid out by "
            f"{' and '.join(laid_out)} alone, so several settings would share a place; alkd sweep "
            "runs any sweep"
        )
    if sweep.config.finalists != "all":
        raise InputError(
            f"{sweep.where}: sweep.finalists is {sweep.config.finalists}, but {study.name} shows "
            "the test metrics of every setting; leave it at all"
        )


def _varies(axis: Axis) -> bool:
    return axis.listed is None or len(set(map(value_text, axis.listed))) > 1


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
