"""Runs a sweep: what is shared first, then the trials, then the finalists on the test sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from alkd_ray import __version__, artifacts
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.pipeline import Engines
from alkd_ray.plans import SharedPlan
from alkd_ray.runtime import driver
from alkd_ray.runtime.sweep_tracking import Tracking, followed
from alkd_ray.runtime.threads import one_thread
from alkd_ray.stages import Listener
from alkd_ray.storage import Storage
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps import shared as sharing
from alkd_ray.sweeps import trials as one_trial
from alkd_ray.sweeps.config import Sweep, points
from alkd_ray.sweeps.journal import Journal
from alkd_ray.sweeps.queue import TrialQueue, still_true
from alkd_ray.sweeps.records import Setting, Trial, TrialRecord
from alkd_ray.sweeps.rungs import Rungs
from alkd_ray.sweeps.search import purchases, search_of
from alkd_ray.sweeps.shared import Shared
from alkd_ray.sweeps.standings import Standing, finalists, standings
from alkd_ray.sweeps.trials import Tested
from alkd_ray.types import RunStatus


class SweepListener(Listener, Protocol):
    """Told how a sweep goes on."""

    def trials(self, queue: TrialQueue, found: Sequence[Standing]) -> None:
        """Some trials are over, or given out."""
        ...

    def shared(self, shared: Shared) -> None:
        """What the trials share is there."""
        ...


@dataclass(slots=True)
class SweepOutcome:
    """How a sweep ended.

    Attributes:
        sweep: the sweep.
        folder: where journal and report lie.
        status: ``partial`` = some trials failed; ``stopped``, ``breached`` = by the cap.
        reason: why, when it is not complete.
        shared: what was prepared and bought.
        standings: the settings, best first.
        records: trial -> what became of it.
        tested: trial of a finalist -> role -> key of its ranks of the test sessions.
        baselines: finalist -> plain count -> key of its ranks of the same sessions.
        tracking: where MLflow shows it.
    """

    sweep: Sweep
    folder: Path
    status: RunStatus
    reason: str
    shared: Shared
    standings: list[Standing] = field(default_factory=list)
    records: dict[str, TrialRecord] = field(default_factory=dict)
    tested: dict[str, dict[str, str]] = field(default_factory=dict)
    baselines: dict[str, dict[str, str]] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.folder / "report"


def execute(
    sweep: Sweep,
    listener: SweepListener,
    approve: Callable[[SharedPlan], None],
    resume: bool = False,
) -> SweepOutcome:
    """Runs a sweep, or goes on with one; what was finished before is not done again.

    Args:
        sweep: the sweep.
        listener: told how it goes on.
        approve: shown what will be paid, for all trials, before anything is sent.
        resume: there must be something to go on with.

    Raises:
        InputError: a setting is no valid config, or there is nothing to resume.
        AlkdError: another process runs it.
    """
    one_thread()
    storage = Storage.of(sweep.of({}).storage)
    if storage is not None:
        sweep = sweep.kept_at(storage.url)
    root = artifacts.run_root()
    folder = journals.folder_of(sweep)
    if resume and not (folder / journals.FILE).is_file():
        raise InputError(
            f"{folder}: there is no such sweep to resume; leave out --resume, or give the same "
            "file and key=value that it was begun with"
        )
    try:
        with Journal(folder) as journal, followed(sweep, root, folder) as follower:
            outcome = _run(sweep, root, folder, journal, listener, approve, follower.notify)
            outcome.tracking = follower.finish()
            return outcome
    finally:
        driver.end_ray()


def plan(sweep: Sweep, listener: Listener) -> tuple[int, SharedPlan | None]:
    """How many settings there are, and what they cost together; None for recordings.

    Sends nothing. Makes what comes before the requests, shared parts once.
    """
    one_thread()
    root = artifacts.run_root()
    settings = _prepared_settings(sweep, _Configs(sweep))
    try:
        prepared = sharing.before_the_first_request(
            settings, root, listener, _engines_of(settings, root), _train_of(sweep)
        )
        return len(settings), prepared.plan()
    finally:
        driver.end_ray()


def _run(
    sweep: Sweep,
    root: Path,
    folder: Path,
    journal: Journal,
    listener: SweepListener,
    approve: Callable[[SharedPlan], None],
    notify: Callable[[], None],
) -> SweepOutcome:
    config = sweep.config
    begun = journals.trials(journals.read(folder))
    # Those that failed are tried again.
    earlier = {name: record for name, record in begun.items() if record.status != "failed"}
    configs = _Configs(sweep)
    settings = _prepared_settings(sweep, configs)
    _check_scheduler(sweep, settings.values())
    journal.add("begun", sweep=sweep.sweep_id, code_version=__version__, config=config.model_dump())
    notify()
    shared = sharing.prepare(
        settings,
        sweep.sweep_id,
        root,
        listener,
        _engines_of(settings, root),
        _train_of(sweep),
        approve,
    )
    journal.add(
        "shared",
        **{name: getattr(shared, name) for name in shared.__slots__ if name != "by_purchase"},
    )
    listener.shared(shared)
    outcome = SweepOutcome(sweep, folder, shared.status, shared.reason, shared)
    if shared.ends_the_sweep:
        return _ended(outcome, root, journal)

    def trials_of(setting: Setting) -> list[Trial]:
        return shared.trials(setting, configs(setting))

    earlier = still_true(earlier, trials_of)
    known = standings(earlier.values(), config.metric, sweep.seeds)
    values = {record.setting.id: (record.setting, None) for record in begun.values()}
    values |= {s.setting.id: (s.setting, s.mean if s.is_whole else None) for s in known}
    queue = TrialQueue(
        search_of(config, values.values()),
        trials_of,
        lambda setting: configs(setting).student.backbone,
        config.metric,
        len(sweep.seeds),
        earlier,
    )

    def tell(records: list[TrialRecord]) -> None:
        new = [record for record in records if not queue.knows(record)]
        if new:
            journal.add_trials(new)
            notify()
        for record in records:
            queue.tell(record)
        listener.trials(queue, standings(queue.records.values(), config.metric, sweep.seeds))

    rungs = Rungs(config.asha, earlier.values())
    listener.trials(queue, known)
    if not queue.is_over:
        if config.engine == "ray":
            from alkd_ray.runtime import packs

            packs.run(sweep, root, queue, rungs, tell)
        else:
            _run_here(sweep, root, queue, rungs, tell)
    outcome.records = queue.records
    outcome.standings = standings(queue.records.values(), config.metric, sweep.seeds)
    _test_finalists(outcome, configs, root, journal, listener)
    failed = sum(record.status == "failed" for record in queue.records.values())
    if failed and outcome.status in ("complete", "partial"):
        outcome.status = "partial"
        trials = f"{failed} of {len(queue.records)} trials failed"
        outcome.reason = f"{outcome.reason}; {trials}" if outcome.reason else trials
    return _ended(outcome, root, journal)


def _ended(outcome: SweepOutcome, root: Path, journal: Journal) -> SweepOutcome:
    """Writes the report, then that the sweep has ended."""
    from alkd_ray.sweeps import report

    data = report.collect(
        outcome.sweep,
        outcome.standings,
        outcome.records,
        outcome.tested,
        outcome.baselines,
        outcome.shared,
        root,
        outcome.status,
        outcome.reason,
    )
    report.write(data, outcome.report)
    journal.add("ended", status=outcome.status, reason=outcome.reason)
    return outcome


class _Configs:
    """Setting -> its config; a point is validated once."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._known: dict[str, RunConfig] = {}

    def __call__(self, setting: Setting) -> RunConfig:
        if setting.id not in self._known:
            self._known[setting.id] = self._sweep.of(setting.point)
        return self._known[setting.id]


