"""Packs of trials by Ray Tune: an actor is given many trials and runs them one after another.

Tune's unit is the pack. Starting an actor costs seconds and handing it something a fifth of one,
where a trial may take half a second; so an actor stays, keeps its data, and is given as many
trials at once as pay for the handing over. Each trial is reported, kept and journalled for itself.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from alkd_ray.runtime.cluster import (
    check_root,
    ensure_ray,
    quiet_tune,
    room_for_actors,
    this_node,
)
from alkd_ray.runtime.threads import one_thread
from alkd_ray.storage import Storage
from alkd_ray.sweeps import trials
from alkd_ray.sweeps.config import Sweep
from alkd_ray.sweeps.queue import PackSizes, TrialQueue
from alkd_ray.sweeps.records import Trial, TrialRecord
from alkd_ray.sweeps.rungs import Rungs

# An actor reports when so much time has passed, not after every trial: a report costs Tune time.
REPORT_SECONDS = 1.0
# A trial in whose midst its process ended so often is to blame for it.
MOST_BEGINS = 3
WHY_NOT_BEGUN = {
    "dropped": "another seed of its setting was dropped",
    "failed": f"its process ended {MOST_BEGINS} times without a result: out of memory?",
}
PACK_RETRIES = 10
MOST_LOSSES = 3

# Takes note of what became of trials, durably.
Tell = Callable[[list[TrialRecord]], None]


class _Board:
    """One for the sweep: how often trials were begun in vain, and what the scheduler knows."""

    def __init__(self, rungs: Rungs) -> None:
        self._begins: dict[str, int] = {}
        self._rungs = rungs

    def begin(self, trial: str, setting: str) -> str:
        """Whether the trial may begin: "", ``dropped``, or ``failed`` for one that kills."""
        if self._rungs.is_dropped(setting):
            return "dropped"
        if self._begins.get(trial, 0) >= MOST_BEGINS:
            return "failed"
        self._begins[trial] = self._begins.get(trial, 0) + 1
        return ""

    def end(self, trial: str) -> None:
        """The trial came to an end: if it is begun again, its pack's actor is to blame."""
        self._begins.pop(trial, None)

    def goes_on(self, trial: str, setting: str, seed: int, rung: int, value: float) -> bool:
        """See :meth:`alkd_ray.sweeps.rungs.Rungs.goes_on`."""
        return self._rungs.goes_on(trial, setting, seed, rung, value)


@dataclass(frozen=True, slots=True)
class _Given:
    """What every actor of a sweep is given once.

    Attributes:
        sweep: the sweep.
        root: the run root, on whatever disk it is there.
        board: a handle of :class:`_Board`.
    """

    sweep: Sweep
    root: Path
    board: Any


