"""THE MAP: one run, from sessions to a report, stage after stage.

    import -> pretrain -> difficulty -> selection -> candidates -> hints -> annotation
           -> distillation -> evaluation -> report

Candidates and hints come after the selection, because only selected sessions need candidates
(the dear part at scale) and because everything up to the selection is free. Every seed walks the
whole map; the requests of all seeds are annotated together, once, under one ledger.

Two seams, :class:`Engines`: scoring and annotating each have an in-process form and a Ray form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from alkd_ray import buying, registry, stages, summary
from alkd_ray.annotation import worker
from alkd_ray.artifacts import StageOutput
from alkd_ray.config import RunConfig, canonical_hash
from alkd_ray.scoring import ScoreJob, score_in_process
from alkd_ray.types import RunStatus

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


@dataclass(frozen=True, slots=True)
class Engines:
    """The two seams; the defaults run in this process, without Ray."""

    score: Callable[[ScoreJob, Path], None] = score_in_process
    annotate: buying.Annotate = worker.annotate


@dataclass(slots=True)
class RunResult:
    """What a run has made so far, and how it stands.

    Attributes:
        config: the run's config.
        run_id: its name and the hash of its config.
        dataset: output of the import.
        by_seed: name of an output (``teacher``, ``student``, ``difficulty``, ``selection``,
            ``candidates``, ``hints``, ``distilled``, ``ranks of <role>``) -> seed -> output.
        annotation: what was bought.
        baselines: name -> ranks of a plain recommender.
        report: the report's folder.
        status: how it stands; ``stopped`` and ``breached`` end a run at its annotation.
        reason: why, when it is not complete.
    """

    config: RunConfig
    run_id: str
    dataset: StageOutput
    by_seed: dict[str, dict[int, StageOutput]] = field(default_factory=dict)
    annotation: buying.Bought | None = None
    baselines: dict[str, StageOutput] = field(default_factory=dict)
    report: StageOutput | None = None
    status: RunStatus = "complete"
    reason: str = ""


def run_id_of(config: RunConfig) -> str:
    """Name and content of the config; the same config is the same run."""
    return f"{config.name}-{canonical_hash(config.model_dump(), 8)}"


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
    engines = engines or Engines()
    context = stages.Context(config, root, listener)
    data = stages.import_sessions(context)
    result = RunResult(config, run_id_of(config), data)
    if until == "import":
        return result

    def per_seed(name: str, make: Callable[[int], StageOutput]) -> dict[int, StageOutput]:
        result.by_seed[name] = {seed: make(seed) for seed in config.seeds}
        return result.by_seed[name]

    teacher = per_seed("teacher", lambda s: stages.pretrain(context, "teacher", data, s))
    student = per_seed("student", lambda s: stages.pretrain(context, "student", data, s))
    if until == "pretrain":
        return result

    if needs_rankings(config):
        difficulty = per_seed(
            "difficulty",
            lambda s: stages.score_difficulty(
                context, data, teacher[s], student[s], engines.score, s
            ),
        )
        if until == "difficulty":
            return result
        recorded = buying.recorded_ids(config)
        selection = per_seed(
            "selection", lambda s: stages.select(context, difficulty[s], recorded, s)
        )
        if until == "selection":
            return result
        candidates = per_seed(
            "candidates", lambda s: stages.candidates(context, data, teacher[s], selection[s], s)
        )
        if until == "candidates":
            return result
        hints = per_seed(
            "hints", lambda s: buying.hints(context, data, teacher[s], s, result.run_id)
        )
        if until == "hints":
            return result
        questions = buying.Questions(data, candidates, hints)
        result.annotation = buying.annotate(context, questions, engines.annotate, result.run_id)
        result.status, result.reason = result.annotation.status, result.annotation.reason
        if result.annotation.ends_the_run or until == "annotation":
            return result

    distilled = per_seed(
        "distilled",
        lambda s: stages.distil(context, data, teacher[s], student[s], result.annotation, s),
    )
    if until == "distillation":
        return result
    for role, models in (("student", student), ("teacher", teacher), ("distilled", distilled)):
        per_seed(
            f"ranks of {role}",
            lambda s, role=role, models=models: stages.evaluate(context, data, models[s], role, s),
        )
    for name in config.evaluation.baselines:
        result.baselines[name] = stages.evaluate_baseline(context, data, name)
    if until == "evaluation":
        return result
    result.report = summary.write_report(context, result)
    return result


def needs_rankings(config: RunConfig) -> bool:
    """Whether the method reads LLM rankings; without them nothing is selected or bought."""
    method = registry.find("distillation", config.distillation.method)
    return getattr(method, "needs_rankings", True)
