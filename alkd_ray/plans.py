"""What a run's hints and rankings will cost, before anything is sent."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from alkd_ray import buying
from alkd_ray.annotation import entries, passes, planning, worker
from alkd_ray.annotation import hints as hint_writer
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.experience import Experience, learned
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.planning import Plan
from alkd_ray.annotation.questions import HintsQuestion, Question, hints_question
from alkd_ray.annotation.store import Store
from alkd_ray.artifacts import StageOutput
from alkd_ray.llm_teachers import RecordedTeacher
from alkd_ray.stages import Context
from alkd_ray.types import RankRequest

# For plans alone: hints that nobody has written yet. Ten patterns of some twenty words.
ASSUMED_HINTS = "\n".join(["pattern of behaviour in about twenty words " * 3] * 10)


def plan(
    context: Context,
    imported: StageOutput,
    teacher: dict[int, StageOutput],
    candidates: dict[int, StageOutput],
    run_id: str,
) -> Plan | None:
    """What hints and rankings of all seeds will cost; sends nothing. None for a recording.

    Hints that are not written yet are taken to be :data:`ASSUMED_HINTS` long.
    """
    config = context.config
    job = buying.job_of(context, imported, (), run_id)
    llm_teacher = worker.teacher_of(config.llm)
    if isinstance(llm_teacher, RecordedTeacher):
        return None
    endpoint = llm_teacher.describe()
    hint_questions: list[HintsQuestion] = []
    if buying.wants_hints(config):
        hint_questions = [
            hints_question(
                endpoint,
                hint_writer.titled(
                    buying.hint_examples(context, imported, teacher[s], s), job.catalogue
                ),
                job.domain,
            )
            for s in config.seeds
        ]
    with contextlib.ExitStack() as stack:
        store, left = None, buying.caps(config)
        if job.books.is_file():
            database = stack.enter_context(Database(job.books, read_only=True))
            store, ledger = Store(database), Ledger(database)
            if job.budget_name in ledger.budgets():
                left = entries.left(replace(ledger.state(job.budget_name), caps=left))
        first = passes.begin(hint_questions, store)
        texts = dict.fromkeys(config.seeds, "")
        if hint_questions:
            texts = {
                seed: _stored_hints(question, store)
                for seed, question in zip(config.seeds, hint_questions, strict=True)
            }
        requests: dict[str, RankRequest] = {}
        for seed in config.seeds:
            found = buying.requests_of_seed(context, imported, candidates[seed], texts[seed])
            requests |= {identity: request for identity, request in found}
        asked = replace(job, requests=tuple(requests.values()))
        second = passes.begin(worker.rank_questions(asked, endpoint), store)
        experience = Experience()
        if store is not None:
            experience = learned(store.database, endpoint.identity, endpoint.model, ["rank"])
    speed = worker.speed_of(config.annotation)
    rates = worker.rates_of(endpoint)  # hints are asked live
    hint_plan = planning.plan(first.sizes, first.unique, rates, left, experience, speed)
    rates = worker.rates_of(endpoint, in_batches=config.annotation.mode == "batch")
    ranking_plan = planning.plan(second.sizes, second.unique, rates, left, experience, speed)
    return planning.together(hint_plan, ranking_plan)


def _stored_hints(question: Question, store: Store | None) -> str:
    stored = store.answers([question.key]) if store else {}
    if question.key in stored:
        return passes.best_reading(question, stored[question.key]).text
    return ASSUMED_HINTS
