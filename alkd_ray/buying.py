"""The part of a run that costs money: the rankings, and whatever else is asked for their sake.

The answers' store and the ledger lie in ``<run root>/store`` and are shared by all runs below that
root: what one run has paid for, every other run finds. The stage outputs here are views of them.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alkd_ray import artifacts, selecting, stages
from alkd_ray import sessions as windows_of
from alkd_ray.annotation import worker
from alkd_ray.annotation.database import books_of
from alkd_ray.annotation.meter import Meter, Point
from alkd_ray.annotation.parse import PARSER_VERSION
from alkd_ray.annotation.passes import Progress
from alkd_ray.annotation.pricing import usd
from alkd_ray.annotation.prompts import RANK_VERSION
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.artifacts import StageOutput
from alkd_ray.bought import Bought, Cost
from alkd_ray.config import RunConfig, canonical_hash
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import ChatTeacher, RecordedTeacher
from alkd_ray.stages import Context
from alkd_ray.types import (
    Annotation,
    AnnotationOutcome,
    Caps,
    IntArray,
    LedgerState,
    RankRequest,
)

# Called before the first request of a stage, if there is one; raises to send nothing.
Before = Callable[[], None]
Annotate = Callable[[AnnotationJob, Callable[[Progress], None] | None], AnnotationOutcome]


@dataclass(frozen=True, slots=True)
class Questions:
    """The inputs of the annotation, by seed."""

    dataset: StageOutput
    candidates: dict[int, StageOutput]
    hints: dict[int, StageOutput]


def store_folder(root: Path) -> Path:
    """Where answers and ledger lie."""
    return root / "store"


def books(root: Path, url: str = "") -> Path | str:
    """The file of answers and ledger, or their URL where a server keeps them."""
    return books_of(url, store_folder(root))


def budget_name(config: RunConfig) -> str:
    """The budget that a run's requests are held against."""
    return config.budget.name or config.name


def caps(config: RunConfig) -> Caps:
    """The cap in the ledger's units."""
    budget = config.budget
    dollars = None if budget.dollars is None else round(budget.dollars * 1_000_000)
    return Caps(dollars, budget.tokens, budget.requests)


def check(config: RunConfig) -> None:
    """Refuses a teacher that could not be asked, before anything is made for it.

    Raises:
        InputError: a price is not known, or a key is missing.
    """
    teacher = worker.teacher_of(config.llm)
    if isinstance(teacher, ChatTeacher):
        worker.rates_of(teacher.describe())
        teacher.check()


def check_data(config: RunConfig, imported: StageOutput) -> None:
    """Refuses sessions that could not be asked about, before any model is trained for it.

    Raises:
        InputError: fewer sessions than shall be selected, or an LLM would read no title.
    """
    data = stages.load_dataset(imported)
    sessions = len(windows_of.of_split(data.sessions, "train"))
    if config.selection.budget > sessions:
        raise InputError(
            f"selection.budget is {config.selection.budget}, but there are only {sessions} "
            "training sessions to select from; lower it"
        )
    asks = isinstance(worker.teacher_of(config.llm), ChatTeacher)
    if asks and not any(title.strip() for title in data.catalogue.titles):
        raise InputError(
            f"none of the {len(data.catalogue)} items has a title, and titles are all that an LLM "
            "is shown of them; import the data again with a column of titles (title=COLUMN)"
        )


def recorded_ids(config: RunConfig) -> IntArray | None:
    """Ids of the sessions with a recorded ranking, if only those may be selected, else None."""
    if not config.selection.recorded_only:
        return None
    teacher = worker.teacher_of(config.llm)
    if not isinstance(teacher, RecordedTeacher):
        raise InputError(
            "selection.recorded_only needs a recording, but llm.teacher is "
            f"{config.llm.teacher!r}; set it to false, or the teacher to replay"
        )
    return teacher.recorded_ids()


def annotate(
    context: Context, questions: Questions, run: Annotate, run_id: str, before: Before
) -> Bought:
    """Buys what is not in the store yet; ``rankings.parquet`` holds the rankings by seed.

    A pass that ended complete is found again by its inputs. Any other is kept under the hash of
    what it has got so far, so that a later run, with a larger cap, goes on.
    """
    [bought] = annotate_together([(context, questions)], run, run_id, before)
    return bought


def annotate_together(
    asking: Sequence[tuple[Context, Questions]], run: Annotate, run_id: str, before: Before
) -> list[Bought]:
    """Buys what several runs ask in one pass, equal requests once; an output for each of them.

    They share root and budget. Runs that ask in another way (another LLM, say) take another pass.
    """
    parts = [_Part.of(context, questions) for context, questions in asking]
    to_do = [part for part in parts if not part.is_there]
    if to_do:
        before()
    for group in _by_way_of_asking(to_do):
        _buy(group, run, run_id)
    return [part.kept() for part in parts]


