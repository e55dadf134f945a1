"""What trials share, made once before the first of them: models, scores, selections, rankings.

This is the only part of a sweep that can spend, and it spends once: the requests of all settings
are planned together, asked in one pass under one cap, and handed out again.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alkd_ray import artifacts, buying, hinting, pipeline, plans, registry, stages
from alkd_ray.annotation import planning
from alkd_ray.artifacts import StageOutput
from alkd_ray.bought import Bought
from alkd_ray.config import RunConfig, canonical_hash
from alkd_ray.pipeline import Engines
from alkd_ray.plans import SharedPlan
from alkd_ray.results import RunResult
from alkd_ray.stages import Context, Listener, Silent
from alkd_ray.sweeps import search
from alkd_ray.sweeps.config import Sweep
from alkd_ray.sweeps.records import Setting, Trial
from alkd_ray.sweeps.sending import Sent
from alkd_ray.types import RunStatus

# Parts of a config that a trial alone reads; the others decide what comes before it.
OF_TRIALS = {
    *("student", "distillation", "evaluation"),
    *("tracking", "name", "books", "storage", "budget"),
}


@dataclass(frozen=True, slots=True)
class Training:
    """A model that is to be pretrained."""

    config: RunConfig
    role: str
    seed: int
    imported: StageOutput


# Pretrains models below a run root, several at a time where it can; stages.pretrain finds them.
Train = Callable[[Sequence[Training], Listener, Path], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the trials of some settings need.

    Attributes:
        dataset: key of the sessions.
        teacher: seed -> key.
        rankings: key of the bought rankings; "" = none are read.
        microusd: what rankings and hints of these settings cost, whoever paid.
        asked: different rankings that they ask for, those of all seeds.
        answered: of these, those that are there.
    """

    dataset: str
    teacher: dict[int, str]
    rankings: str = ""
    microusd: int = 0
    asked: int = 0
    answered: int = 0


@dataclass(slots=True)
class Shared:
    """All that was prepared.

    Attributes:
        by_purchase: :func:`purchase_of` a config -> what its trials need.
        requests: different rankings of all settings that were answered, or failed.
        unshared: requests if each setting asked for itself.
        sent: requests sent now, hints and second tries included, as the ledger counts them.
        microusd: what all rankings and hints cost, each counted once.
        status: how the buying ended.
        reason: why, when it is not complete.
    """

    by_purchase: dict[str, Prepared] = field(default_factory=dict)
    requests: int = 0
    unshared: int = 0
    sent: int = 0
    microusd: int = 0
    status: RunStatus = "complete"
    reason: str = ""

    @property
    def ends_the_sweep(self) -> bool:
        """A breach, or nothing to go on with: all settings read rankings, and none has any."""
        if self.status in ("complete", "breached"):
            return self.status == "breached"
        return not any(one.answered or not one.rankings for one in self.by_purchase.values())

    def trials(self, setting: Setting, config: RunConfig) -> list[Trial]:
        """The trials of a setting, one for each seed."""
        found = self.by_purchase[purchase_of(config)]
        training = _training_of(config)
        return [
            Trial(setting.point, seed, found.dataset, found.teacher[seed], found.rankings, training)
            for seed in config.seeds
        ]


def purchase_of(config: RunConfig) -> str:
    """Hash of all that decides what is bought, and what comes before: equal ones share it."""
    fields = config.model_dump(exclude=OF_TRIALS)
    if config.difficulty.kind == "overlap":  # then the student decides what is selected
        fields["student"] = config.student.model_dump()
    fields["needs rankings"] = pipeline.needs_rankings(config)
    return canonical_hash(fields)


def _training_of(config: RunConfig) -> str:
    """Hash of how students are trained and distilled, the plug-ins' defaults filled in.

    What stands in files that the distillation reads is part of it, as of the stage's key.
    """
    student, method = config.student, config.distillation
    options = [
        registry.options("recommenders", student.backbone, student.options),
        registry.options("distillation", method.method, method.options),
    ]
    fields = config.model_dump(include={"student": True, "distillation": True, "data": {"window"}})
    files = stages.hashes_of_files(options[1].model_dump())
    parts = [fields, *(found.model_dump() for found in options)]
    return canonical_hash([*parts, files] if files else parts)


