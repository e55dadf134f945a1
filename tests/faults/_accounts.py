"""Both sides' accounts of a pass: the endpoint's bill, and what the books say after it."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alkd_ray.annotation import passes, pricing, worker
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import HoldEntry, Ledger
from alkd_ray.annotation.questions import RankQuestions, size_in_bytes
from alkd_ray.annotation.store import Store, StoredAnswer
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.llm_teachers._completions import read_answer
from alkd_ray.types import Amounts, LedgerState
from tests.annotation_rows import Server

POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Books:
    """The books at one instant.

    Attributes:
        state: the budget's totals.
        is_sound: the totals equal those added up from the holds.
        entries: all holds, in order.
        answers: key -> its raw answers, in order.
    """

    state: LedgerState
    is_sound: bool
    entries: list[HoldEntry]
    answers: dict[str, list[StoredAnswer]]

    @property
    def bodies(self) -> dict[tuple[str, int], str]:
        """Key and attempt -> raw body."""
        return {
            (key, answer.attempt): answer.raw
            for key, stored in self.answers.items()
            for answer in stored
        }

    @property
    def ever_unresolved(self) -> list[HoldEntry]:
        """Holds whose outcome was not known, at least for a while."""
        return [entry for entry in self.entries if entry.why]


def books_of(job: AnnotationJob) -> Books:
    """Reads the books beside whoever writes them."""
    questions = questions_of(job)
    keys = [questions[index].key for index in range(len(questions))]
    with Database(job.books, read_only=True) as database, database.transaction():
        ledger = Ledger(database)
        return Books(
            ledger.state(job.budget_name),
            ledger.audit(job.budget_name),
            ledger.entries(job.budget_name),
            Store(database).answers(keys),
        )


def questions_of(job: AnnotationJob) -> RankQuestions:
    """The questions of the pass."""
    return worker.rank_questions(job, worker.teacher_of(job.llm).describe())


def worst_left(job: AnnotationJob) -> list[Amounts]:
    """The worst case of each request that the next pass would send first for a row."""
    questions = questions_of(job)
    rates = worker.rates_of(questions.endpoint)
    with Database(job.books, read_only=True) as database:
        at = passes.begin(questions, Store(database))
    found = []
    for row in at.pending:
        question = questions[row.index]
        body = question.body
        if row.index in at.first_answers:
            text = read_answer(at.first_answers[row.index]).text
            body = question.ask_again(text, question.read(text).ask_again)
        found.append(
            pricing.worst_case(
                rates, size_in_bytes(body, question.schema), question.max_output_tokens
            )
        )
    return found


def bill_hashes(job: AnnotationJob) -> dict[str, str]:
    """The name of each first request in the endpoint's log -> the row's key."""
    questions = questions_of(job)
    names = {}
    for index in range(len(questions)):
        question = questions[index]
        messages = json.dumps(question.body["messages"])
        names[hashlib.sha256(messages.encode()).hexdigest()[:16]] = question.key
    return names


def times_billed(server: Server) -> Counter[str]:
    """How often the endpoint billed each request, by the hash of its messages."""
    return Counter(entry["request"] for entry in bill_log(server))


def bill_log(server: Server) -> list[dict[str, Any]]:
    """The endpoint's own entries, in order."""
    address = server.url.removesuffix("/v1") + "/bill/log"
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits for a condition; False when it did not come true in time."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(POLL_SECONDS)
    return True
