"""What a run asks, before anything is sent: what it will cost, and what is known already."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from alkd_ray import buying, hinting
from alkd_ray.annotation import entries, passes, planning, worker
from alkd_ray.annotation import hints as hint_writer
from alkd_ray.annotation.batches import Batches
from alkd_ray.annotation.database import Database, are_there
from alkd_ray.annotation.experience import Experience, learned
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.parse import PARSER_VERSION
from alkd_ray.annotation.planning import InBatches, Plan, Size
from alkd_ray.annotation.questions import HintsQuestion, Question, RankQuestions, hints_question
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.artifacts import StageOutput
from alkd_ray.config import AnnotationConfig, RunConfig
from alkd_ray.llm_teachers import Endpoint, RecordedTeacher
from alkd_ray.stages import Context
from alkd_ray.types import Caps, RankRequest

# For plans alone: hints that nobody has written yet. Ten patterns of some twenty words.
ASSUMED_HINTS = "\n".join(["pattern of behaviour in about twenty words " * 3] * 10)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the questions of a run are made from, by seed."""

    imported: StageOutput
    teacher: dict[int, StageOutput]
    candidates: dict[int, StageOutput]
    run_id: str


@dataclass(frozen=True, slots=True)
class Asked:
    """All questions of a run; hints that are not written yet are :data:`ASSUMED_HINTS`."""

    job: AnnotationJob
    endpoint: Endpoint
    hints: tuple[HintsQuestion, ...]
    rankings: RankQuestions


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """What several runs cost together.

    Attributes:
        plan: equal questions count once.
        settings: how many runs.
        unshared: requests that they would send if each asked for itself.
    """

    plan: Plan
    settings: int
    unshared: int


@dataclass(frozen=True, slots=True)
class Reread:
    """What the parser of the day made of stored answers.

    Attributes:
        questions: different ranking questions of the run.
        read: those with a stored answer.
        accepted: of these, with a ranking.
        changed: of these, read differently than by the latest earlier parser.
        parser_version: of the parser.
    """

    questions: int
    read: int
    accepted: int
    changed: int
    parser_version: str


def plan(context: Context, inputs: Inputs) -> Plan | None:
    """What hints and rankings of all seeds will cost; sends nothing. None for a recording."""
    found = plan_together([(context, inputs)])
    return found.plan if found else None


def plan_together(
    runs: Sequence[tuple[Context, Inputs]], settings: Sequence[int] = ()
) -> SharedPlan | None:
    """What several runs below one root and budget will cost when equal questions are asked once.

    Sends nothing. None where all are replayed from recordings. ``settings`` says how many settings
    each run stands for; default: one.
    """
    context, _ = runs[0]
    settings = settings or [1] * len(runs)
    left = buying.caps(context.config)
    tallies: dict[tuple[str, str, str], _Tally] = {}
    unshared = 0
    with _store(context) as store:
        for run, count in zip(runs, settings, strict=True):
            asked = questions_of(*run, store)
            if asked is None:
                continue
            annotation = run[0].config.annotation
            kind = (asked.endpoint.identity, asked.endpoint.model, annotation.mode)
            tally = tallies.setdefault(kind, _Tally(asked.endpoint, annotation))
            unshared += count * tally.add(asked, store)
        if store is not None:
            in_batches = [tally.in_batches(store, context.config) for tally in tallies.values()]
            left = _left(Ledger(store.database), context.config, left, in_batches)
        plans = [found for tally in tallies.values() for found in tally.plans(store, left)]
    if not plans:
        return None
    return SharedPlan(functools.reduce(planning.together, plans), sum(settings), unshared)