@dataclass(slots=True)
class _Part:
    """What one run asks, and what came of it.

    Attributes:
        context: the run.
        questions: what its requests are made from.
        inputs: keys of these.
        settings: what else decides the output.
        asked: seed -> content and request of each question, in pick order.
        found: content of the question -> annotation.
        outcome: how the pass ended, from this run's point of view.
        history: the points of the pass, when it was for this run alone.
    """

    context: Context
    questions: Questions
    inputs: dict[str, str]
    settings: dict[str, Any]
    asked: dict[int, list[tuple[str, RankRequest]]] = field(default_factory=dict)
    found: dict[str, Annotation] = field(default_factory=dict)
    outcome: AnnotationOutcome | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, context: Context, questions: Questions) -> _Part:
        config = context.config
        inputs = {"dataset": questions.dataset.key}
        for seed in config.seeds:
            inputs[f"candidates {seed}"] = questions.candidates[seed].key
            inputs[f"hints {seed}"] = questions.hints[seed].key
        teacher = worker.teacher_of(config.llm)
        if isinstance(teacher, RecordedTeacher):
            inputs["recording"] = teacher.fingerprint
        settings = {
            "llm": config.llm.model_dump(),
            "wanted": config.annotation.wanted,
            "max_output_tokens": config.annotation.max_output_tokens,
            "prompt": RANK_VERSION,
            "parser": PARSER_VERSION,
        }
        return cls(context, questions, inputs, settings)

    @property
    def wanted(self) -> list[str]:
        """Content of each different question."""
        return list(dict.fromkeys(name for asked in self.asked.values() for name, _ in asked))

    @property
    def is_there(self) -> bool:
        key = artifacts.stage_key("annotation", 1, self.inputs, self.settings, None)
        return artifacts.is_there(self.context.root, "annotation", key, self.context.storage)

    def ended(self, outcome: AnnotationOutcome, by_request: dict[str, Annotation]) -> None:
        """Takes its part of a pass."""
        wanted = self.wanted
        self.found = {name: by_request[name] for name in wanted if name in by_request}
        annotations = tuple(self.found.values())
        status, reason = outcome.status, outcome.reason
        if status != "breached" and len(annotations) == len(wanted):
            failed = sum(bool(annotation.failure) for annotation in annotations)
            status = "partial" if failed else "complete"
            reason = f"{failed} of {len(annotations)} rows failed" if failed else ""
            if failed and failed == len(annotations):
                reason += f", the first with: {annotations[0].failure}"
        self.outcome = replace(outcome, annotations=annotations, status=status, reason=reason)
        if status != "complete":
            self.settings = {**self.settings, "so far": _digest(self.outcome)}

    def kept(self) -> Bought:
        """The stage's output, new or found."""

        def make(folder: Path) -> None:
            assert self.outcome is not None
            _write(folder, self)
            artifacts.write_json(folder / "progress.json", self.history)

        output = self.context.produce(
            "annotation", make, version=1, inputs=self.inputs, settings=self.settings
        )
        found = json.loads((output.folder / "outcome.json").read_text("utf-8"))
        return Bought(
            output,
            found["status"],
            found["reason"],
            Cost(**found["cost"]),
            found["answered"],
            found["failed"],
        )


def _by_way_of_asking(parts: Sequence[_Part]) -> list[list[_Part]]:
    groups: dict[str, list[_Part]] = {}
    for part in parts:
        config = part.context.config
        way = [config.llm.model_dump(), config.annotation.model_dump(), part.questions.dataset.key]
        groups.setdefault(canonical_hash(way), []).append(part)
    return list(groups.values())


def _buy(group: Sequence[_Part], run: Annotate, run_id: str) -> None:
    """One pass over what a group asks."""
    context = group[0].context
    together = _together(group)
    context.listener.stage_started("annotation", None)
    meter = Meter()
    job = job_of(context, group[0].questions.dataset, tuple(together.values()), run_id)
    outcome = run(job, _told(context, meter))
    meter.finish(outcome)
    identities = list(together)
    by_request = {identities[a.row]: a for a in outcome.annotations}
    if len(group) == 1:
        group[0].history = [asdict(point) for point in meter.history]
    else:  # no run of several sent this by itself
        outcome = replace(outcome, sent=0, reused=0, seconds=0.0)
    for part in group:
        part.ended(outcome, by_request)


def _together(group: Sequence[_Part]) -> dict[str, RankRequest]:
    """All different requests of a group: first the first pick of each run and seed, and so on.

    So that a cap that is too small leaves each of them about as much as any other.
    """
    for part in group:
        for seed in part.context.config.seeds:
            part.asked[seed] = _asked_by(part.context, part.questions, seed)
    by_seed = [asked for part in group for asked in part.asked.values()]
    in_turns = itertools.chain.from_iterable(itertools.zip_longest(*by_seed))
    return dict(asked for asked in in_turns if asked is not None)


def _asked_by(context: Context, questions: Questions, seed: int) -> list[tuple[str, RankRequest]]:
    text = json.loads((questions.hints[seed].folder / "hints.json").read_text("utf-8"))["text"]
    return requests_of_seed(context, questions.dataset, questions.candidates[seed], text)


