"""THE MAP: one run, from sessions to a report, stage after stage.

    import -> pretrain -> difficulty -> selection -> candidates -> hints -> annotation
           -> distillation -> evaluation -> report

Candidates and hints come after the selection, because only selected sessions need candidates
(the dear part at scale) and because everything up to the selection is free. Every seed walks the
whole map; the requests of all seeds are annotated together, once, under one ledger.

Two seams, :class:`Engines`: scoring and annotating each have an in-process form and a Ray form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alkd_ray import buying, hinting, plans, registry, selecting, stages, summary
from alkd_ray.annotation import planning, worker
from alkd_ray.annotation.planning import Plan
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.results import RunResult, run_id_of
from alkd_ray.scoring import ScoreJob, score_in_process

ROLES = ("student", "teacher", "distilled")
STAGES = (
    "import",
    "pretrain",
    "difficulty",
    "selection",
    "candidates",
    "hints",
    "annotation",
    "distillation",
    "evaluation",
    "report",
)


def _everything(plan: Plan) -> None:
    """Approves of every plan."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The two seams; the defaults run in this process, without Ray.

    ``approve`` is shown what hints and rankings will cost before the first request is sent, and
    raises to send nothing.
    """

    score: Callable[[ScoreJob, Path], None] = score_in_process
    annotate: buying.Annotate = worker.annotate
    approve: Callable[[Plan], None] = _everything


def run(
    config: RunConfig,
    root: Path,
    listener: stages.Listener,
    engines: Engines | None = None,
    until: str = "report",
) -> RunResult:
    """Walks the map up to and including stage ``until``.

    Args:
        config: a validated config.
        root: the run root, where outputs are kept.
        listener: told of every stage and of progress within it.
        engines: the two seams; default: this process.
        until: the last stage to make.

    Raises:
        InputError: bad data, or a config that does not fit it.
        BudgetError: the cap cannot cover the requests and ``annotation.partial`` is not set.
    """
    if until in STAGES[2:7] and not needs_rankings(config):
        raise InputError(
            f"distillation.method {config.distillation.method!r} reads no LLM rankings, so there "
            f"is no stage {until!r}; choose a method that does, e.g. alkdrec"
        )
    if until in STAGES[5:] and needs_rankings(config):
        buying.check(config)
        if until in STAGES[7:]:
            stages.check_distillation(config)
            # Not at the head of the file: a dry look at a plan needs no torch.
            from alkd_ray.training.loop import device_of

            device_of(config.distillation.training)
    context = stages.Context(config, root, listener)
    data = stages.import_sessions(context)
    if until in STAGES[2:] and needs_rankings(config):
        buying.check_data(config, data)
    result = RunResult(config, run_id_of(config), data)
    parts = [_pretrain, _distil, _evaluate]
    if needs_rankings(config):
        parts.insert(1, functools.partial(_buy, engines=engines or Engines()))
    for part in parts:
        for reached in part(context, result):
            if reached == until or result.ends_here:
                return result
    result.report = summary.write_report(context, result)
    return result


# Each part makes outputs stage by stage, and tells which stage it has just ended.


def _pretrain(context: stages.Context, result: RunResult) -> Iterator[str]:
    yield "import"
    for role in ("teacher", "student"):
        result.make(role, lambda s, role=role: stages.pretrain(context, role, result.dataset, s))
    yield "pretrain"


def _buy(context: stages.Context, result: RunResult, engines: Engines) -> Iterator[str]:
    data, teacher, student = result.dataset, result.by_seed["teacher"], result.by_seed["student"]
    difficulty = result.make(
        "difficulty",
        lambda s: selecting.score_difficulty(
            context, data, teacher[s], student[s], engines.score, s
        ),
    )
    yield "difficulty"
    recorded = buying.recorded_ids(context.config)
    selection = result.make(
        "selection", lambda s: selecting.select(context, difficulty[s], recorded, s)
    )
    yield "selection"
    candidates = result.make(
        "candidates", lambda s: selecting.candidates(context, data, teacher[s], selection[s], s)
    )
    yield "candidates"
    inputs = plans.Inputs(data, teacher, candidates, result.run_id)
    before = functools.cache(lambda: _approve(context, inputs, engines.approve))
    hints = result.make(
        "hints",
        lambda s: hinting.hints(context, data, teacher[s], s, result.run_id, before),
    )
    yield "hints"
    questions = buying.Questions(data, candidates, hints)
    result.annotation = buying.annotate(context, questions, engines.annotate, result.run_id, before)
    result.status, result.reason = result.annotation.status, result.annotation.reason
    yield "annotation"


def _approve(
    context: stages.Context, inputs: plans.Inputs, approve: Callable[[Plan], None]
) -> None:
    """Has what is about to be paid looked at, hints and rankings together."""
    planned = plans.plan(context, inputs)
    if planned is not None and planned.to_send:
        approve(planned)
        planning.check(planned, context.config.annotation.partial)


def _distil(context: stages.Context, result: RunResult) -> Iterator[str]:
    data, teacher, student = result.dataset, result.by_seed["teacher"], result.by_seed["student"]
    rankings = result.annotation.output if result.annotation else None
    result.make(
        "distilled",
        lambda s: stages.distil(context, data, teacher[s], student[s], rankings, s),
    )
    yield "distillation"


def _evaluate(context: stages.Context, result: RunResult) -> Iterator[str]:
    for role in ROLES:
        models = result.by_seed[role]
        result.make(
            f"ranks of {role}",
            lambda s, role=role, models=models: stages.evaluate(
                context, result.dataset, models[s], role, s
            ),
        )
    for name in context.config.evaluation.baselines:
        result.baselines[name] = stages.evaluate_baseline(context, result.dataset, name)
    yield "evaluation"


def needs_rankings(config: RunConfig) -> bool:
    """Whether the method reads LLM rankings; without them nothing is selected or bought."""
    return registry.find("distillation", config.distillation.method).needs_rankings
