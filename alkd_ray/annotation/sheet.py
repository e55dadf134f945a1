"""The ledger's lines while they are changed: read together, worked on in memory, written together.

A group of operations is one transaction, and in it every table is read once and written once,
however many holds are made and ended. The rules of admission are here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from alkd_ray.annotation.database import Database, now
from alkd_ray.annotation.entries import (
    IN_BATCH,
    IN_FLIGHT,
    TOTAL_COLUMNS,
    HoldStatus,
    LedgerError,
    beyond,
    check,
    in_units,
    minus,
    refusal,
)
from alkd_ray.types import Amounts, Caps, LedgerState

NOTHING = Amounts()

_LINE_COLUMNS = """
    hold_id, budget, status, request_key, batch, worst_microusd, worst_tokens, worst_requests, why
"""
_LISTED = "(SELECT value FROM json_each(?))"
_FIND = (
    f"SELECT {_LINE_COLUMNS} FROM holds WHERE hold_id IN {_LISTED} UNION ALL "  # noqa: S608 - our own text
    f"SELECT {_LINE_COLUMNS} FROM holds WHERE request_key IN {_LISTED} "
    "AND status = 'held' AND request_key <> ''"
)
_INSERT = (
    "INSERT INTO holds (hold_id, budget, owner, request_key, kind, attempt, batch, writer, "
    "worst_microusd, worst_tokens, worst_requests, held_at, status, actual_microusd, "
    "actual_tokens, actual_requests, breached, breach_accepted, by_hand, why, ended_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE = (
    "UPDATE holds SET status = ended.column2, actual_microusd = ended.column3, "
    "actual_tokens = ended.column4, actual_requests = ended.column5, breached = ended.column6, "
    "breach_accepted = ended.column7, by_hand = ended.column8, why = ended.column9, "
    "ended_at = ended.column10 "
    "FROM (VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)) AS ended WHERE holds.hold_id = ended.column1"
)
_ADD = (
    "UPDATE budgets SET settled_microusd = settled_microusd + ?, "
    "settled_tokens = settled_tokens + ?, settled_requests = settled_requests + ?, "
    "held_microusd = held_microusd + ?, held_tokens = held_tokens + ?, "
    "held_requests = held_requests + ?, unresolved_microusd = unresolved_microusd + ?, "
    "unresolved_tokens = unresolved_tokens + ?, unresolved_requests = unresolved_requests + ?, "
    "breached_microusd = breached_microusd + ?, breached_tokens = breached_tokens + ?, "
    "breached_requests = breached_requests + ?, open_breaches = open_breaches + ? "
    "WHERE name = ?"
)


@dataclass(slots=True)
class _Line:
    """A hold as far as its end needs it; ``given``: what only a new one's row is made of."""

    hold_id: str
    budget: str
    status: HoldStatus
    key: str
    batch: str
    worst: Amounts
    why: str
    actual: Amounts = NOTHING
    breached: bool = False
    breach_accepted: bool = False
    by_hand: bool = False
    ended_at: str = ""
    given: tuple[Any, ...] | None = None

    def ending(self) -> tuple[Any, ...]:
        """What changes when it ends, in the order of :data:`_UPDATE` and of :data:`_INSERT`."""
        return (
            self.status,
            *in_units(self.actual),
            self.breached,
            self.breach_accepted,
            self.by_hand,
            self.why,
            self.ended_at,
        )


class BudgetTotals:
    """A budget's running totals, in memory."""

    __slots__ = (
        "_before",
        "breached",
        "caps",
        "held",
        "name",
        "open_breaches",
        "settled",
        "unresolved",
    )

    def __init__(self, name: str, row: tuple[Any, ...]) -> None:
        """From a row of :data:`TOTAL_COLUMNS`."""
        self.name = name
        self.settled = Amounts(*row[0:3])
        self.held = Amounts(*row[3:6])
        self.unresolved = Amounts(*row[6:9])
        self.caps = Caps(*row[9:12])
        self.breached = Amounts(*row[12:15])
        self.open_breaches: int = row[15]
        self._before = self._sums()

    def state(self) -> LedgerState:
        """The totals and caps."""
        return LedgerState(
            self.settled, self.held, self.unresolved, self.caps, self.breached.microusd
        )

    def changes(self) -> list[int]:
        """What was added to each column since it was read, in the order of :data:`_ADD`."""
        return [new - old for new, old in zip(self._sums(), self._before, strict=True)]

    def _sums(self) -> tuple[int, ...]:
        return (
            *in_units(self.settled),
            *in_units(self.held),
            *in_units(self.unresolved),
            *in_units(self.breached),
            self.open_breaches,
        )