def requests_of_seed(
    context: Context, imported: StageOutput, candidates: StageOutput, hints_text: str
) -> list[tuple[str, RankRequest]]:
    """Identity and content of each question of one seed, in pick order."""
    sessions = stages.load_dataset(imported).sessions
    ids, items = selecting.load_candidates(candidates)
    rows = windows_of.rows_of_ids(sessions, ids)
    requests = [
        RankRequest(
            session_id=int(session_id),
            history=sessions.items_of(int(row))[-context.config.data.window :],
            candidates=ranked,
            wanted=min(context.config.annotation.wanted, len(ranked)),
            hints=hints_text,
        )
        for session_id, row, ranked in zip(ids, rows, items, strict=True)
    ]
    return [(_identity(request), request) for request in requests]


def _identity(request: RankRequest) -> str:
    return canonical_hash([request.session_id, request.candidates.tolist(), request.hints])


def _write(folder: Path, part: _Part) -> None:
    context, questions, outcome = part.context, part.questions, part.outcome
    assert outcome is not None
    rows = [
        {"seed": seed, **_row(part.found[identity])}
        for seed, asked in part.asked.items()
        for identity, _ in asked
        if identity in part.found
    ]
    schema = pa.schema(
        [
            ("seed", pa.int64()),
            ("key", pa.string()),
            ("session_id", pa.int64()),
            ("ranking", pa.list_(pa.int64())),
            ("repairs", pa.list_(pa.string())),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("cost_microusd", pa.int64()),
            ("failure", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "rankings.parquet")
    hint_files = [
        json.loads((questions.hints[seed].folder / "hints.json").read_text("utf-8"))
        for seed in context.config.seeds
    ]
    paid_hints = {hint["key"]: hint for hint in hint_files if hint["key"]}
    answered = [a for a in outcome.annotations if not a.failure]
    cost = Cost(
        rankings_microusd=sum(a.cost_microusd for a in outcome.annotations),
        hints_microusd=sum(hint["cost_microusd"] for hint in paid_hints.values()),
        tokens=sum(a.prompt_tokens + a.completion_tokens for a in outcome.annotations)
        + sum(hint["prompt_tokens"] + hint["completion_tokens"] for hint in paid_hints.values()),
        requests=len(part.wanted),
        sent=outcome.sent,
        seconds=round(outcome.seconds, 3),
    )
    artifacts.write_json(
        folder / "outcome.json",
        {
            "status": outcome.status,
            "reason": outcome.reason,
            "answered": len(answered),
            "failed": len(outcome.annotations) - len(answered),
            "cost": asdict(cost),
            "ledger": asdict(outcome.ledger),
        },
    )


def _row(annotation: Annotation) -> dict[str, object]:
    return {
        "key": annotation.key,
        "session_id": annotation.session_id,
        "ranking": annotation.ranking.tolist(),
        "repairs": list(annotation.repairs),
        "prompt_tokens": annotation.prompt_tokens,
        "completion_tokens": annotation.completion_tokens,
        "cost_microusd": annotation.cost_microusd,
        "failure": annotation.failure,
    }


def _digest(outcome: AnnotationOutcome) -> str:
    """Of all that is told of a pass: one that got no further may have ended for another reason."""
    rows = [[a.key, a.ranking.tolist(), a.failure] for a in outcome.annotations]
    return canonical_hash([outcome.status, outcome.reason, asdict(outcome.ledger), rows])


def job_of(
    context: Context, imported: StageOutput, requests: tuple[RankRequest, ...], run_id: str
) -> AnnotationJob:
    """A pass over ``requests``, under the run's budget."""
    config = context.config
    data = stages.load_dataset(imported)
    return worker.AnnotationJob(
        requests=requests,
        catalogue=data.catalogue,
        domain=data.name,
        llm=config.llm,
        annotation=config.annotation,
        budget_name=budget_name(config),
        caps=caps(config),
        folder=store_folder(context.root),
        run_id=run_id,
        books_url=config.books,
    )


def _told(context: Context, meter: Meter) -> Callable[[Progress], None]:
    began = time.monotonic()

    def tell(progress: Progress) -> None:
        point = meter.add(progress, time.monotonic() - began)
        context.listener.progress(progress.done, progress.total, _in_words(point, progress.ledger))

    return tell


def _in_words(point: Point, ledger: LedgerState) -> str:
    settled, held, unresolved, cap = ledger.settled, ledger.held, ledger.unresolved, ledger.caps
    money = f"{usd(settled.microusd)} settled + {usd(held.microusd)} held"
    if unresolved.microusd:
        money += f" + {usd(unresolved.microusd)} unresolved"
    if cap.microusd is not None:
        money += f" of {usd(cap.microusd)}"
    if cap.tokens is not None:
        money += f"; {settled.tokens:,} tokens settled + {held.tokens:,} held of {cap.tokens:,}"
    return (
        f"{point.requests_per_second:,.1f} requests/s, {point.tokens_per_second:,.0f} tokens/s, "
        f"{point.in_flight} in flight, {point.failed} failed; {money}"
    )
