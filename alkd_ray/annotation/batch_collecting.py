"""What a batch brought: answers are stored, settled and read, then comes what has no answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from alkd_ray.annotation.asking import Questions, billed
from alkd_ray.annotation.batch_keeping import BatchKeeping
from alkd_ray.annotation.batch_looks import BatchLooks
from alkd_ray.annotation.batch_rows import BatchRows, problem_of
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.entries import HoldEntry
from alkd_ray.annotation.operations import LeaveUnresolved, Record, Release, Stop
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.refusals import REFUSED_ALIKE
from alkd_ray.llm_teachers._batch_results import BatchLine, BatchStatus
from alkd_ray.llm_teachers._client import MOST_SAID, NotBilledError
from alkd_ray.llm_teachers._completions import read_answer

LINES_AT_ONCE = 200
# Looks, one a poll, at results with fewer answers than the endpoint counts: those that are missing
# were paid for, and may stand in the next copy of the file.
SHORT_AFTER = 5
OUTPUT_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(slots=True)
class _Found:
    """What the files of a batch say.

    Attributes:
        left: holds that no line spoke of so far, by their ids.
        answered: ids of all lines with an answer, also of those recorded earlier.
        unanswered: the other lines, with their holds.
    """

    left: dict[str, HoldEntry]
    answered: set[str] = field(default_factory=set[str])
    unanswered: list[tuple[BatchLine, HoldEntry]] = field(
        default_factory=list[tuple[BatchLine, HoldEntry]]
    )


class BatchCollecting:
    """Records the results of batches that are over; belongs to one event loop.

    A line's answer is durable before the next group of lines is read, so that a process that dies
    in between, or a file that breaks off, costs nothing: the next reading goes on.
    """

    def __init__(
        self, questions: Questions, rates: Rates, desk: Desk, rows: BatchRows, kept: BatchKeeping
    ) -> None:
        self.questions = questions
        self.rates = rates
        self.desk = desk
        self.rows = rows
        self.kept = kept
        self._short: Counter[str] = Counter()  # label -> looks that found too few answers

    async def collected(
        self, looks: BatchLooks, label: str, status: BatchStatus
    ) -> list[HoldEntry] | None:
        """Records all lines of a batch.

        Returns:
            the holds that no line speaks of; None while answers that it counts are missing.

        Raises:
            NotNowError: a file did not arrive whole.
            UnreachableError: nor will it soon.
        """
        found = _Found(self.kept.open_holds(label))
        for file_id in (status.output_file_id, status.error_file_id):
            if file_id:
                await self._read(looks, label, file_id, found)
        has_no_file = status.state == "completed" and not status.output_file_id
        if found.left and (has_no_file or len(found.answered) < status.completed):
            self._short[label] += 1
            if self._short[label] < SHORT_AFTER:
                return None
        self._end_unanswered(label, found)
        return list(found.left.values())

    async def _read(self, looks: BatchLooks, label: str, file_id: str, found: _Found) -> None:
        group: list[tuple[BatchLine, HoldEntry]] = []

        def take(line: BatchLine) -> None:
            is_answer = bool(line.raw and not line.error)
            if is_answer:
                found.answered.add(line.custom_id)
            hold = found.left.pop(line.custom_id, None)
            if hold is not None:
                (group if is_answer else found.unanswered).append((line, hold))
            if len(group) >= LINES_AT_ONCE:
                self._record(label, group)
                group.clear()

        try:
            await looks.lines(file_id, take)
        finally:
            self._record(label, group)  # lines that came before the file broke off are good

    def _end_unanswered(self, label: str, found: _Found) -> None:
        """Has the lines without an answer asked again, or given up; or ends the pass for them."""
        if not found.answered and (why := self._refused_alike(label, found.unanswered)):
            self.desk.apply([Stop("stopped", f"{self.rows.endpoint.base_url}: {why}")])
            self.desk.apply([Release(hold.hold_id) for _, hold in found.unanswered])
            for _, hold in found.unanswered:
                if hold.key in self.rows.by_key:
                    self.rows.wait(self.rows.by_key[hold.key])
            return
        for start in range(0, len(found.unanswered), LINES_AT_ONCE):
            self._record(label, found.unanswered[start : start + LINES_AT_ONCE])

    def _refused_alike(self, label: str, unanswered: Sequence[tuple[BatchLine, HoldEntry]]) -> str:
        """Why the pass must end with the refusals of a batch without an answer; "" = it need not.

        Of one that must, no row has failed: see :class:`alkd_ray.annotation.refusals.Refusals`.
        """
        asked_with = self.kept.under_way[label].structured
        problems = [problem_of(line) for line, hold in unanswered if hold.key in self.rows.by_key]
        said = Counter(
            str(problem)
            for problem in problems
            if problem.is_permanent
            and not problem.is_hopeless
            and not self.rows.format.gives_way(asked_with, problem)
        )
        for refusal, count in said.most_common(1):
            if count >= REFUSED_ALIKE:
                return (
                    f"{count} requests of a batch were refused alike and none was answered: "
                    f"{refusal} (once that is mended, the same command asks them again)"
                )
        return ""

    def _record(self, label: str, group: Sequence[tuple[BatchLine, HoldEntry]]) -> None:
        """Stores and settles a group of lines durably, then reads them."""
        settled = [self._settled(line, hold) for line, hold in group]
        self.desk.apply(settled)
        asked_with = self.kept.under_way[label].structured
        with self.desk.database.transaction():  # one commit for all that is read
            for (line, hold), outcome in zip(group, settled, strict=True):
                wanted = self.rows.by_key.get(hold.key)
                if wanted is None:
                    continue  # a row of another pass; what was bought for it is in the store
                question = self.questions[wanted.index]
                match outcome:
                    case Record():
                        self.rows.read(wanted, question)
                    case LeaveUnresolved():
                        self.rows.failed(wanted, question, NotBilledError(outcome.why))
                    case Release():
                        self.rows.failed(wanted, question, problem_of(line), asked_with)

    def _settled(self, line: BatchLine, hold: HoldEntry) -> Record | Release | LeaveUnresolved:
        """What becomes of a line's hold."""
        if not line.raw or line.error:
            return Release(hold.hold_id)
        answer = read_answer(line.raw)
        if not answer.is_completion:  # whatever came in its place may have been billed
            said = " ".join(line.raw.split())[:MOST_SAID]
            return LeaveUnresolved(hold.hold_id, f"its line holds no completion: {said}")
        body = self.desk.store.requests([hold.key])[hold.key].body
        asked = json.loads(body)
        # The field of the day it was asked with, whatever the config says now.
        limit = next(asked[name] for name in OUTPUT_LIMIT_FIELDS if name in asked)
        return Record(
            hold.hold_id,
            hold.key,
            hold.attempt,
            answer.raw,
            answer.finish_reason,
            answer.usage,
            limit,
            billed(self.rates, answer.usage, hold.worst),
            len(body.encode()) if hold.attempt == 1 else 0,
        )
