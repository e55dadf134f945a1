"""One trial: distil a student with one setting and seed, and validate it. It can never spend.

What it needs was made, and bought, beforehand; it is found by its key. A trial's output is kept
under the hash of all that decides it, so a trial that was done is found, by whomever and whenever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alkd_ray import artifacts, stages
from alkd_ray.artifacts import StageOutput
from alkd_ray.config import RunConfig, TrainingConfig
from alkd_ray.errors import AlkdError
from alkd_ray.evaluation.metrics import metric_values, summary
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.stages import Context, Silent
from alkd_ray.sweeps.config import AshaConfig, SweepConfig
from alkd_ray.sweeps.records import Trial, TrialRecord, TrialStatus
from alkd_ray.sweeps.rungs import DroppedError, next_rung


class RungWatch:
    """Has a scheduler look at a trial at each rung.

    Attributes:
        rungs: rung -> the training's best metric by then.
    """

    def __init__(
        self,
        config: AshaConfig,
        training: TrainingConfig,
        goes_on: Callable[[int, float], bool],
    ) -> None:
        """``goes_on(rung, value)`` says whether ``training`` goes on."""
        self.rungs: dict[int, float] = {}
        self._config = config
        self._training = training
        self._goes_on = goes_on
        self._next = config.first_step

    def __call__(self, step: int, best: float) -> None:
        """Told how the training goes on; looks at its validations alone.

        In between it is told by the clock, and its best is that of an earlier step: a slow trial
        would be judged at a rung that it has come to without a look at how it does there.

        Raises:
            DroppedError: the scheduler ends the trial.
        """
        training = self._training
        is_validation = step % training.validate_every == 0 or step == training.max_steps
        if step < self._next or not is_validation:
            return
        rung, self._next = self._next, next_rung(self._config, step)
        self.rungs[rung] = best
        if not self._goes_on(rung, best):
            raise DroppedError(f"dropped at step {step}, with {best:.4f} by then")


def watch_of(
    sweep: SweepConfig,
    config: RunConfig,
    trial: Trial,
    goes_on: Callable[[str, str, int, int, float], bool],
) -> RungWatch | None:
    """What looks at a trial; None without a scheduler. ``goes_on`` is :meth:`Rungs.goes_on`."""
    if sweep.scheduler == "none":
        return None
    who = (trial.id, trial.setting.id, trial.seed)
    training = config.distillation.training
    return RungWatch(sweep.asha, training, lambda rung, value: goes_on(*who, rung, value))


def run(
    config: RunConfig,
    trial: Trial,
    root: Path,
    metric: str,
    watch: RungWatch | None = None,
    node: str = "",
) -> TrialRecord:
    """Distils and validates; whatever goes wrong with it is told in the record.

    Args:
        config: of the trial's setting.
        trial: the trial.
        root: the run root.
        metric: on the validation sessions, beside those of the config's cutoffs.
        watch: looks at the training; None = it goes on to its end.
        node: where this is, for the record.
    """
    started = time.perf_counter()

    def over(status: TrialStatus, reason: str) -> TrialRecord:
        return TrialRecord(
            trial.id,
            trial.point,
            trial.seed,
            trial.inputs,
            status,
            rungs=watch.rungs if watch else {},
            seconds=round(time.perf_counter() - started, 4),
            node=node,
            reason=reason,
        )

    try:
        student, distilled, valid = _made(config, trial, root, watch)
    except DroppedError as dropped:
        return over("dropped", str(dropped))
    except MemoryError:
        return over("failed", "out of memory")
    except AlkdError as error:
        return over("failed", str(error))
    except Exception as error:  # a defect, or a library's: the sweep goes on, and says so
        return over("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    ranks = read_ranks(valid.folder / "ranks.parquet")
    history = json.loads((distilled.folder / "history.json").read_text("utf-8"))
    is_new = not (distilled.reused and valid.reused)
    return TrialRecord(
        trial=trial.id,
        point=trial.point,
        seed=trial.seed,
        inputs=trial.inputs,
        status="complete",
        metrics={
            **summary(ranks, config.evaluation.cutoffs),
            metric: float(metric_values(ranks, metric).mean()),
        },
        best_step=history["best_step"],
        steps=history["steps"],
        rungs=watch.rungs if watch else {},
        student=student.key,
        distilled=distilled.key,
        seconds=round(time.perf_counter() - started, 4) if is_new else 0.0,
        reused=not is_new,
        node=node,
    )


@dataclass(frozen=True, slots=True)
class Tested:
    """A model that is to rank the test sessions, for one or more trials.

    Attributes:
        role: what it is to them; of a plain count its name.
        stage, model: where it lies; "" = a plain count, which is fitted anew.
        dataset: key of the imported dataset.
        seed: of the trials; 0 of a plain count, which draws nothing.
        window: input items that it sees.
    """

    role: str
    stage: str
    model: str
    dataset: str
    seed: int
    window: int


def tested(config: RunConfig, record: TrialRecord, trial: Trial) -> list[Tested]:
    """What has to be tested for a finalist's trial: its student before and after, its teacher."""
    models = {
        "student": ("pretrain", record.student),
        "teacher": ("pretrain", trial.teacher),
        "distilled": ("distillation", record.distilled),
    }
    return [
        Tested(role, *model, trial.dataset, trial.seed, config.data.window)
        for role, model in models.items()
    ]


def plain(config: RunConfig, trial: Trial) -> list[Tested]:
    """The plain counts that stand beside a finalist: equal ones where its data are equal."""
    return [
        Tested(name, "", "", trial.dataset, 0, config.data.window)
        for name in config.evaluation.baselines
    ]


def test(config: RunConfig, one: Tested, root: Path) -> str:
    """Ranks the test sessions under a model; the key of the evaluation."""
    context = Context(config, root, Silent())
    imported = artifacts.found(root, "import", one.dataset, context.storage)
    if not one.model:
        return stages.evaluate_baseline(context, imported, one.role).key
    model = artifacts.found(root, one.stage, one.model, context.storage)
    return stages.evaluate(context, imported, model, one.role, one.seed).key


def _made(
    config: RunConfig, trial: Trial, root: Path, watch: stages.Watch | None
) -> tuple[StageOutput, StageOutput, StageOutput]:
    """Pretrained student, distilled student, and its ranks of the validation sessions."""
    context = Context(config, root, Silent())
    imported = artifacts.found(root, "import", trial.dataset, context.storage)
    teacher = artifacts.found(root, "pretrain", trial.teacher, context.storage)
    rankings = None
    if trial.rankings:
        rankings = artifacts.found(root, "annotation", trial.rankings, context.storage)
    student = stages.pretrain(context, "student", imported, trial.seed)
    distilled = stages.distil(context, imported, teacher, student, rankings, trial.seed, watch)
    valid = stages.evaluate(context, imported, distilled, "distilled", trial.seed, "valid")
    return student, distilled, valid
