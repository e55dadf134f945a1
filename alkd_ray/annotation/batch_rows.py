"""The rows of a pass by batches: which wait, what is asked of each, and what becomes of it."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from alkd_ray.annotation import pricing
from alkd_ray.annotation.asking import Questions
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.operations import Finish, GiveUp, Hold, Pull, Stop, Verdict
from alkd_ray.annotation.passes import ATTEMPTS
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.questions import Question, Reading, size_in_bytes
from alkd_ray.annotation.response_format import ResponseFormat
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_results import BatchLine
from alkd_ray.llm_teachers._client import GATEWAY_STATUS, NotBilledError, refusal
from alkd_ray.llm_teachers._completions import Answer, read_answer

WORKER = "batches"
ROWS_AT_ONCE = 200


@dataclass(slots=True)
class Wanted:
    """A row to be asked: its question and key, the attempt, how often that ended in an error."""

    index: int
    key: str
    attempt: int
    errors: int = 0


@dataclass(slots=True)
class Draft:
    """A batch that is being put together."""

    label: str
    lines: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, custom_id: str, body: dict[str, Any]) -> None:
        """One more line."""
        line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
        text = json.dumps({**line, "body": body}, ensure_ascii=False) + "\n"
        self.lines.append(text.encode())
        self.size += len(self.lines[-1])


class BatchRows:
    """Rows of one pass; the desk is theirs alone.

    Attributes:
        waiting: rows for the next batch, each once and in order, by index. Rows of a batch that
            was taken over from another driver may wait as well, until it is collected.
        by_key: request's key -> its row, of every row of the pass.
        format: the response format that the endpoint accepts, as far as known.
    """

    def __init__(
        self, questions: Questions, endpoint: Endpoint, rates: Rates, desk: Desk, tries: int
    ) -> None:
        self.questions = questions
        self.endpoint = endpoint
        self.rates = rates
        self.desk = desk
        self.tries = tries
        self.format = ResponseFormat(endpoint)
        self.waiting: OrderedDict[int, Wanted] = OrderedDict()
        self.by_key: dict[str, Wanted] = {}
        self._over: set[int] = set()

    def pull(self) -> None:
        """Takes all rows from the desk."""
        while rows := self.desk.apply([Pull(WORKER, ROWS_AT_ONCE)])[0]:
            for row in rows:
                key = self.questions[row.index].key
                wanted = Wanted(row.index, key, 1 if row.first_answer is None else 2)
                self.by_key[key] = wanted
                self.wait(wanted)

    def wait(self, wanted: Wanted, *, first: bool = False) -> None:
        """The row is for a next batch, behind the others or before them; unless it is over."""
        if wanted.index not in self._over:
            self.waiting[wanted.index] = wanted
            if first:
                self.waiting.move_to_end(wanted.index, last=False)

    def next(self) -> Wanted:
        """Takes the first one that waits."""
        return self.waiting.popitem(last=False)[1]

    def set_aside(self, keys: Container[str]) -> list[Wanted]:
        """Takes the waiting rows whose key is one of these."""
        found = [wanted for wanted in self.waiting.values() if wanted.key in keys]
        for wanted in found:
            del self.waiting[wanted.index]
        return found

    def body(self, question: Question, wanted: Wanted) -> dict[str, Any]:
        """What is asked of a row, first or again."""
        if wanted.attempt == 1:
            return question.body
        first = self._answers(question)[0]
        return question.ask_again(first.text, question.read(first.text).ask_again)

    def hold(
        self,
        hold_id: str,
        question: Question,
        wanted: Wanted,
        body: dict[str, Any],
        label: str,
    ) -> Verdict:
        """Asks the desk to hold the worst case of a row's request, in batch ``label``."""
        worst = pricing.worst_case(
            self.rates, size_in_bytes(body, question.schema), question.max_output_tokens
        )
        hold = Hold(hold_id, question.key, question.kind, wanted.attempt, worst, WORKER, label)
        return self.desk.apply([hold])[0]

    def read(self, wanted: Wanted, question: Question) -> None:
        """Reads what is stored of a row: it is done, or asked again once."""
        answers = self._answers(question)
        readings = [question.read(answer.text) for answer in answers]
        if len(readings) < ATTEMPTS and readings[0].ask_again:
            wanted.attempt, wanted.errors = 2, 0
            self.wait(wanted)
            return
        self._finish(wanted, question, max(readings, key=lambda reading: reading.worth))

    def pass_over(self, wanted: Wanted, question: Question) -> None:
        """Asking again cannot be paid: the first answer counts, if it says anything."""
        first = question.read(self._answers(question)[0].text)
        if not first.failure:
            self._finish(wanted, question, first)

    def _finish(self, wanted: Wanted, question: Question, reading: Reading) -> None:
        self._end(wanted)
        ranking = tuple(int(item) for item in reading.ranking)
        self.desk.apply(
            [Finish(WORKER, wanted.index, question.key, ranking, reading.repairs, reading.failure)]
        )

    def failed(
        self, wanted: Wanted, question: Question, problem: NotBilledError, asked_with: str = ""
    ) -> None:
        """A request got no answer: again in the next batch, or given up."""
        if problem.is_hopeless:
            self.desk.apply([Stop("stopped", f"{self.endpoint.base_url}: {problem}")])
            return
        if wanted.index in self._over:  # the same was asked in two batches, and this is the second
            return
        if asked_with and self.format.gives_way(asked_with, problem):
            self.wait(wanted)
            return
        wanted.errors += 1
        if not problem.is_permanent and wanted.errors < self.tries:
            self.wait(wanted)
            return
        reason = str(problem)
        if not problem.is_permanent:
            reason = f"gave up after {wanted.errors} tries: {problem}"
        ends_row = wanted.attempt == 1
        self._end(wanted)
        self.desk.apply(
            [GiveUp(WORKER, wanted.index, question.key, reason, problem.is_permanent, ends_row)]
        )
        if not ends_row:
            self._finish(wanted, question, question.read(self._answers(question)[0].text))

    def _end(self, wanted: Wanted) -> None:
        self._over.add(wanted.index)
        self.waiting.pop(wanted.index, None)

    def _answers(self, question: Question) -> list[Answer]:
        stored = self.desk.store.answers([question.key])[question.key]
        return [read_answer(answer.raw) for answer in stored]


def problem_of(line: BatchLine) -> NotBilledError:
    """What became of a line without an answer, by the rules for a request of its own."""
    if line.status_code < 400 or line.status_code in GATEWAY_STATUS:
        return NotBilledError(line.error, status=line.status_code)
    # What the endpoint said has been through the client, which leaves no key in it.
    return refusal(line.status_code, line.raw, {}, key="")
