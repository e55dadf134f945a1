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
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import uuid4

from alkd_ray.annotation.asking import Questions, billed
from alkd_ray.annotation.batch_rows import WORKER, BatchRows, Draft, Wanted, problem_of
from alkd_ray.annotation.batches import BatchEntry, Batches
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.entries import HoldEntry
from alkd_ray.annotation.operations import LeaveUnresolved, Record, Release, Stop
from alkd_ray.annotation.pricing import Rates
from alkd_ray.errors import AlkdError
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.llm_teachers._batch_results import BatchLine, BatchStatus
from alkd_ray.llm_teachers._client import NotBilledError, OutcomeUnknownError
from alkd_ray.llm_teachers._completions import read_answer

_Said = TypeVar("_Said")

# OpenAI takes 200 MB; half of it leaves room for other endpoints, and for memory.
MOST_FILE_BYTES = 100_000_000
LINES_AT_ONCE = 200
RETRY_SECONDS = 1.0
# A submission whose answer was lost shows up in the endpoint's list after a moment, or never.
FIND_AGAIN_SECONDS = 3.0
FIND_TIMES = 3
CLOCKS_DIFFER_SECONDS = 3_600.0


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
        self.batches = Batches(desk.database)
        self.rows = BatchRows(questions, endpoint, rates, desk, settings.tries)
        self.under_way: dict[str, BatchEntry] = {}
        self._failed_batches = 0
        self._cancelled: set[str] = set()

    async def run(self) -> None:
        """Works until every row is answered or has failed, or the pass must end.

        Raises:
            AlkdError: the endpoint cannot be reached; its batches go on, and so does the pass when
                it is begun again.
        """
        async with BatchClient(self.endpoint) as client:
            await self._take_over(client)
            self.rows.pull()
            while True:
                await self._submit_all(client)
                self.tell()
                # Rows that wait now are under way with other drivers, or for what those hold.
                waits_for_others = bool(self.rows.waiting) and not self.desk.is_stopped
                if not self.under_way and not waits_for_others:
                    return
                await asyncio.sleep(self.settings.poll_seconds)
                await self._look(client)
                if waits_for_others:
                    await self._take_over(client)

    # What is there.

    async def _take_over(self, client: BatchClient) -> None:
        """Goes on with the batches of drivers that have ended."""
        for entry in self.desk.database.patiently(
            lambda _: self.batches.under_way(self.endpoint.identity, self.endpoint.model)
        ):
            if entry.label not in self.under_way and self._claims(entry.label):
                await self._resume(client, entry)

    def _claims(self, label: str) -> bool:
        return self.desk.database.patiently(lambda _: self.batches.claim(label))

    def _is_ours(self, label: str) -> bool:
        return self.desk.database.patiently(lambda _: self.batches.is_ours(label))

    def _holds(self, label: str) -> list[HoldEntry]:
        return self.desk.database.patiently(lambda _: self.batches.holds(label))

    def _let_go(self, label: str) -> None:
        """Somebody has claimed the batch: its rows wait for what becomes of it there."""
        known = self.rows.by_key
        for hold in self._forget(label):
            if hold.key in known:
                self.rows.wait(known[hold.key])

    def _forget(self, label: str) -> list[HoldEntry]:
        """It is not one of ours, or not any more; returns its holds."""
        holds = self._holds(label)
        self.desk.disown([hold.hold_id for hold in holds])
        self.under_way.pop(label, None)
        return holds

    async def _resume(self, client: BatchClient, entry: BatchEntry) -> None:
        """Takes over a batch of an earlier process."""
        holds = self._holds(entry.label)
        self.desk.adopt([hold.hold_id for hold in holds if hold.status == "held"], WORKER)
        if entry.batch_id:
            self.under_way[entry.label] = entry
            return
        found = await self._find(client, entry)
        if found is None:
            self._give_back(entry.label, "it was never submitted")
        else:
            self._submitted(entry.label, found)

    # From rows to batches.

    async def _submit_all(self, client: BatchClient) -> None:
        """Submits what the cap admits; the rest waits for what is given back."""
        elsewhere: list[Wanted] = []
        if self.rows.waiting:
            asked = self.desk.database.patiently(lambda _: self.batches.keys_under_way())
            elsewhere = self.rows.set_aside(asked)
        while self.rows.waiting and not self.desk.is_stopped:
            draft = self._drafted(elsewhere)
            if not draft.lines:
                break
            await self._submit(client, draft)
        for wanted in elsewhere:
            self.rows.wait(wanted)

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
                self.batches.prepare(
                    draft.label,
                    budget=self.desk.budget,
                    owner=self.desk.owner,
                    endpoint=self.endpoint.identity,
                    model=self.endpoint.model,
                    structured=self.rows.format.mode,
                )
        return draft

    async def _submit(self, client: BatchClient, draft: Draft) -> None:
        name = f"alkd-{draft.label}.jsonl"
        problem = ""
        for number in range(self.settings.tries):
            if number:
                await asyncio.sleep(RETRY_SECONDS * 2**number)
            try:
                file_id = await client.upload(b"".join(draft.lines), name)
                if not self._is_ours(draft.label):
                    self._let_go(draft.label)
                    return
                self._submitted(draft.label, await client.create(file_id, draft.label))
                return
            except NotBilledError as error:
                problem = str(error)
                if error.is_hopeless or error.is_permanent:
                    break
            except OutcomeUnknownError as error:
                found = await self._find(client, self.batches.entry(draft.label))
                if found is not None:
                    self._submitted(draft.label, found)
                    return
                problem = str(error)
        self._give_back(draft.label, problem)
        self.desk.apply(
            [
                Stop(
                    "stopped",
                    f"{self.endpoint.base_url} takes no batch: {problem} (annotation.mode=live "
                    "asks one question at a time)",
                )
            ]
        )

    async def _find(self, client: BatchClient, entry: BatchEntry) -> BatchStatus | None:
        """The endpoint's batch with this label; None = it certainly has none.

        Raises:
            AlkdError: the endpoint does not say.
        """
        since = datetime.fromisoformat(entry.prepared_at).timestamp() - CLOCKS_DIFFER_SECONDS
        try:
            for _ in range(FIND_TIMES - 1):
                found = await self._said(lambda: client.find(entry.label, since))
                if found is not None:
                    return found
                await asyncio.sleep(FIND_AGAIN_SECONDS)
            return await self._said(lambda: client.find(entry.label, since))
        except NotBilledError as error:
            raise AlkdError(
                f"{self.endpoint.base_url} does not say whether it has batch {entry.label} "
                f"({error}); its requests stay held; give the same command again"
            ) from error

    def _submitted(self, label: str, status: BatchStatus) -> None:
        self.batches.note_submitted(label, status.id)
        self.under_way[label] = self.batches.entry(label)

    def _give_back(self, label: str, outcome: str) -> None:
        """Ends a batch that was not billed: nothing of it was, or will be, generated."""
        with self.desk.database.transaction():
            held = [hold for hold in self._holds(label) if hold.status == "held"]
            self.desk.apply([Release(hold.hold_id) for hold in held])
            self.batches.end(label, outcome)
        self._let_go(label)

    # From batches to rows.

    async def _look(self, client: BatchClient) -> None:
        for label, entry in list(self.under_way.items()):
            if not self._is_ours(label):
                self._let_go(label)
                continue
            status = await self._status(client, entry)
            if status is None:
                self._lost(label)
            elif status.is_over:
                await self._collect(client, label, status)
            elif self.desk.is_stopped and label not in self._cancelled:
                self._cancelled.add(label)
                await self._cancel(client, entry)

    async def _status(self, client: BatchClient, entry: BatchEntry) -> BatchStatus | None:
        """None: the endpoint does not know it (any more)."""
        try:
            return await self._said(lambda: client.status(entry.batch_id))
        except NotBilledError as error:
            if error.status == 404:
                return None
            raise self._unreachable(error) from error

    async def _cancel(self, client: BatchClient, entry: BatchEntry) -> None:
        try:
            await client.cancel(entry.batch_id)
        except NotBilledError:
            return  # then it ends by itself, and is collected all the same

    async def _collect(self, client: BatchClient, label: str, status: BatchStatus) -> None:
        """Records every line of a batch that is over, then what is left of it."""
        open_holds = {
            hold.hold_id: hold
            for hold in self._holds(label)
            if hold.status in ("held", "unresolved")
        }
        for file_id in (status.output_file_id, status.error_file_id):
            if file_id:
                await self._collect_file(client, label, file_id, open_holds)
        problem = "; ".join(status.problems)[:300]
        if status.state == "failed":
            self._failed_batches += 1
            self._give_back(label, f"failed: {problem}")
            if self._failed_batches >= self.settings.tries:
                text = f"{self.endpoint.base_url} refused {self._failed_batches} batches: {problem}"
                self.desk.apply([Stop("stopped", text)])
        else:
            self._leave(open_holds, f"the batch ended ({status.state}) without a word on it")
            self.batches.end(label, status.state)
            self._forget(label)

    async def _collect_file(
        self, client: BatchClient, label: str, file_id: str, open_holds: dict[str, HoldEntry]
    ) -> None:
        async def collect() -> None:
            group: list[tuple[BatchLine, HoldEntry]] = []
            try:
                async with aclosing(client.lines(file_id)) as lines:
                    async for line in lines:
                        if line.custom_id in open_holds:
                            group.append((line, open_holds.pop(line.custom_id)))
                        if len(group) >= LINES_AT_ONCE:
                            self._record(label, group)
                            group = []
            finally:
                self._record(label, group)  # lines that came before the file broke off are good

        try:
            await self._said(collect)
        except NotBilledError as error:
            raise self._unreachable(error) from error

    async def _said(self, call: Callable[[], Awaitable[_Said]]) -> _Said:
        """What the endpoint says, asked for again where that may help."""
        for number in range(self.settings.tries):
            try:
                return await call()
            except NotBilledError as error:
                if error.is_permanent or number == self.settings.tries - 1:
                    raise
            await asyncio.sleep(RETRY_SECONDS * 2**number)
        raise AssertionError("tries is at least 1")

    def _record(self, label: str, group: Sequence[tuple[BatchLine, HoldEntry]]) -> None:
        """Stores and settles a group of lines durably, then reads them."""
        operations = [
            self._answered(line, hold) if line.raw and not line.error else Release(hold.hold_id)
            for line, hold in group
        ]
        self.desk.apply(operations)
        asked_with = self.under_way[label].structured
        with self.desk.database.transaction():  # one commit for all that is read
            for line, hold in group:
                wanted = self.rows.by_key.get(hold.key)
                if wanted is None:
                    continue  # a row of another pass; what was bought for it is in the store
                question = self.questions[wanted.index]
                if line.raw and not line.error:
                    self.rows.read(wanted, question)
                else:
                    self.rows.failed(wanted, question, problem_of(line), asked_with)

    def _answered(self, line: BatchLine, hold: HoldEntry) -> Record:
        answer = read_answer(line.raw)
        body = self.desk.store.requests([hold.key])[hold.key].body
        return Record(
            hold.hold_id,
            hold.key,
            hold.attempt,
            answer.raw,
            answer.finish_reason,
            answer.usage,
            json.loads(body)[self.endpoint.output_limit_field],
            billed(self.rates, answer.usage, hold.worst),
            len(body.encode()) if hold.attempt == 1 else 0,
        )

    def _leave(self, open_holds: dict[str, HoldEntry], why: str) -> None:
        """What the endpoint says nothing of may have been billed."""
        self.desk.apply([LeaveUnresolved(hold_id, why) for hold_id in open_holds])
        for hold in open_holds.values():
            wanted = self.rows.by_key.get(hold.key)
            if wanted is not None:
                self.rows.failed(wanted, self.questions[wanted.index], NotBilledError(why))

    def _lost(self, label: str) -> None:
        holds = {hold.hold_id: hold for hold in self._holds(label) if hold.status == "held"}
        self._leave(holds, "the endpoint does not know its batch any more")
        self.batches.end(label, "lost")
        self._forget(label)

    def _unreachable(self, problem: NotBilledError) -> AlkdError:
        return AlkdError(
            f"{self.endpoint.base_url} cannot be asked for its batches ({problem}); they go on "
            "there, and the same command collects them"
        )