def configs_of(sweep: Sweep) -> dict[str, RunConfig]:
    """Setting -> its config, for those that decide all that is bought; sends nothing.

    Raises:
        InputError: a setting is no valid config, or what is bought is not known beforehand.
    """
    return _prepared_settings(sweep, _Configs(sweep))


def _prepared_settings(sweep: Sweep, configs: _Configs) -> dict[str, RunConfig]:
    """Settings that decide all that is bought; where all are known, all settings."""
    found = points(sweep.config)
    if sweep.config.search == "optuna":
        found = purchases(sweep.config, sharing.deciding_axes(sweep))
    return {setting.id: configs(setting) for setting in map(Setting, found)}


def _engines_of(settings: Mapping[str, RunConfig], root: Path) -> Engines:
    return driver.engines_of(next(iter(settings.values())), root)


def _check_scheduler(sweep: Sweep, configs: Iterable[RunConfig]) -> None:
    if sweep.config.scheduler == "none":
        return
    for config in configs:
        if config.distillation.training.metric != sweep.config.metric:
            raise InputError(
                f"{sweep.where}: scheduler asha looks at the training's own metric, "
                f"{config.distillation.training.metric}, but the sweep ranks by "
                f"{sweep.config.metric}; set distillation.training.metric={sweep.config.metric}"
            )


