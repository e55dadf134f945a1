"""A worker of a pass: pulls rows, asks the endpoint, and tells the desk of every step.

The order of steps is what the cost cap rests on: hold, send, then store the raw answer and settle
in one transaction, and only then read it. Retries have one owner, this file.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from alkd_ray.annotation import pricing
from alkd_ray.annotation._asking_parts import AskingSettings, DeskFace, Questions
from alkd_ray.annotation.operations import (
    Finish,
    GiveUp,
    Hold,
    LeaveUnresolved,
    Pull,
    Record,
    Release,
    Row,
    Stop,
    TakeTurn,
    Verdict,
)
from alkd_ray.annotation.pace import Pace
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.questions import (
    Question,
    Reading,
    body_in_bytes,
    schema_size,
    template_size,
)
from alkd_ray.annotation.refusals import Refusals
from alkd_ray.annotation.response_format import ResponseFormat
from alkd_ray.annotation.turns import Turn
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._client import ChatClient, NotBilledError, OutcomeUnknownError
from alkd_ray.llm_teachers._completions import Answer, read_answer
from alkd_ray.types import Amounts, Usage

__all__ = ["Asker", "AskingSettings", "DeskFace", "Questions", "billed"]

BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MOST_SECONDS = 60.0
# A 429 is the endpoint's way to slow us down, not a failing request: far more of them are borne.
RATE_LIMITS_BORNE_PER_TRY = 10
WAIT_FOR_MONEY_SECONDS = 0.05
LANES_PER_SPARE_ONE = 4
# Who waited longer for money than this has missed its turn, and takes another one.
TURN_IS_GOOD_FOR_SECONDS = 1.0


class _PassOverError(Exception):
    """The desk grants nothing more."""


class _TooDearError(Exception):
    """What the cap leaves is too little for this request, not for every one."""


class _InBatchError(Exception):
    """The request is in a batch that another pass submitted."""


@dataclass(frozen=True, slots=True)
class _Request:
    """An attempt at a row's question.

    Attributes:
        question: the question.
        index: its row.
        attempt: 1, or 2 for asking again.
        body: the request without its response format.
        body_bytes: its size.
        worst: the most that it can cost.
    """

    question: Question
    index: int
    attempt: int
    body: dict[str, Any]
    body_bytes: int
    worst: Amounts


class Asker:
    """One worker; belongs to one event loop."""

    def __init__(
        self,
        questions: Questions,
        endpoint: Endpoint,
        rates: Rates,
        desk: DeskFace,
        settings: AskingSettings,
    ) -> None:
        self.questions = questions
        self.endpoint = endpoint
        self.rates = rates
        self.desk = desk
        self.settings = settings
        self._over = asyncio.Event()  # ends the waits of all lanes
        self.pace = Pace(settings.in_flight, self._over)
        self.refusals = Refusals()
        self.format = ResponseFormat(endpoint)
        self._schema: dict[str, Any] | None = None
        self._schema_size = 0
        self._rng = np.random.default_rng(settings.seed)  # jitter alone; no result depends on it
        self._pulled: deque[Row] = deque()
        self._pulling = asyncio.Lock()
        self._no_more = False

    async def run(self) -> None:
        """Works until there are no more rows or the pass is over.

        Raises:
            AlkdError: the desk cannot keep the books; then nothing more is sent.
            Exception: it cannot be reached, or a defect.
        """
        try:
            await self._run_lanes()
        except BaseExceptionGroup as group:
            # One lane's error ends the others; theirs are consequences of it.
            raise group.exceptions[0] from None

    def end(self) -> None:
        """The pass is over: nothing more is sent or waited for but answers that are under way."""
        self._no_more = True
        self._pulled.clear()
        self._over.set()

    async def _run_lanes(self) -> None:
        connections = self.settings.in_flight + 8
        async with (
            ChatClient(self.endpoint, connections) as client,
            asyncio.TaskGroup() as lanes,
        ):
            # More lanes than places in flight: while some read an answer, or wait for the books to
            # have it, others are ready to send.
            count = self.settings.in_flight + self.settings.in_flight // LANES_PER_SPARE_ONE
            for _ in range(min(count, len(self.questions))):
                lanes.create_task(self._lane(client))

    async def _lane(self, client: ChatClient) -> None:
        while (row := await self._next()) is not None:
            try:
                await self._answer(client, row)
            except _PassOverError:
                self.end()
            except _TooDearError:
                continue  # the row stays open: a later pass asks again

    async def _next(self) -> Row | None:
        async with self._pulling:
            if not self._pulled and not self._no_more:
                # Few at a time, so that no worker sits on rows that another could ask.
                wanted = max(1, self.settings.in_flight // 4)
                self._pulled.extend(await self.desk.do(Pull(self.settings.worker, wanted)))
                self._no_more = not self._pulled
            return self._pulled.popleft() if self._pulled else None

    async def _answer(self, client: ChatClient, row: Row) -> None:
        question = self.questions[row.index]
        if row.first_answer is not None:
            first: Answer | str = read_answer(row.first_answer)
        else:
            first = await self._buy(client, question, row.index, 1, question.body)
        if isinstance(first, str):
            return  # given up; the desk knows why
        reading = question.read(first.text)
        if reading.ask_again:
            reading = await self._asked_again(client, question, row.index, first, reading)
        await self.desk.do(
            Finish(
                self.settings.worker,
                row.index,
                question.key,
                tuple(reading.ranking.tolist()),
                reading.repairs,
                reading.failure,
            )
        )

    async def _asked_again(
        self, client: ChatClient, question: Question, index: int, first: Answer, reading: Reading
    ) -> Reading:
        body = question.ask_again(first.text, reading.ask_again)
        try:
            second = await self._buy(client, question, index, 2, body)
        except (_PassOverError, _TooDearError):
            if reading.failure:
                raise
            return reading
        if isinstance(second, str):
            return reading
        return max(reading, question.read(second.text), key=lambda found: found.worth)

    async def _buy(
        self,
        client: ChatClient,
        question: Question,
        index: int,
        attempt: int,
        body: dict[str, Any],
    ) -> Answer | str:
        """One answer, or the reason why there is none, which is recorded.

        Raises:
            _PassOverError: nothing more may be sent.
            _TooDearError: this cannot be paid.
        """
        request = self._request(question, index, attempt, body)
        errors = rate_limits = 0
        while True:
            try:
                outcome = await self._tried(client, request)
            except _InBatchError as error:
                return await self._given_up(request, str(error), False)
            if isinstance(outcome, Answer):
                return outcome
            if outcome is None:
                continue
            if isinstance(outcome, NotBilledError) and outcome.is_permanent:
                return await self._given_up(request, str(outcome), True)
            is_rate_limit = isinstance(outcome, NotBilledError) and outcome.status == 429
            rate_limits += is_rate_limit
            errors += not is_rate_limit
            if errors + rate_limits // RATE_LIMITS_BORNE_PER_TRY >= self.settings.tries:
                reason = f"gave up after {errors + rate_limits} tries: {outcome}"
                return await self._given_up(request, reason, False)
            await self._wait(outcome, errors + rate_limits)

    def _request(
        self, question: Question, index: int, attempt: int, body: dict[str, Any]
    ) -> _Request:
        body_bytes = body_in_bytes(body)
        if question.schema is not self._schema:  # nearly all rows of a pass have the same one
            self._schema, self._schema_size = question.schema, schema_size(question.schema)
        size = body_bytes + template_size(body) + self._schema_size
        worst = pricing.worst_case(self.rates, size, question.max_output_tokens)
        return _Request(question, index, attempt, body, body_bytes, worst)

    async def _tried(
        self, client: ChatClient, request: _Request
    ) -> Answer | NotBilledError | OutcomeUnknownError | None:
        """One sending, with its hold: the answer, or what went wrong; None: try again at once.

        Raises:
            _PassOverError: nothing more may be sent.
            _TooDearError: this cannot be paid.
            _InBatchError: this must not be sent.
        """
        async with self.pace.slot():
            turn = await self._turn(request)
            held = await self._held(request)
            if held is None or isinstance(held, Answer):
                return held
            asked_with = self.format.mode
            try:
                answer = await self._sent(client, held, request)
            except NotBilledError as error:
                await self.desk.do(Release(held))
                if self.format.gives_way(asked_with, error):
                    return None
                if over := self.refusals.why_over(error):
                    await self.desk.do(Stop("stopped", f"{self.endpoint.base_url}: {over}"))
                    raise _PassOverError from None
                return error
            except OutcomeUnknownError as error:
                await self.desk.do(LeaveUnresolved(held, str(error)))
                return error
            await self.desk.do(self._record(request, held, answer, turn))
            await self.pace.answered()
            self.refusals.answered()
            return answer

    async def _turn(self, request: _Request) -> Turn | None:
        """Waits until the endpoint's rate admits a request; None where there is no limit.

        Raises:
            _PassOverError: nothing more may be sent.
        """
        if not self.settings.takes_turns:
            return None
        question = request.question
        asked = TakeTurn(request.body_bytes, question.wanted, question.max_output_tokens)
        while True:
            turn: Turn = await self.desk.do(asked)
            await self._pause(turn.seconds)
            if turn.is_granted:
                return turn

    async def _held(self, request: _Request) -> str | Answer | None:
        """The id of a hold, or the answer that is there already; None: the turn was missed.

        Raises:
            _PassOverError: nothing more may be sent.
            _TooDearError: this cannot be paid.
            _InBatchError: this must not be sent.
        """
        key, kind = request.question.key, request.question.kind
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            hold_id = uuid4().hex
            verdict: Verdict = await self.desk.do(
                Hold(hold_id, key, kind, request.attempt, request.worst, self.settings.worker)
            )
            if verdict.granted:
                return hold_id
            if verdict.answer is not None:
                return read_answer(verdict.answer)
            if verdict.stop:
                raise _PassOverError
            if verdict.too_dear:
                raise _TooDearError
            if verdict.elsewhere == "batch":
                raise _InBatchError(verdict.reason)
            await self._pause(WAIT_FOR_MONEY_SECONDS * (1 + self._rng.random()))
            if self.settings.takes_turns and loop.time() - began > TURN_IS_GOOD_FOR_SECONDS:
                return None

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but not beyond the end of the pass.

        Raises:
            _PassOverError: it has ended.
        """
        if seconds <= 0:
            return
        try:
            await asyncio.wait_for(self._over.wait(), seconds)
        except TimeoutError:
            return
        raise _PassOverError

    async def _sent(self, client: ChatClient, hold_id: str, request: _Request) -> Answer:
        number = self.refusals.sent()
        try:
            return await client.ask(self.format.completed(request.body, request.question.schema))
        except asyncio.CancelledError:
            await asyncio.shield(self.desk.do(LeaveUnresolved(hold_id, "the worker was ended")))
            raise
        finally:
            self.refusals.ended(number)

    def _record(self, request: _Request, hold_id: str, answer: Answer, turn: Turn | None) -> Record:
        return Record(
            hold_id,
            request.question.key,
            request.attempt,
            answer.raw,
            answer.finish_reason,
            answer.usage,
            request.question.max_output_tokens,
            billed(self.rates, answer.usage, request.worst),
            # The second attempt's body is not the one that is stored.
            request_bytes=request.body_bytes if request.attempt == 1 else 0,
            turn_tokens=turn.tokens if turn else 0,
        )

    async def _given_up(self, request: _Request, reason: str, is_permanent: bool) -> str:
        await self.desk.do(
            GiveUp(
                self.settings.worker,
                request.index,
                request.question.key,
                reason,
                is_permanent,
                ends_row=request.attempt == 1,
            )
        )
        return reason

    async def _wait(self, problem: NotBilledError | OutcomeUnknownError, tries: int) -> None:
        """Retry-After where the endpoint gives one, else exponential backoff with full jitter."""
        most = min(BACKOFF_MOST_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(tries - 1, 20))
        seconds = float(self._rng.random() * most)
        if isinstance(problem, NotBilledError):
            if problem.retry_after_seconds is not None:
                seconds = problem.retry_after_seconds + float(self._rng.random()) * 0.1
            if problem.status == 429:
                self.pace.slowed(problem.retry_after_seconds or 0.0)
        await self._pause(seconds)


def billed(rates: Rates, usage: Usage | None, worst: Amounts) -> Amounts:
    """What an answer cost; without a usage block it is taken to have cost the worst."""
    if usage is None:
        return worst
    return Amounts(pricing.cost_microusd(rates, usage), usage.total_tokens, 1)