def deciding_axes(sweep: Sweep) -> list[str]:
    """The axes whose fields decide what is bought.

    Raises:
        InputError: one of them is no list (see :func:`alkd_ray.sweeps.search.purchases`).
    """

    def decides(field: str) -> bool:
        return field.split(".")[0] not in OF_TRIALS or field in (
            "distillation",
            "distillation.method",
        )

    def is_students(field: str) -> bool:
        return field.split(".")[0] == "student"

    axes = {name: axis.all_fields(name) for name, axis in sweep.config.over.items()}
    found = [name for name, fields in axes.items() if any(map(decides, fields))]
    bought = map(sweep.of, search.purchases(sweep.config, found))
    if any(config.difficulty.kind == "overlap" for config in bought):
        return [n for n, fields in axes.items() if n in found or any(map(is_students, fields))]
    return found


@dataclass(frozen=True, slots=True)
class Purchases:
    """The different purchases of a sweep, each made up to its candidates.

    Attributes:
        runs: one run for each.
        settings: :func:`purchase_of` it -> settings that share it.
    """

    runs: list[tuple[Context, RunResult]]
    settings: Counter[str]

    @property
    def asking(self) -> list[tuple[Context, RunResult]]:
        """Those that read rankings."""
        return [(context, run) for context, run in self.runs if "candidates" in run.by_seed]

    def plan(self) -> SharedPlan | None:
        """What hints and rankings of all settings will cost together; None for recordings."""
        asking = self.asking
        if not asking:
            return None
        counts = [self.settings[purchase_of(context.config)] for context, _ in asking]
        return plans.plan_together([_planned(*run) for run in asking], counts)


def before_the_first_request(
    settings: Mapping[str, RunConfig],
    root: Path,
    listener: Listener,
    engines: Engines,
    train: Train,
) -> Purchases:
    """Makes all that comes before the requests of ``settings``, shared parts once; sends nothing.

    For the arguments see :func:`prepare`.
    """
    contexts = [Context(config, root, listener) for config in settings.values()]
    trainings = [training for training in _trainings(contexts) if not _is_there(training, root)]
    train(trainings, listener, root)
    counts = Counter(purchase_of(context.config) for context in contexts)
    purchases = list({purchase_of(context.config): context for context in contexts}.values())
    runs = []
    for number, context in enumerate(purchases):
        until = "candidates" if pipeline.needs_rankings(context.config) else "pretrain"
        runs.append((context, pipeline.run(context.config, root, listener, engines, until)))
        listener.progress(number + 1, len(purchases), "settings prepared")
    return Purchases(runs, counts)


def prepare(
    settings: Mapping[str, RunConfig],
    run_id: str,
    root: Path,
    listener: Listener,
    engines: Engines,
    train: Train,
    approve: Callable[[SharedPlan], None],
) -> Shared:
    """Makes what the trials of ``settings`` share.

    Args:
        settings: setting -> config.
        run_id: the sweep's id, the owner of what it holds in the ledger.
        root: the run root.
        listener: told of what is made.
        engines: scoring and annotating.
        train: pretraining.
        approve: shown the plan of all requests before the first is sent; raises to send nothing.

    Raises:
        InputError: bad data, or a config that does not fit it.
        BudgetError: the cap cannot cover the requests and ``annotation.partial`` is not set.
    """
    for config in settings.values():
        if pipeline.needs_rankings(config):
            buying.check(config)
            stages.check_distillation(config)
    purchases = before_the_first_request(settings, root, listener, engines, train)
    bought, shared = _bought(purchases, run_id, engines, approve)
    for context, result in purchases.runs:
        purchase = purchase_of(context.config)
        rankings = bought.get(purchase)
        shared.by_purchase[purchase] = Prepared(
            result.dataset.key,
            {seed: output.key for seed, output in result.by_seed["teacher"].items()},
            rankings.output.key if rankings else "",
            round(rankings.cost.dollars * 1e6) if rankings else 0,
            rankings.cost.requests if rankings else 0,
            rankings.answered if rankings else 0,
        )
    return shared


