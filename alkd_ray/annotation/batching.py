"""A pass by files of requests that the endpoint works through by itself (``/v1/batches``).

The same questions, keys, holds and answers as one request at a time (:mod:`asking`), so either
mode finds what the other has bought. The order of steps: hold and write the batch down, upload,
submit, wait, then store and settle line by line, and only then read. Each step can be the last
one of a process: the next one goes on from the books, and asks the endpoint for a batch that was
perhaps submitted by its label, so that none is submitted twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from alkd_ray.annotation.asking import Questions, billed
from alkd_ray.annotation.batch_keeping import BatchKeeping
from alkd_ray.annotation.batch_looks import RETRY_SECONDS, BatchLooks
from alkd_ray.annotation.batch_rows import BatchRows, Draft, Wanted, problem_of
from alkd_ray.annotation.batches import BatchEntry
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.entries import HoldEntry
from alkd_ray.annotation.operations import LeaveUnresolved, Record, Release, Stop
from alkd_ray.annotation.pricing import Rates
from alkd_ray.errors import AlkdError
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_client import BatchClient, MayComeLaterError
from alkd_ray.llm_teachers._batch_results import BatchLine, BatchStatus, says_full
from alkd_ray.llm_teachers._client import MOST_SAID, NotBilledError, OutcomeUnknownError
from alkd_ray.llm_teachers._completions import read_answer

# OpenAI takes 200 MB; half of it leaves room for other endpoints, and for memory.
MOST_FILE_BYTES = 100_000_000
LINES_AT_ONCE = 200
OUTPUT_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
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
        self._failed_batches = 0  # in a row
        self._most_at_once: int | None = None  # batches that the endpoint's queue has room for
        self._missed: Counter[str] = Counter()  # label -> looks in a row that did not find it
        self._cancelled: set[str] = set()

    async def run(self) -> None:
        """Works until every row is answered or has failed, or the pass must end.

        Raises:
            AlkdError: the endpoint cannot be reached; its batches go on, and so does the pass when
                it is begun again.
        """
        async with BatchClient(self.endpoint) as client:
            looks = BatchLooks(client, self.settings.tries)
            await self._take_over(looks)
            self.rows.pull()
            while True:
                await self._submit_all(looks)
                self.tell()
                # Rows that wait now are under way with other drivers, or for what is given back.
                rows_wait = bool(self.rows.waiting) and not self.desk.is_stopped
                if not self.kept.under_way and not rows_wait:
                    return
                await asyncio.sleep(self.settings.poll_seconds)
                await self._look(looks)
                if rows_wait:
                    await self._take_over(looks)

    # What is there.

    async def _take_over(self, looks: BatchLooks) -> None:
        """Goes on with the batches of drivers that have ended, and looks for doubtful ones."""
        for entry in self.kept.claimed():
            holds = self.kept.holds(entry.label)
            if not any(hold.status == "held" for hold in holds):
                await self._look_again(looks, entry, holds)
            elif entry.batch_id:
                self.kept.under_way[entry.label] = entry
            elif (found := await looks.find(entry)) is not None:
                self.kept.submitted(entry.label, found)
            else:
                self.kept.give_back(entry.label, "it was never submitted")

    async def _look_again(
        self, looks: BatchLooks, entry: BatchEntry, holds: Sequence[HoldEntry]
    ) -> None:
        """Goes on with a batch none of whose holds is held, if the endpoint knows it."""
        by_id = bool(entry.batch_id)
        found = await (looks.status(entry) if by_id else looks.find(entry, times=1))
        unresolved = frozenset(hold.key for hold in holds if hold.status == "unresolved")
        if found is not None:
            self.kept.submitted(entry.label, found)
            self.kept.late[entry.label] = unresolved
        elif not unresolved:  # all were settled, by hand or by a process that ended right after
            self.kept.end(entry.label, "lost", left=())

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
        problem, is_busy = "", False
        for number in range(self.settings.tries):
            if number:
                await asyncio.sleep(RETRY_SECONDS * 2**number)
            try:
                file_id = await looks.client.upload(b"".join(draft.lines), name)
                if not self.kept.is_ours(draft.label):
                    self.kept.let_go(draft.label)
                    return True
                self.kept.submitted(draft.label, await looks.client.create(file_id, draft.label))
                return True
            except NotBilledError as error:
                problem = str(error)
                is_busy = error.status == 429 and not error.is_permanent
                if error.is_hopeless or error.is_permanent:
                    break
            except OutcomeUnknownError as error:
                problem, is_busy = str(error), False
                if await self._was_submitted(looks, draft.label, error):
                    return True
                if isinstance(error, MayComeLaterError):
                    self._count_failure(problem)
                    return False
        self.kept.give_back(draft.label, problem)
        if not self._awaits_room(is_busy or says_full(problem)):
            self._stop(
                f"takes no batch: {problem} (annotation.mode=live asks one question at a time)"
            )
        return False

    async def _was_submitted(
        self, looks: BatchLooks, label: str, problem: OutcomeUnknownError
    ) -> bool:
        """Looks for a batch whose submission had no good answer; it may be left doubtful.

        Raises:
            AlkdError: the endpoint does not say.
        """
        why = f"nobody knows whether its batch was submitted: {problem}"
        try:
            found = await looks.find(self.kept.batches.entry(label))
        except AlkdError:
            self.kept.doubt(label, why)
            raise
        if found is not None:
            self.kept.submitted(label, found)
        elif isinstance(problem, MayComeLaterError):
            self.kept.doubt(label, why)
        return found is not None

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
            status = await looks.status(entry)
            if status is None:
                status = await self._not_there(looks, entry)
            else:
                self._missed.pop(label, None)
            if status is None:
                continue
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
        open_holds = self.kept.open_holds(label)
        for file_id in (status.output_file_id, status.error_file_id):
            if file_id:
                await self._collect_file(looks, label, file_id, open_holds)
        problem = "; ".join(status.problems)[:300]
        if status.state == "failed":
            self.kept.give_back(label, f"failed: {problem}")
            if not self._awaits_room(says_full(problem)):
                self._count_failure(problem)
            return
        self._failed_batches = 0
        if self._most_at_once is not None:  # what filled the queue may have been somebody else's
            self._most_at_once += 1
        self.kept.end(label, status.state, left=open_holds.values())

    async def _collect_file(
        self, looks: BatchLooks, label: str, file_id: str, open_holds: dict[str, HoldEntry]
    ) -> None:
        group: list[tuple[BatchLine, HoldEntry]] = []

        def take(line: BatchLine) -> None:
            if line.custom_id in open_holds:
                group.append((line, open_holds.pop(line.custom_id)))
            if len(group) >= LINES_AT_ONCE:
                self._record(label, group)
                group.clear()

        try:
            await looks.lines(file_id, take)
        finally:
            self._record(label, group)  # lines that came before the file broke off are good

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
