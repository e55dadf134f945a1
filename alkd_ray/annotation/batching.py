"""A pass by files of requests that the endpoint works through by itself (``/v1/batches``).

The same questions, keys, holds and answers as one request at a time (:mod:`asking`), so either
mode finds what the other has bought. The order of steps: hold and write the batch down, upload,
note that it is submitted next, submit, wait, then store and settle line by line, and only then
read. Each step can be the last one of a process: the next one goes on from the books, and looks for
a batch that was perhaps submitted by its label, so that none is submitted twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from alkd_ray.annotation.asking import Questions
from alkd_ray.annotation.batch_collecting import BatchCollecting
from alkd_ray.annotation.batch_keeping import BatchKeeping
from alkd_ray.annotation.batch_looks import BatchLooks, NotNowError
from alkd_ray.annotation.batch_rows import BatchRows, Draft, Wanted
from alkd_ray.annotation.batches import BatchEntry
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.entries import HoldEntry
from alkd_ray.annotation.operations import Stop
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.refusals import LONGEST_WAIT_SECONDS
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.llm_teachers._batch_results import BatchStatus, says_full
from alkd_ray.llm_teachers._client import NotBilledError, OutcomeUnknownError

_LOG = logging.getLogger(__name__)

# OpenAI takes 200 MB; half of it leaves room for other endpoints, and for memory.
MOST_FILE_BYTES = 100_000_000
RETRY_SECONDS = 1.0
# A batch whose submission had no good answer, or was cut off, is in the endpoint's list by then, or
# most likely never.
APPEARS_WITHIN_SECONDS = 600.0
# Looks, one a poll, that find no batch of its id. A replica that lags behind, or a proxy's page,
# says 404 as well, and a batch taken for lost is bought again.
LOST_AFTER = 5


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How batches are made.

    Attributes:
        size: most requests in one.
        poll_seconds: wait between two looks at those under way.
        tries: most sendings of one request, and of a whole batch, that end in an error.
    """

    size: int
    poll_seconds: float
    tries: int