def _trainings(contexts: Sequence[Context]) -> list[Training]:
    """All different models of all settings, the larger ones first."""
    imported: dict[str, StageOutput] = {}
    found: dict[str, Training] = {}
    for context in contexts:
        config = context.config
        data = canonical_hash(config.data.model_dump(exclude={"window"}))
        if data not in imported:
            imported[data] = stages.import_sessions(context)
        if pipeline.needs_rankings(config):
            buying.check_data(config, imported[data])
        for role in ("teacher", "student"):
            model = getattr(config, role).model_dump()
            for seed in config.seeds:
                key = canonical_hash([role, model, config.data.window, data, seed])
                found.setdefault(key, Training(config, role, seed, imported[data]))
    return sorted(found.values(), key=lambda t: -getattr(t.config, t.role).dim)


def train_in_process(trainings: Sequence[Training], listener: Listener, root: Path) -> None:
    """One after another, in this process."""
    for number, training in enumerate(trainings):
        pretrain(training, listener, root)
        listener.progress(number + 1, len(trainings), "models pretrained")


def pretrain(training: Training, listener: Listener, root: Path) -> StageOutput:
    """Pretrains one model, unless it is there."""
    context = Context(training.config, root, listener)
    imported = artifacts.found(root, "import", training.imported.key, context.storage)
    return stages.pretrain(context, training.role, imported, training.seed)


def _is_there(training: Training, root: Path) -> bool:
    context = Context(training.config, root, Silent())
    return stages.is_pretrained(context, training.role, training.imported, training.seed)


def _bought(
    purchases: Purchases,
    run_id: str,
    engines: Engines,
    approve: Callable[[SharedPlan], None],
) -> tuple[dict[str, Bought], Shared]:
    """Purchase -> what was bought, for those that read rankings."""
    shared = Shared()
    asking = purchases.asking
    if not asking:
        return {}, shared
    sent = Sent(asking[0][0], run_id)

    @functools.cache
    def before() -> None:
        planned = purchases.plan()
        if planned is not None and planned.plan.to_send:
            approve(planned)
            planning.check(planned.plan, asking[0][0].config.annotation.partial)
        sent.begin()

    for context, result in asking:
        teacher = result.by_seed["teacher"]
        result.make(
            "hints",
            lambda s, context=context, result=result, teacher=teacher: hinting.hints(
                context, result.dataset, teacher[s], s, run_id, before
            ),
        )
    questions = [
        (context, buying.Questions(r.dataset, r.by_seed["candidates"], r.by_seed["hints"]))
        for context, r in asking
    ]
    bought = buying.annotate_together(questions, engines.annotate, run_id, before)
    by_purchase = {
        purchase_of(context.config): found
        for (context, _), found in zip(asking, bought, strict=True)
    }
    hints = [found.by_seed["hints"].values() for _, found in asking]
    _count(shared, by_purchase, purchases.settings, itertools.chain.from_iterable(hints))
    shared.sent = sent.count()
    return by_purchase, shared


def _planned(context: Context, result: RunResult) -> tuple[Context, plans.Inputs]:
    by_seed = result.by_seed
    return context, plans.Inputs(
        result.dataset, by_seed["teacher"], by_seed["candidates"], result.run_id
    )


def _count(
    shared: Shared,
    bought: Mapping[str, Bought],
    counts: Counter[str],
    hints: Iterable[StageOutput],
) -> None:
    """Requests and money, with and without sharing; the worst way that any of it ended."""
    costs: dict[str, int] = {}
    for purchase, one in bought.items():
        shared.unshared += counts[purchase] * one.cost.requests
        costs |= one.costs_by_request()
    of_hints = {one["key"]: one["cost_microusd"] for one in map(_written_hints, hints)}
    shared.requests = len(costs)
    shared.microusd = sum(costs.values()) + sum(of_hints.values())
    order: list[Any] = ["complete", "partial", "stopped", "breached"]
    worst = max(bought.values(), key=lambda one: order.index(one.status))
    shared.status, shared.reason = worst.status, worst.reason
    if worst.status == "partial":
        failed = set().union(*(one.failed_requests() for one in bought.values()))
        shared.reason = f"{len(failed):,} of {shared.requests:,} different requests failed"
        if len(failed) == shared.requests:
            shared.reason += f" ({worst.reason})"  # which tells what the endpoint said


def _written_hints(output: StageOutput) -> dict[str, Any]:
    return json.loads((output.folder / "hints.json").read_text("utf-8"))
