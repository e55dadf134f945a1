"""The one place of a pass that hands out work and keeps the books.

Workers talk to it in operations, small records that can be sent between processes; a group of
them is one transaction. So a hold is committed before its request leaves, a raw answer and its
settlement are committed together before the answer is parsed, and nobody else writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from alkd_ray.annotation.database import Database, now
from alkd_ray.annotation.experience import Experience
from alkd_ray.annotation.ledger import BREACHED, IN_BATCH, IN_FLIGHT, Ledger
from alkd_ray.annotation.operations import (
    Finish,
    GiveUp,
    Hold,
    LeaveUnresolved,
    Pull,
    Record,
    Release,
    Row,
    RowRequest,
    Standing,
    Stop,
    StopStatus,
    TakeTurn,
    Verdict,
)
from alkd_ray.annotation.others import Others
from alkd_ray.annotation.page import Page
from alkd_ray.annotation.parse import PARSER_VERSION
from alkd_ray.annotation.pricing import usd
from alkd_ray.annotation.store import Store, StoredAnswer, StoredRanking, StoredRequest
from alkd_ray.annotation.turns import AT_ONCE, Turn, Turns
from alkd_ray.types import Amounts, Caps

ROWS_PER_COMMIT = 1_000


class Desk:
    """Work and books of one pass, on a writer of a store's database.

    Operations that report what happened (all but Pull and Hold) may be repeated: a worker that
    does not know whether the desk died before or after the commit says it again.

    Durability: when :meth:`apply` returns, its operations are on disk; a server of books that is
    lost is waited for, meanwhile nothing is granted and no report is lost. Concurrency: one thread
    at a time; :class:`alkd_ray.annotation.grouping.Grouped` gives many workers that.

    Other drivers (in PostgreSQL) may work on the same rows under the same budget. What they have
    in flight is not asked here: the row is put off, then their answer is taken. What they hold of
    the cap may be given back, so a pass waits for it as long as its holder lives.
    """

    def __init__(
        self,
        database: Database,
        budget: str,
        caps: Caps,
        owner: str,
        last_hold: int | None = None,
        turns: Turns | None = None,
        experience: Experience | None = None,
    ) -> None:
        """Opens the budget; holds that a dead writer left become unresolved.

        Args:
            database: the books, open for writing.
            budget: what is held against.
            caps: its caps.
            owner: the run.
            last_hold: number of the last hold before the pass; None = the pass begins now.
            turns: the endpoint's rate; None = no limit.
            experience: what is known of its tokens; it grows with the pass.
        """
        self.database = database
        self.ledger = Ledger(database)
        self.store = Store(database)
        self.budget = budget
        self.owner = owner
        with database.transaction():
            self.ledger.recover()
            self.ledger.open_budget(budget, caps)
        self._waiting: deque[int] = deque()
        self._first_answers: dict[int, str] = {}
        self._pulled: dict[str, set[int]] = {}
        self._holds: dict[str, str] = {}  # hold -> worker, of this pass, not settled
        self._finished: set[str] = set()
        self._rows = self._failed = 0
        self.last_hold = self.ledger.last_number() if last_hold is None else last_hold
        self._stop: Stop | None = None
        self._too_dear = ""  # why rows were passed over
        self._keys: dict[int, str] = {}
        self._others = Others[Verdict](self.ledger, budget)
        self._turns = turns
        self._experience = experience or Experience()

    def add(
        self,
        rows: Iterable[RowRequest],
        first_answers: Mapping[int, str],
        endpoint: str,
        model: str,
    ) -> None:
        """Rows to be asked, of one endpoint and model."""
        left = iter(rows)
        while group := list(islice(left, ROWS_PER_COMMIT)):  # others write in between
            at = now()
            asked = [
                StoredRequest(
                    row.key,
                    endpoint,
                    model,
                    row.kind,
                    row.prompt_version,
                    row.session_id,
                    row.body,
                    at,
                )
                for row in group
            ]
            with self.database.transaction():
                self.store.put_requests(asked)
            for row in group:
                self._waiting.append(row.index)
                self._keys[row.index] = row.key
                self._rows += 1
        self._first_answers.update(first_answers)

    def apply(self, operations: Sequence[Any]) -> list[Any]:
        """Carries out operations in order, in one transaction; one result for each."""
        known = [
            self._others.refusal(operation.key)
            if isinstance(operation, Hold) and self._stop is None
            else None
            for operation in operations
        ]
        if known and all(known):
            return known  # those who wait keep nobody else from the books
        pulled: dict[int, tuple[Row, ...]] = {}

        def carry_out(page: Page, number: int, operation: Any, again: bool) -> Any:
            if isinstance(operation, Pull):
                if number not in pulled:  # rows leave the desk whatever becomes of the books
                    pulled[number] = self._pull(operation)
                return pulled[number]
            if isinstance(operation, Hold) and again:  # perhaps held, certainly not sent
                self._release(page, operation.hold_id)
                return Verdict(False, reason="the connection to the books was lost for a moment")
            return known[number] or self._carry_out(page, operation)

        def act(again: bool) -> list[Any]:
            with self.database.transaction():
                page = Page(self.database, self.store, operations)
                results = [
                    carry_out(page, number, operation, again)
                    for number, operation in enumerate(operations)
                ]
                page.write()
            return results

        return self.database.patiently(act)

    def adopt(self, holds: Sequence[str], worker: str) -> None:
        """Takes over holds of an earlier process, those of a batch that is under way."""
        self._holds.update(dict.fromkeys(holds, worker))

    def disown(self, holds: Sequence[str]) -> None:
        """Thinks no more of holds that ended, or are another driver's now."""
        for hold_id in holds:
            self._holds.pop(hold_id, None)

    @property
    def is_stopped(self) -> bool:
        """Nothing more is granted."""
        return self._stop is not None

    def return_rows(self, worker: str) -> int:
        """Takes back what a dead worker had: its holds are unresolved, its rows wait again."""
        rows = self._pulled.pop(worker, set())
        left = [hold for hold, owner in self._holds.items() if owner == worker]
        with self.ledger.sheet(left) as sheet:
            for hold_id in left:
                sheet.leave(hold_id, f"worker {worker} died")
                del self._holds[hold_id]
        self._waiting.extendleft(sorted(rows, reverse=True))
        return len(rows)

    def standing(self) -> Standing:
        """How the pass stands."""
        sent, ledger = self.database.patiently(
            lambda _: (
                self.ledger.sent_since(self.budget, self.last_hold, self.owner),
                self.ledger.state(self.budget),
            )
        )
        return Standing(
            self._rows,
            len(self._finished),
            self._failed,
            len(self._holds),
            sent,
            self._stop.status if self._stop else None,
            self._stop.reason if self._stop else self._too_dear,
            ledger,
        )

    def _carry_out(self, page: Page, operation: Any) -> Any:
        match operation:
            case TakeTurn():
                return self._turn(operation)
            case Hold():
                return self._hold(page, operation)
            case Record():
                self._record(page, operation)
            case Release(hold_id):
                self._release(page, hold_id)
            case LeaveUnresolved(hold_id, why):
                self._holds.pop(hold_id, None)
                if page.sheet.status_of(hold_id) in ("held", None):  # of none it says so
                    page.sheet.leave(hold_id, why)
            case Finish():
                self._finish(page, operation)
            case GiveUp():
                self.store.put_failure(
                    operation.key, permanent=operation.is_permanent, reason=operation.reason
                )
                if operation.ends_row:
                    self._count(operation, failed=True)
            case Stop():
                self._stop = self._stop or operation
            case _:
                raise TypeError(f"no such operation: {operation!r}")
        return None

    def _pull(self, pull: Pull) -> tuple[Row, ...]:
        if self._stop is not None:
            return ()
        self._others.put_off(self._waiting, self._keys, pull.most)
        mine = self._pulled.setdefault(pull.worker, set())
        rows = []
        while self._waiting and len(rows) < pull.most:
            index = self._waiting.popleft()
            mine.add(index)
            rows.append(Row(index, self._first_answers.get(index)))
        return tuple(rows)

    def _turn(self, asked: TakeTurn) -> Turn:
        if self._turns is None or self._stop is not None:
            return AT_ONCE
        known = self._experience
        output = known.output(asked.wanted, asked.max_output_tokens)
        return self._turns.take(known.prompt(asked.request_bytes) + output)

    def _hold(self, page: Page, hold: Hold) -> Verdict:
        bought = page.bought(hold.key, hold.attempt)
        if bought is not None:
            return Verdict(False, answer=bought)
        if self._stop is not None:
            return Verdict(False, stop=True, reason=self._stop.reason)
        reason = page.sheet.hold(
            self.budget,
            hold.hold_id,
            hold.worst,
            owner=self.owner,
            key=hold.key,
            kind=hold.kind,
            attempt=hold.attempt,
            batch=hold.batch,
        )
        if not reason:
            self._holds[hold.hold_id] = hold.worker
            return Verdict(True)
        if self._others.are_possible:
            page.write()  # what follows may look for holds of the dead
        if reason.startswith(IN_BATCH):
            return Verdict(False, reason=reason, elsewhere="batch")
        if reason.startswith(IN_FLIGHT):
            verdict = Verdict(False, reason=reason, elsewhere="request")
            return self._others.wait(hold.key, verdict)
        if self._holds:  # what others hold may yet be given back
            return Verdict(False, reason=reason)
        if not reason.startswith(BREACHED) and self._others.hold_a_part():
            return self._others.wait(hold.key, Verdict(False, reason=reason))
        status: StopStatus = "breached" if reason.startswith(BREACHED) else "stopped"
        if status == "stopped" and hold.attempt > 1:  # longer than what asks first
            self._too_dear = self._too_dear or reason
            return Verdict(False, too_dear=True, reason=reason)
        self._stop = Stop(status, reason)
        return Verdict(False, stop=True, reason=reason)

    def _release(self, page: Page, hold_id: str) -> None:
        self._holds.pop(hold_id, None)
        status = page.sheet.status_of(hold_id)  # None: the desk died before it was committed
        if status == "held":
            page.sheet.release(hold_id)
        elif status == "unresolved":  # the desk died meanwhile; the worker knows it was not billed
            page.sheet.settle(hold_id, Amounts(), by_hand=True)

    def _record(self, page: Page, record: Record) -> None:
        if page.sheet.status_of(record.hold_id) == "settled":
            self._holds.pop(record.hold_id, None)
            return
        usage = record.usage
        wrote = usage.completion_tokens if usage else 0
        breached = page.sheet.settle(
            record.hold_id, record.actual, broke_its_limit=wrote > record.allowed_tokens
        )
        page.put_answer(
            StoredAnswer(
                record.key,
                record.attempt,
                record.raw,
                record.finish_reason,
                usage,
                record.actual.microusd,
                record.hold_id,
                page.at,
            )
        )
        self._holds.pop(record.hold_id, None)
        if breached:
            above = page.sheet.totals(self.budget).breached.microusd
            self._stop = Stop("breached", _breach(above, wrote, record.allowed_tokens))
        if usage is not None and record.request_bytes:
            self._experience.add(record.request_bytes, usage.prompt_tokens, wrote)
        if usage is not None and self._turns is not None:
            self._turns.correct(record.turn_tokens, usage.total_tokens)

    def _finish(self, page: Page, finish: Finish) -> None:
        ranking = np.asarray(finish.ranking, np.int64)
        page.put_ranking(
            StoredRanking(finish.key, PARSER_VERSION, ranking, finish.repairs, finish.failure)
        )
        self._count(finish, failed=bool(finish.failure))

    def _count(self, ended: Finish | GiveUp, failed: bool) -> None:
        self._pulled.get(ended.worker, set()).discard(ended.index)
        if ended.key not in self._finished:
            self._finished.add(ended.key)
            self._failed += failed


def _breach(above: int, wrote: int, allowed: int) -> str:
    """What the endpoint did, ``above`` micro-dollars beyond the holds of its budget in all."""
    if above:
        return (
            "the endpoint billed more than was held (it ignores the limit of the output), "
            f"{usd(above)} above it in all; nothing more was sent"
        )
    return (
        f"the endpoint wrote {wrote} tokens where {allowed} were allowed, so no hold bounds "
        "its bill; nothing more was sent"
    )