class BatchAsker:
    """The one worker of a pass by batches; belongs to one event loop, with the desk to itself."""

    def __init__(
        self,
        questions: Questions,
        endpoint: Endpoint,
        rates: Rates,
        desk: Desk,
        settings: BatchSettings,
        tell: Callable[[], None],
    ) -> None:
        """Prepares the pass.

        Args:
            questions: its rows.
            endpoint: who is asked.
            rates: those of batches.
            desk: work and books.
            settings: how batches are made.
            tell: called after each look at the endpoint.
        """
        self.questions = questions
        self.endpoint = endpoint
        self.rates = rates
        self.desk = desk
        self.settings = settings
        self.tell = tell
        self.rows = BatchRows(questions, endpoint, rates, desk, settings.tries)
        self.kept = BatchKeeping(self.rows, desk, endpoint)
        self.results = BatchCollecting(questions, rates, desk, self.rows, self.kept)
        self._failed_batches = 0  # in a row
        self._most_at_once: int | None = None  # batches that the endpoint's queue has room for
        self._missed: Counter[str] = Counter()  # label -> looks in a row that did not find it
        self._cancelled: set[str] = set()
        self._looked_for: set[str] = set()  # labels of which the log says so

    async def run(self) -> None:
        """Works until every row is answered or has failed, or the pass must end.

        Raises:
            UnreachableError: the endpoint cannot be asked; its batches go on, and so does the pass
                when it is begun again.
        """
        async with BatchClient(self.endpoint) as client:
            looks = BatchLooks(client)
            await self._take_over(looks)
            self.rows.pull()
            while True:
                await self._submit_all(looks)
                self.tell()
                # Rows that wait now are under way with other drivers, or for what is given back.
                rows_wait = bool(self.rows.waiting) and not self.desk.is_stopped
                if not self.kept.under_way and not rows_wait:
                    return
                pause = looks.not_before - time.monotonic()
                await asyncio.sleep(max(self.settings.poll_seconds, pause))
                await self._look(looks)
                if rows_wait:
                    await self._take_over(looks)

    async def collect_left_over(self) -> None:
        """Collects what is ready of the batches of passes that have ended, and waits for none.

        Raises:
            UnreachableError: the endpoint cannot be asked.
        """
        async with BatchClient(self.endpoint) as client:
            looks = BatchLooks(client)
            await self._take_over(looks)
            await self._look(looks)
        self.tell()

    # What is there.

    async def _take_over(self, looks: BatchLooks) -> None:
        """Goes on with the batches of drivers that have ended, and looks for doubtful ones."""
        for entry in self.kept.claimed():
            holds = self.kept.holds(entry.label)
            with suppress(NotNowError):  # the next look finds it as it is now
                if not any(hold.status == "held" for hold in holds):
                    await self._look_again(looks, entry, holds)
                elif entry.batch_id:
                    self.kept.under_way[entry.label] = entry
                else:
                    await self._look_for(looks, entry)

    async def _look_again(
        self, looks: BatchLooks, entry: BatchEntry, holds: Sequence[HoldEntry]
    ) -> None:
        """Goes on with a batch none of whose holds is held, if the endpoint knows it."""
        found = await (looks.status(entry) if entry.batch_id else looks.find(entry))
        unresolved = frozenset(hold.key for hold in holds if hold.status == "unresolved")
        if found is not None:
            self.kept.submitted(entry.label, found)
            self.kept.late[entry.label] = unresolved
        elif not unresolved:  # all were settled, by hand or by a process that ended right after
            self.kept.end(entry.label, "lost", left=())

    async def _look_for(self, looks: BatchLooks, entry: BatchEntry) -> None:
        """Goes on with a batch that may be submitted; what is held for it waits for a while."""
        # One without a note was not submitted, unless a version wrote it down that made none.
        found = await looks.find(entry)
        if found is not None:
            self.kept.submitted(entry.label, found)
            self._failed_batches = 0
        elif not entry.is_perhaps_submitted:
            self.kept.give_back(entry.label, "it was never submitted")
        elif entry.age_seconds > APPEARS_WITHIN_SECONDS:
            self.kept.doubt(entry.label, "nobody knows whether its batch was submitted")
        elif entry.label not in self._looked_for:
            self._looked_for.add(entry.label)
            _LOG.warning(
                "%s may have a batch of %d requests whose submission had no answer; it is looked "
                "for, for %.0f s at most, and its requests wait",
                self.endpoint.base_url,
                len(self.kept.holds(entry.label)),
                APPEARS_WITHIN_SECONDS - entry.age_seconds,
            )

    # From rows to batches.

    async def _submit_all(self, looks: BatchLooks) -> None:
        """Submits what the cap admits; the rest waits for what is given back."""
        elsewhere: list[Wanted] = []
        if self.rows.waiting:
            elsewhere = self.rows.set_aside(self.kept.keys_under_way())
        while self.rows.waiting and not self.desk.is_stopped and self._has_room():
            draft = self._drafted(elsewhere)
            if not draft.lines or not await self._submit(looks, draft):
                break
        for wanted in elsewhere:
            self.rows.wait(wanted)

    def _has_room(self) -> bool:
        return self._most_at_once is None or len(self.kept.under_way) < self._most_at_once

    def _drafted(self, elsewhere: list[Wanted]) -> Draft:
        """Holds for as many rows as one batch takes, and writes the batch down with them."""
        draft = Draft(uuid4().hex)
        with self.desk.database.transaction():
            while self.rows.waiting and len(draft.lines) < self.settings.size:
                if draft.size >= MOST_FILE_BYTES:
                    break
                wanted = self.rows.next()
                hold_id = uuid4().hex
                question = self.questions[wanted.index]
                body = self.rows.body(question, wanted)
                verdict = self.rows.hold(hold_id, question, wanted, body, draft.label)
                if verdict.granted:
                    draft.add(hold_id, self.rows.format.completed(body, question.schema))
                elif verdict.answer is not None:
                    self.rows.read(wanted, question)
                elif verdict.elsewhere:
                    elsewhere.append(wanted)
                elif verdict.too_dear:
                    self.rows.pass_over(wanted, question)
                else:
                    self.rows.wait(wanted, first=True)
                    break
            if draft.lines:
                self.kept.batches.prepare(
                    draft.label,
                    budget=self.desk.budget,
                    owner=self.desk.owner,
                    endpoint=self.endpoint.identity,
                    model=self.endpoint.model,
                    structured=self.rows.format.mode,
                )
        return draft

    async def _submit(self, looks: BatchLooks, draft: Draft) -> bool:
        """Submits one batch; returns whether another may follow at once."""
        name = f"alkd-{draft.label}.jsonl"
        problem, is_busy, asked_to_wait = "", False, 0.0
        for number in range(self.settings.tries):
            if number:
                await asyncio.sleep(max(RETRY_SECONDS * 2**number, asked_to_wait))
            try:
                file_id = await looks.client.upload(b"".join(draft.lines), name)
                if not self.kept.submits(draft.label):
                    self.kept.let_go(draft.label)
                    return True
                self.kept.submitted(draft.label, await looks.client.create(file_id, draft.label))
                return True
            except NotBilledError as error:
                self.kept.not_submitted(draft.label)
                problem = str(error)
                is_busy = error.status == 429 and not error.is_permanent
                asked_to_wait = error.retry_after_seconds or 0.0
                is_for_good = error.is_hopeless or error.is_permanent
                if is_for_good or asked_to_wait > LONGEST_WAIT_SECONDS:
                    break
            except OutcomeUnknownError as error:
                return await self._was_submitted(looks, draft.label, str(error))
        self.kept.give_back(draft.label, problem)
        if not self._awaits_room(is_busy or says_full(problem)):
            self._stop(
                f"takes no batch: {problem} (annotation.mode=live asks one question at a time)"
            )
        return False

    async def _was_submitted(self, looks: BatchLooks, label: str, problem: str) -> bool:
        """Looks for a batch whose submission had no good answer; else the next looks do.

        Its label is never submitted again: of two batches with one label, one would be lost.
        """
        found: BatchStatus | None = None
        with suppress(NotNowError):
            found = await looks.find(self.kept.batches.entry(label))
        if found is not None:
            self.kept.submitted(label, found)
            return True
        self.kept.let_go(label)
        self._count_failure(problem)
        return False

    def _awaits_room(self, is_full: bool) -> bool:
        """Whether a queue that is full will have room once a batch of ours has ended."""
        if not is_full or not self.kept.under_way:
            return False
        self._most_at_once = len(self.kept.under_way)
        return True

    def _count_failure(self, problem: str) -> None:
        """Ends the pass after too many batches in a row that came to nothing."""
        self._failed_batches += 1
        if self._failed_batches >= self.settings.tries:
            hint = " (annotation.batch_size: smaller ones may fit)" if says_full(problem) else ""
            self._stop(
                f"refused, or lost, {self._failed_batches} batches in a row: {problem}{hint}"
            )

    def _stop(self, what: str) -> None:
        """Nothing more is submitted; what is under way is still collected."""
        self.desk.apply([Stop("stopped", f"{self.endpoint.base_url} {what}")])

    # From batches to rows.

    async def _look(self, looks: BatchLooks) -> None:
        for label, entry in list(self.kept.under_way.items()):
            if not self.kept.is_ours(label):
                self.kept.let_go(label)
                continue
            with suppress(NotNowError):  # what it has said is recorded, the rest waits
                await self._look_at(looks, entry)

    async def _look_at(self, looks: BatchLooks, entry: BatchEntry) -> None:
        label = entry.label
        status = await looks.status(entry)
        if status is None:
            status = await self._not_there(looks, entry)
        else:
            self._missed.pop(label, None)
        if status is None:
            return
        if status.is_over:
            await self._collect(looks, label, status)
        elif self._is_breached() and label not in self._cancelled:
            self._cancelled.add(label)
            await looks.cancel(self.kept.under_way[label])

    def _is_breached(self) -> bool:
        """Only this ends what was bought: other ends of a pass say nothing against its batches."""
        return self.desk.is_stopped and self.desk.standing().stop_status == "breached"

    async def _not_there(self, looks: BatchLooks, entry: BatchEntry) -> BatchStatus | None:
        """The endpoint does not know a batch's id: whether it is in the list, after some looks."""
        self._missed[entry.label] += 1
        if self._missed[entry.label] < LOST_AFTER:
            return None
        found = await looks.find(entry)
        self._missed.pop(entry.label)
        if found is None:
            self.kept.doubt(entry.label, "the endpoint does not know its batch any more")
        else:
            self.kept.submitted(entry.label, found)
        return found

    async def _collect(self, looks: BatchLooks, label: str, status: BatchStatus) -> None:
        """Records every line of a batch that is over, then what is left of it."""
        left = await self.results.collected(looks, label, status)
        if left is None:
            return
        problem = "; ".join(status.problems)[:300]
        if status.state == "failed" and not status.output_file_id and not status.completed:
            self.kept.give_back(label, f"failed: {problem}")
            if not self._awaits_room(says_full(problem)):
                self._count_failure(problem)
            return
        self._failed_batches = 0
        if self._most_at_once is not None:  # what filled the queue may have been somebody else's
            self._most_at_once += 1
        self.kept.end(label, status.state, left=left)