def _train_of(sweep: Sweep) -> sharing.Train:
    if sweep.config.engine == "local":
        return sharing.train_in_process
    from alkd_ray.runtime import pretraining

    return pretraining.train


def _run_here(
    sweep: Sweep,
    root: Path,
    queue: TrialQueue,
    rungs: Rungs,
    tell: Callable[[list[TrialRecord]], None],
) -> None:
    """One trial after another, in this process."""
    while pack := queue.take(1):
        for trial in pack:
            tell([_one_here(sweep, root, trial, rungs)])


def _one_here(sweep: Sweep, root: Path, trial: Trial, rungs: Rungs) -> TrialRecord:
    config = sweep.of(trial.point)
    watch = one_trial.watch_of(sweep.config, config, trial, rungs.goes_on)
    return one_trial.run(config, trial, root, sweep.config.metric, watch, node="local")


def _test_finalists(
    outcome: SweepOutcome,
    configs: _Configs,
    root: Path,
    journal: Journal,
    listener: SweepListener,
) -> None:
    """Ranks the test sessions under the best settings' students; the search is over by then.

    The plain counts of each different dataset are put to the same sessions.
    """
    chosen = finalists(outcome.standings, outcome.sweep.config.finalists)
    of_trials: dict[str, list[Tested]] = {}
    beside: dict[str, list[Tested]] = {}
    models: dict[Tested, RunConfig] = {}  # trials share models: each is looked at once
    for standing in chosen:
        config = configs(standing.setting)
        trials = outcome.shared.trials(standing.setting, config)
        for trial in trials:
            wanted = one_trial.tested(config, outcome.records[trial.id], trial)
            of_trials[trial.id] = wanted
            models.update(dict.fromkeys(wanted, config))
        beside[standing.setting.id] = one_trial.plain(config, trials[0])
        models.update(dict.fromkeys(beside[standing.setting.id], config))
    if not models:
        return
    listener.stage_started("evaluation of the finalists", None)
    keys = _test_models(outcome.sweep, models, root, listener)
    outcome.tested = {
        trial: {one.role: keys[one] for one in wanted} for trial, wanted in of_trials.items()
    }
    outcome.baselines = {
        setting: {one.role: keys[one] for one in counts} for setting, counts in beside.items()
    }
    journal.add("tested", keys=outcome.tested, baselines=outcome.baselines)


def _test_models(
    sweep: Sweep, models: Mapping[Tested, RunConfig], root: Path, listener: SweepListener
) -> dict[Tested, str]:
    """Model -> key of its ranks of the test sessions."""

    def progress(done: int) -> None:
        listener.progress(done, len(models), "models tested")

    given = [(config, one, root) for one, config in models.items()]
    if sweep.config.engine == "ray" and driver.has_ray():  # else there was no trial to run
        from alkd_ray.runtime.tasks import by_tasks

        storage = Storage.of(sweep.of({}).storage)
        return dict(
            zip(models, by_tasks(one_trial.test, given, root, storage, progress), strict=True)
        )
    keys: dict[Tested, str] = {}
    for config, one, _ in given:
        keys[one] = one_trial.test(config, one, root)
        progress(len(keys))
    return keys
