"""What a run asks, before anything is sent: what it will cost, and what is known already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from alkd_ray import buying
from alkd_ray.annotation import entries, passes, planning, worker
from alkd_ray.annotation import hints as hint_writer
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.experience import Experience, learned
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.parse import PARSER_VERSION
from alkd_ray.annotation.planning import Plan
from alkd_ray.annotation.questions import HintsQuestion, Question, RankQuestions, hints_question
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.artifacts import StageOutput
from alkd_ray.llm_teachers import Endpoint, RecordedTeacher
from alkd_ray.stages import Context
from alkd_ray.types import RankRequest

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
    config = context.config
    left = buying.caps(config)
    with _store(context) as store:
        asked = questions_of(context, inputs, store)
        if asked is None:
            return None
        endpoint = asked.endpoint
        experience = Experience()
        if store is not None:
            ledger = Ledger(store.database)
            if asked.job.budget_name in ledger.budgets():
                left = entries.left(replace(ledger.state(asked.job.budget_name), caps=left))
            experience = learned(store.database, endpoint.identity, endpoint.model, ["rank"])
        first = passes.begin(asked.hints, store)
        second = passes.begin(asked.rankings, store)
    speed = worker.speed_of(config.annotation)
    rates = worker.rates_of(endpoint)  # hints are asked live
    hint_plan = planning.plan(first.sizes, first.unique, rates, left, experience, speed)
    rates = worker.rates_of(endpoint, in_batches=config.annotation.mode == "batch")
    ranking_plan = planning.plan(second.sizes, second.unique, rates, left, experience, speed)
    return planning.together(hint_plan, ranking_plan)


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
    if buying.wants_hints(config):
        for seed in config.seeds:
            examples = buying.hint_examples(context, inputs.imported, inputs.teacher[seed], seed)
            shown = hint_writer.titled(examples, job.catalogue)
            hints[seed] = hints_question(endpoint, shown, job.domain)
    requests: dict[str, RankRequest] = {}
    for seed in config.seeds:
        text = _stored_hints(hints[seed], store) if seed in hints else ""
        found = buying.requests_of_seed(context, inputs.imported, inputs.candidates[seed], text)
        requests |= {identity: request for identity, request in found}
    job = replace(job, requests=tuple(requests.values()))
    return Asked(job, endpoint, tuple(hints.values()), worker.rank_questions(job, endpoint))


@contextlib.contextmanager
def _store(context: Context) -> Iterator[Store | None]:
    """The store, for reading, if there is one."""
    file = buying.books_file(context.root)
    if not file.is_file():
        yield None
        return
    with Database(file, read_only=True) as database:
        yield Store(database)


def _stored_hints(question: Question, store: Store | None) -> str:
    stored = store.answers([question.key]) if store else {}
    if question.key in stored:
        return passes.best_reading(question, stored[question.key]).text
    return ASSUMED_HINTS