class _PackActor(tune.Trainable):
    """Runs the trials of one pack after another."""

    def setup(self, config: dict[str, Any], given: Any = None) -> None:
        """Takes the first pack."""
        one_thread()
        self._given: _Given = given
        self._node = ray.util.get_node_ip_address()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes another pack; what was loaded stays."""
        self._left = [Trial(**trial) for trial in new_config["pack"]]
        return True

    def step(self) -> dict[str, Any]:
        """Runs trials until it is time to report."""
        started = time.perf_counter()
        records = []
        while self._left and time.perf_counter() - started < REPORT_SECONDS:
            records.append(self._run(self._left.pop(0)).as_json())
        return {"records": records, "done": not self._left}

    def _run(self, trial: Trial) -> TrialRecord:
        given = self._given
        refused: Any = ray.get(given.board.begin.remote(trial.id, trial.setting.id))
        if refused:
            return TrialRecord(
                trial.id,
                trial.point,
                trial.seed,
                trial.inputs,
                refused,
                node=self._node,
                reason=WHY_NOT_BEGUN[refused],
            )
        sweep, config = given.sweep.config, given.sweep.of(trial.point)
        watch = trials.watch_of(
            sweep, config, trial, lambda *asked: ray.get(given.board.goes_on.remote(*asked))
        )
        record = trials.run(config, trial, given.root, sweep.metric, watch, self._node)
        given.board.end.remote(trial.id)
        return record


class _Packs(Searcher):
    """Tune's view of the queue: asked for packs, told what became of them."""

    def __init__(self, queue: TrialQueue, sizes: PackSizes, actors: int, tell: Tell) -> None:
        super().__init__()
        self._queue = queue
        self._sizes = sizes
        self._actors = actors
        self._tell = tell
        self._packs: dict[str, list[Trial]] = {}
        self._began: dict[str, float] = {}
        self._seconds: dict[str, list[float]] = {}
        self._lost: Counter[str] = Counter()  # trial -> packs that ended with nothing done

    # Tune copies and pickles what it was given, to restore it. Here the journal is what a sweep
    # goes on from, and there is one queue.

    def __deepcopy__(self, memo: dict[int, Any]) -> _Packs:
        return self

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        return Searcher, ()

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def suggest(self, trial_id: str) -> Any:
        """The next pack; None = none at present."""
        queue = self._queue
        size = self._sizes.next(queue.left, self._actors)
        pack = queue.take(size)
        if not pack:
            return Searcher.FINISHED if queue.is_over else None
        self._packs[trial_id] = pack
        self._began[trial_id] = time.perf_counter()
        self._seconds[trial_id] = []
        return {"pack": [asdict(trial) for trial in pack]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Some trials of a pack are over; of its last ones only :meth:`on_trial_complete` hears."""
        records = [TrialRecord.from_json(found) for found in result.get("records", ())]
        self._seconds[trial_id] += [record.seconds for record in records]
        self._tell(records)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A pack is over; what it left undone waits again, or has failed with it."""
        if result is not None:
            self.on_trial_result(trial_id, result)
        pack = self._packs.pop(trial_id)
        took = time.perf_counter() - self._began.pop(trial_id)
        seconds = self._seconds.pop(trial_id)
        left = [trial for trial in pack if trial.id in self._queue.running]
        if not left:
            self._sizes.add(seconds, took)
            return
        # Tune ends a pack at once, without a retry, when an actor dies that was just being handed
        # it; only what is lost again and again, with whatever it is packed, cannot be run.
        if len(left) == len(pack):
            self._lost.update(trial.id for trial in left)
        hopeless = [trial for trial in left if self._lost[trial.id] >= MOST_LOSSES]
        reason = f"its actor could not work, {MOST_LOSSES} times; see Ray's logs"
        self._tell(
            [
                TrialRecord(t.id, t.point, t.seed, t.inputs, "failed", reason=reason)
                for t in hopeless
            ]
        )
        self._queue.give_back([trial for trial in left if trial not in hopeless])


def _name(pack: Any) -> str:
    return f"pack-{pack.trial_id}"


def run(
    sweep: Sweep,
    root: Path,
    queue: TrialQueue,
    rungs: Rungs,
    tell: Tell,
    reuse_actors: bool = True,
) -> None:
    """Runs all that is left in ``queue``; starts, or joins, Ray.

    A killed actor's pack is taken up by another: what it had finished is found, the rest is run.

    Args:
        sweep: the sweep.
        root: the run root.
        queue: what is left.
        rungs: what the scheduler, if there is one, knows so far.
        tell: takes note of what became of trials.
        reuse_actors: False = a new actor for each pack, to see what that costs.

    Raises:
        InputError: no node has room for an actor, or there are nodes that do not see ``root``.
    """
    ensure_ray()
    quiet_tune()
    config = sweep.config
    check_root(root, Storage.of(sweep.of({}).storage))
    actors = room_for_actors(config.trial_cpus, config.trial_gpus)
    board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=this_node()).remote(rungs)
    trainable = tune.with_resources(
        tune.with_parameters(_PackActor, given=_Given(sweep, root, board)),
        {"cpu": config.trial_cpus, "gpu": config.trial_gpus},
    )
    scratch = root / "sweeps" / sweep.sweep_id / "tune"  # errors of actors, for looking at
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Packs(queue, PackSizes(config.pack), actors, tell),
            num_samples=-1,
            reuse_actors=reuse_actors,
            max_concurrent_trials=actors,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=str(os.getpid()),
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=PACK_RETRIES),
            # A trial's outputs, kept by content, are its checkpoint.
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
            verbose=0,
        ),
    )
    if not tuner.fit().errors:
        shutil.rmtree(scratch)