@dataclass(slots=True)
class _Tally:
    """Different questions to one endpoint, and the sizes of those that are left to ask."""

    endpoint: Endpoint
    annotation: AnnotationConfig
    keys: dict[str, set[str]] = field(default_factory=lambda: {"hints": set(), "rank": set()})
    sizes: dict[str, dict[str, Size]] = field(default_factory=lambda: {"hints": {}, "rank": {}})
    waiting: frozenset[str] = frozenset()  # keys of those that are in batches, and not sent again

    def add(self, asked: Asked, store: Store | None) -> int:
        """Counts a run's questions in; returns how many different ones it asks by itself."""
        for kind, questions in (("hints", asked.hints), ("rank", asked.rankings)):
            found = passes.begin(questions, store)
            self.keys[kind].update(found.keys)
            for key, size in zip(found.pending.keys.values(), found.sizes, strict=True):
                self.sizes[kind].setdefault(key, size)
        return len({question.key for question in asked.hints}) + len(asked.rankings)

    def in_batches(self, store: Store, config: RunConfig) -> InBatches:
        """Leaves the rankings out that are in batches; what they are."""
        has_batches = self.annotation.mode == "batch"
        found = planning.in_batches(
            self.sizes["rank"],
            Batches(store.database).all_held(),
            buying.budget_name(config) if has_batches else "",
            worker.rates_of(self.endpoint, in_batches=has_batches),
            self._learned(store),
        )
        self.waiting = found.keys
        return found

    def _learned(self, store: Store | None) -> Experience:
        if store is None:
            return Experience()
        return learned(store.database, self.endpoint.identity, self.endpoint.model, "rank")

    def plans(self, store: Store | None, left: Caps) -> list[Plan]:
        """Of hints, which are asked live, and of rankings."""
        known = self._learned(store)
        return [
            planning.plan(
                [size for key, size in self.sizes[kind].items() if key not in self.waiting],
                len(self.keys[kind]),
                worker.rates_of(self.endpoint, in_batches=has_batches),
                left,
                known,
                worker.speed_of(self.annotation),
            )
            for kind, has_batches in (("hints", False), ("rank", self.annotation.mode == "batch"))
        ]


def _left(ledger: Ledger, config: RunConfig, caps: Caps, in_batches: Sequence[InBatches]) -> Caps:
    """What the config's caps leave of its budget when what is in batches is collected."""
    name = buying.budget_name(config)
    if name not in ledger.budgets():
        return caps
    state = replace(ledger.state(name), caps=caps)
    for waiting in in_batches:
        state = waiting.collected(state)
    return entries.left(state)


def reread(context: Context, inputs: Inputs) -> Reread | None:
    """Reads stored answers with the parser of the day, for nothing; None for a recording."""
    job = buying.job_of(context, inputs.imported, (), inputs.run_id)
    with Database(job.books, wait_seconds=worker.WRITER_SECONDS) as database:
        store = Store(database)
        asked = questions_of(context, inputs, store)
        if asked is None:
            return None
        questions = {question.key: question for question in asked.rankings}
        answers = store.answers(questions)
        earlier = store.latest_parsed(answers)
        accepted = changed = 0
        with database.transaction():
            for key, stored in answers.items():
                found = passes.best_reading(questions[key], stored)
                accepted += not found.failure
                before = earlier.get(key)
                changed += before is not None and (
                    before.ranking.tolist() != found.ranking.tolist()
                    or before.failure != found.failure
                )
                store.put_parsed(
                    key,
                    parser_version=PARSER_VERSION,
                    ranking=found.ranking,
                    repairs=found.repairs,
                    failure=found.failure,
                )
    return Reread(len(questions), len(answers), accepted, changed, PARSER_VERSION)


def questions_of(context: Context, inputs: Inputs, store: Store | None) -> Asked | None:
    """The questions of all seeds, equal ones once; None for a recording."""
    config = context.config
    job = buying.job_of(context, inputs.imported, (), inputs.run_id)
    teacher = worker.teacher_of(config.llm)
    if isinstance(teacher, RecordedTeacher):
        return None
    endpoint = teacher.describe()
    hints: dict[int, HintsQuestion] = {}
    if hinting.wants_hints(config):
        for seed in config.seeds:
            examples = hinting.hint_examples(context, inputs.imported, inputs.teacher[seed], seed)
            shown = hint_writer.titled(examples, job.catalogue)
            hints[seed] = hints_question(
                endpoint, shown, job.domain, job.annotation.max_output_tokens
            )
    named = hinting.named_hints(context)
    requests: dict[str, RankRequest] = {}
    for seed in config.seeds:
        text = _stored_hints(hints[seed], store) if seed in hints else named["text"]
        found = buying.requests_of_seed(context, inputs.imported, inputs.candidates[seed], text)
        requests |= {identity: request for identity, request in found}
    job = replace(job, requests=tuple(requests.values()))
    return Asked(job, endpoint, tuple(hints.values()), worker.rank_questions(job, endpoint))


@contextlib.contextmanager
def _store(context: Context) -> Iterator[Store | None]:
    """The store, for reading, if there is one."""
    books = buying.books(context.root, context.config.books)
    if not are_there(books):
        yield None
        return
    with Database(books, read_only=True) as database:
        yield Store(database)


def _stored_hints(question: Question, store: Store | None) -> str:
    stored = store.answers([question.key]) if store else {}
    if question.key in stored:
        return passes.best_reading(question, stored[question.key]).text
    return ASSUMED_HINTS