class Sheet:
    """Holds and totals of one transaction, from what was read to what will be written.

    For the transaction that it was made in, and the only one there that changes holds and totals
    until :meth:`write`. Operations see those before them. One that raises :class:`LedgerError`
    leaves the sheet as it was; the caller gives up the transaction, or goes on without it.

    Admission is worked out from the totals that the transaction has read, so nothing is granted
    past a cap, whichever holds of a group come first.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.at = now()
        self._budgets: dict[str, BudgetTotals] = {}
        self._forget_lines()

    def look_up(self, holds: Iterable[str], keys: Iterable[str] = ()) -> None:
        """Reads lines by their ids, and what is in flight for the keys, in one statement.

        What was not looked up is read when it is needed, one by one.
        """
        ids = [hold_id for hold_id in holds if hold_id not in self._looked_for]
        wanted = [key for key in keys if key and key not in self._looked_at]
        if not ids and not wanted:
            return
        self._looked_for.update(ids)
        self._looked_at.update(wanted)
        rows = self.database.execute(_FIND, (json.dumps(ids), json.dumps(wanted)))
        for hold_id, budget, status, key, batch, *worst, why in rows:
            if hold_id not in self._lines:  # both halves of the statement may find it
                line = _Line(hold_id, budget, status, key, batch, Amounts(*worst), why)
                self._add_line(line)

    def hold(
        self,
        budget: str,
        hold_id: str,
        worst: Amounts,
        *,
        owner: str,
        key: str,
        kind: str,
        attempt: int,
        batch: str,
    ) -> str:
        """Sets a worst case aside; see :meth:`alkd_ray.annotation.ledger.Ledger.hold`."""
        check(worst, f"hold {hold_id!r}")
        if hold_id not in self._looked_for or key not in self._looked_at:
            self.look_up([hold_id], [key])
        totals = self.totals(budget)
        refused = self._in_flight(key) or refusal(
            budget, totals.state(), totals.open_breaches, worst
        )
        if refused:
            return refused
        if hold_id in self._lines:
            raise LedgerError(f"hold {hold_id!r} exists already; each request needs its own id")
        line = _Line(hold_id, budget, "held", key, batch, worst, "")
        line.given = (
            hold_id,
            budget,
            owner,
            key,
            kind,
            attempt,
            batch,
            self.database.writer,
            *in_units(worst),
            self.at,
        )
        self._add_line(line)
        self._changed[hold_id] = line
        totals.held += worst
        return ""

    def settle(
        self,
        hold_id: str,
        actual: Amounts,
        *,
        broke_its_limit: bool = False,
        by_hand: bool = False,
    ) -> bool:
        """Ends a hold at what it cost; see :meth:`alkd_ray.annotation.ledger.Ledger.settle`.

        By hand only an unresolved one is ended, and a breach is accepted as it is recorded.
        """
        line = self._open(hold_id, ("unresolved",) if by_hand else ("held", "unresolved"))
        check(actual, f"hold {hold_id!r}")
        overshoot = beyond(actual, line.worst)
        breached = broke_its_limit or overshoot != NOTHING
        totals = self._end(line, "settled")
        line.actual, line.by_hand = actual, by_hand
        line.breached, line.breach_accepted = breached, breached and by_hand
        totals.settled += actual
        totals.breached += overshoot
        totals.open_breaches += breached and not by_hand
        return breached

    def release(self, hold_id: str) -> None:
        """Gives a whole hold back."""
        self._end(self._open(hold_id, ("held",)), "released")

    def leave(self, hold_id: str, why: str) -> None:
        """Keeps a hold whose outcome is not known, as unresolved."""
        line = self._open(hold_id, ("held",))
        self._end(line, "unresolved").unresolved += line.worst
        line.why = why

    def status_of(self, hold_id: str) -> HoldStatus | None:
        """A hold's status; None where there is no such hold."""
        if hold_id not in self._looked_for:
            self.look_up([hold_id])
        line = self._lines.get(hold_id)
        return line.status if line else None

    def totals(self, budget: str) -> BudgetTotals:
        """The budget's totals as they will be written."""
        if budget not in self._budgets:
            self._budgets[budget] = totals_of(self.database, budget)
        return self._budgets[budget]

    def write(self) -> None:
        """Writes what changed. Afterwards everything is read again when it is needed."""
        new = [line for line in self._changed.values() if line.given is not None]
        ended = [line for line in self._changed.values() if line.given is None]
        # In this order: a new hold may be of a key whose hold has just ended.
        self.database.execute_rows(_UPDATE, [(line.hold_id, *line.ending()) for line in ended])
        self.database.execute_rows(
            _INSERT, [(*line.given, *line.ending()) for line in new if line.given is not None]
        )
        for totals in self._budgets.values():
            changes = totals.changes()
            if any(changes):
                self.database.execute(_ADD, (*changes, totals.name))
        self._budgets.clear()
        self._forget_lines()

    def _forget_lines(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._held_by_key: dict[str, _Line] = {}
        self._changed: dict[str, _Line] = {}
        self._looked_for: set[str] = set()
        self._looked_at: set[str] = set()

    def _add_line(self, line: _Line) -> None:
        self._lines[line.hold_id] = line
        if line.key and line.status == "held":
            self._held_by_key[line.key] = line

    def _open(self, hold_id: str, allowed: tuple[HoldStatus, ...]) -> _Line:
        if hold_id not in self._looked_for:
            self.look_up([hold_id])
        line = self._lines.get(hold_id)
        if line is None:
            raise LedgerError(f"there is no hold {hold_id!r}; alkd ledger show lists them")
        if line.status not in allowed:
            is_in_batch = bool(line.batch) and line.status == "held"
            hint = f" (alkd annotate abandon {line.batch} ends its batch)" if is_in_batch else ""
            raise LedgerError(
                f"hold {hold_id!r} is {line.status}; this needs one that is "
                f"{' or '.join(allowed)}{hint}"
            )
        return line

    def _end(self, line: _Line, status: HoldStatus) -> BudgetTotals:
        """Takes an open hold's worst case off the totals it was in, and returns these."""
        totals = self.totals(line.budget)
        if line.status == "held":
            totals.held = minus(totals.held, line.worst)
            self._held_by_key.pop(line.key, None)
        else:
            totals.unresolved = minus(totals.unresolved, line.worst)
        line.status, line.ended_at = status, self.at
        self._changed[line.hold_id] = line
        return totals

    def _in_flight(self, key: str) -> str:
        line = self._held_by_key.get(key)
        if line is None:
            return ""
        if line.batch:
            return (
                f"{IN_BATCH}: batch {line.batch} has the same request; annotation.mode=batch "
                "collects it, alkd annotate abandon gives it up"
            )
        return f"{IN_FLIGHT}: the same request was sent under hold {line.hold_id!r}"


def totals_of(database: Database, budget: str) -> BudgetTotals:
    """The totals of a budget as they are in the books.

    Raises:
        LedgerError: there is no such budget.
    """
    row = database.execute(
        f"SELECT {TOTAL_COLUMNS} FROM budgets WHERE name = ?",  # noqa: S608 - our own column names
        (budget,),
    ).fetchone()
    if row is None:
        names = database.execute("SELECT name FROM budgets ORDER BY name").fetchall()
        known = ", ".join(name for (name,) in names) or "none"
        raise LedgerError(f"there is no budget {budget!r} in these books; there are: {known}")
    return BudgetTotals(budget, row)
