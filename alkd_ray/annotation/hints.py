"""Hints: the LLM writes down behaviour patterns from the conventional teacher's predictions.

Module 1 of the ALKDRec paper (Du et al., AAAI 2025): the patterns go into every ranking prompt.
One question a seed, bought under the same cap and kept in the same store as rankings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from alkd_ray.annotation import passes, worker
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.prompts import HintExample
from alkd_ray.annotation.questions import hints_question
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.errors import AlkdError, BudgetError
from alkd_ray.types import Catalogue, IntArray


@dataclass(frozen=True, slots=True)
class Hints:
    """Hints and what they cost; ``key`` is that of the request, "" for none."""

    text: str
    key: str
    cost_microusd: int
    prompt_tokens: int
    completion_tokens: int


def titled(
    examples: Sequence[tuple[IntArray, IntArray]], catalogue: Catalogue
) -> list[HintExample]:
    """Examples as the prompt shows them.

    Args:
        examples: of each shown session its items, oldest first, and the conventional teacher's top
            items for it, best first, -1 where there are fewer.
        catalogue: the titles.
    """
    titles = catalogue.titles
    return [
        HintExample(
            [str(titles[item]) for item in history],
            [str(titles[item]) for item in top if item >= 0],
        )
        for history, top in examples
    ]


def write_hints(examples: Sequence[tuple[IntArray, IntArray]], job: AnnotationJob) -> Hints:
    """Asks for hints, or finds them in the store.

    Args:
        examples: see :func:`titled`.
        job: the pass on whose behalf it is; its requests are not read.

    Raises:
        BudgetError: the cap does not cover it.
        AlkdError: the endpoint gave no usable answer; the message says why.
    """
    teacher = worker.teacher_of(job.llm)
    shown = titled(examples, job.catalogue)
    most = job.annotation.max_output_tokens
    questions = (hints_question(teacher.describe(), shown, job.domain, most),)
    # Rankings wait for the hints, so these are not left to a batch.
    live = job.annotation.model_copy(update={"mode": "live"})
    job = replace(job, annotation=live)
    outcome = worker.ask_all(job, teacher, questions)
    if not outcome.annotations:
        raise BudgetError(f"hints: {outcome.reason}")
    found = outcome.annotations[0]
    if found.failure or outcome.status == "breached":
        raise AlkdError(
            f"the endpoint wrote no hints ({found.failure or outcome.reason}); give a model that "
            "thinks first more room (annotation.max_output_tokens), name hints of your own "
            "(hints.artifact), or go on without them (hints.enabled=false)"
        )
    with Database(job.books, read_only=True) as database:
        stored = Store(database).answers([found.key])[found.key]
    return Hints(
        text=passes.best_reading(questions[0], stored).text,
        key=found.key,
        cost_microusd=found.cost_microusd,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
    )
