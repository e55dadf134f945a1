"""The ledger: what was spent, what may still be spent, and on which requests.

Before a request leaves, its worst case is held. When its answer is in, the hold is settled at what
it cost; when it never left, the hold is released; when nobody knows, it stays, unresolved. At
every instant, for each capped unit, ``settled + held + unresolved <= cap``. Only an endpoint that
bills more than the worst case can break this; the overshoot is settled in full, recorded as a
breach, and stops admission.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable
from dataclasses import asdict
from typing import Any

from alkd_ray.annotation.database import Database, now
from alkd_ray.annotation.entries import (
    BREACHED,
    HOLD_COLUMNS,
    IN_BATCH,
    IN_FLIGHT,
    LARGEST_AMOUNT,
    HoldEntry,
    HoldStatus,
    LedgerError,
    NotedRates,
    entry_of,
    is_raised,
)
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.sheet import NOTHING, Sheet, totals_of
from alkd_ray.types import Amounts, Caps, LedgerState

__all__ = [
    "BREACHED",
    "IN_BATCH",
    "IN_FLIGHT",
    "HoldEntry",
    "HoldStatus",
    "Ledger",
    "LedgerError",
    "NotedRates",
]


class Ledger:
    """Budgets and holds in one :class:`~alkd_ray.annotation.database.Database`.

    Every method is one transaction, joined to the caller's where one is open, so that many share
    one commit and an answer can be stored in the same commit as its settlement. When a method
    raises, nothing changed. What it did is durable once the outermost transaction has ended; a
    request may be sent only after that.

    A process that opens the books after another one died calls :meth:`recover` first.

    Admission reads one row of running totals, whatever the number of holds. Who makes and ends
    many holds at once does so on a :meth:`sheet`; the methods here are sheets of one line.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextlib.contextmanager
    def sheet(self, holds: Iterable[str], keys: Iterable[str] = ()) -> Generator[Sheet]:
        """A transaction that makes and ends holds; what was changed is written at its end.

        Args:
            holds: ids that will be needed.
            keys: keys of the requests that will be held for.
        """
        with self.database.transaction():
            sheet = Sheet(self.database)
            sheet.look_up(holds, keys)
            yield sheet
            sheet.write()

    def open_budget(self, name: str, caps: Caps) -> LedgerState:
        """Makes a budget, or gives it other caps.

        A cap below what is spent is allowed: nothing more is admitted. Raising a cap (or taking
        it away) accepts the budget's breaches, so that admission goes on.
        """
        for cap in (caps.microusd, caps.tokens, caps.requests):
            if cap is not None and not 0 <= cap <= LARGEST_AMOUNT:
                raise LedgerError(f"budget {name!r}: a cap of {cap} is not in 0..{LARGEST_AMOUNT}")
        with self.database.transaction():
            row = self.database.execute(
                "SELECT cap_microusd, cap_tokens, cap_requests FROM budgets WHERE name = ?", (name,)
            ).fetchone()
            values = (caps.microusd, caps.tokens, caps.requests)
            if row is None:
                self.database.execute(
                    "INSERT INTO budgets (cap_microusd, cap_tokens, cap_requests, name, opened_at) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (*values, name, now()),
                )
            elif row != values:
                self.database.execute(
                    "UPDATE budgets SET cap_microusd = ?, cap_tokens = ?, cap_requests = ? "
                    "WHERE name = ?",
                    (*values, name),
                )
                if any(is_raised(old, new) for old, new in zip(row, values, strict=True)):
                    self._accept_breaches(name)
            return self.state(name)

    def hold(
        self,
        budget: str,
        hold_id: str,
        worst: Amounts,
        owner: str = "",
        key: str = "",
        kind: str = "",
        attempt: int = 1,
        batch: str = "",
    ) -> str:
        """Sets the worst case of a request aside, if the caps allow it.

        Args:
            budget: an open budget.
            hold_id: a new id of the caller's making.
            worst: the most that the request can cost.
            owner: id of the run that asks.
            key: the request's key; while it is held, a second hold of the same key is refused.
            kind: ``rank`` or ``hints``.
            attempt: 1 for the question, 2 for asking again.
            batch: the batch that it will be sent in; such a hold outlives its writer.

        Returns:
            "" when granted, else one sentence that says why not. It begins with
            :data:`IN_FLIGHT` or :data:`IN_BATCH` (the same request is under way), with
            :data:`BREACHED`, or it names the cap, what is left of it and what the request may cost.
        """
        with self.sheet([hold_id], [key]) as sheet:
            return sheet.hold(
                budget,
                hold_id,
                worst,
                owner=owner,
                key=key,
                kind=kind,
                attempt=attempt,
                batch=batch,
            )

    def settle(self, hold_id: str, actual: Amounts, *, broke_its_limit: bool = False) -> bool:
        """Ends a hold, also an unresolved one (a late answer), at what it cost.

        Args:
            hold_id: the hold.
            actual: what was billed.
            broke_its_limit: the endpoint wrote more than it was allowed; even where that was
                cheaper than the hold, its next answer need not be.

        Returns:
            True for a breach: ``actual`` is more than was held, in any unit, or the limit was
            broken. All of it is settled, and the budget admits nothing more until the breach is
            accepted or a cap raised.
        """
        with self.sheet([hold_id]) as sheet:
            return sheet.settle(hold_id, actual, broke_its_limit=broke_its_limit)

    def release(self, hold_id: str) -> None:
        """Gives a whole hold back: the request never left, or was refused unbilled."""
        with self.sheet([hold_id]) as sheet:
            sheet.release(hold_id)

    def leave_unresolved(self, hold_id: str, why: str) -> None:
        """Keeps a hold whose outcome is not known; it goes on counting against the caps."""
        with self.sheet([hold_id]) as sheet:
            sheet.leave(hold_id, why)

    def recover(self) -> int:
        """Marks what dead writers left held as unresolved; returns how many.

        Writers that are alive (in PostgreSQL there may be others) keep theirs. Holds of a batch
        stay: what became of it can be asked for, until :meth:`abandon`.
        """
        with self.database.transaction():
            rows = self.database.execute(
                "SELECT DISTINCT writer FROM holds WHERE status = 'held' AND batch = ''"
            ).fetchall()
            dead = {writer for (writer,) in rows} - {self.database.writer}
            if dead:
                dead -= self.database.live_writers()
            left: list[str] = []
            for writer in sorted(dead):
                found = self._entries(
                    "WHERE status = 'held' AND batch = '' AND writer = ?", (writer,)
                )
                left += [entry.hold_id for entry in found]
            with self.sheet(left) as sheet:
                for hold_id in left:
                    sheet.leave(
                        hold_id, "the process that sent it ended before the answer was recorded"
                    )
        return len(left)

    def resolve(self, hold_id: str, actual: Amounts) -> None:
        """Settles an unresolved hold by hand; zero amounts write it off.

        More than was held is recorded as a breach that is accepted already: a person saw it.
        """
        with self.sheet([hold_id]) as sheet:
            sheet.settle(hold_id, actual, by_hand=True)

    def abandon(self, batch: str) -> int:
        """Makes the holds of a batch that nobody will collect unresolved; returns how many."""
        left = self._of_batch(batch, "held")
        with self.sheet(entry.hold_id for entry in left) as sheet:
            for entry in left:
                sheet.leave(entry.hold_id, "its batch was given up by hand")
        return len(left)

    def write_off(self, batch: str) -> int:
        """Settles all unresolved holds of a batch at nothing, by hand; returns how many."""
        left = self._of_batch(batch, "unresolved")
        with self.sheet(entry.hold_id for entry in left) as sheet:
            for entry in left:
                sheet.settle(entry.hold_id, NOTHING, by_hand=True)
        return len(left)

    def _of_batch(self, batch: str, status: HoldStatus) -> list[HoldEntry]:
        return self._entries("WHERE status = ? AND batch = ? AND batch <> ''", (status, batch))

    def accept_breach(self, hold_id: str) -> None:
        """Records that a person has seen a breach; without open ones the budget admits again."""
        with self.database.transaction():
            entry = self.entry(hold_id)
            if not entry.breached or entry.breach_accepted:
                raise LedgerError(f"hold {hold_id!r} has no breach to accept")
            self.database.execute(
                "UPDATE holds SET breach_accepted = 1 WHERE hold_id = ?", (hold_id,)
            )
            self.database.execute(
                "UPDATE budgets SET open_breaches = open_breaches - 1 WHERE name = ?",
                (entry.budget,),
            )

    def state(self, budget: str) -> LedgerState:
        """The budget's totals and caps."""
        return totals_of(self.database, budget).state()

    def open_breaches(self, budget: str) -> int:
        """Breaches that nobody has accepted; while there are any, nothing is admitted."""
        return totals_of(self.database, budget).open_breaches

    def audit(self, budget: str) -> bool:
        """Whether the running totals equal those added up from the budget's holds."""
        with self.database.transaction():
            totals = {name: Amounts() for name in ("settled", "held", "unresolved")}
            breached, open_breaches = Amounts(), 0
            for entry in self.entries(budget):
                if entry.status == "settled":
                    totals["settled"] += entry.actual
                    breached += entry.overshoot
                    open_breaches += entry.breached and not entry.breach_accepted
                elif entry.status != "released":
                    totals[entry.status] += entry.worst
            counted = totals_of(self.database, budget)
            state = counted.state()
            return (
                totals == {name: getattr(state, name) for name in totals}
                and breached == self.total_breach(budget)
                and open_breaches == counted.open_breaches
            )

    def entries(
        self, budget: str | None = None, status: HoldStatus | None = None
    ) -> list[HoldEntry]:
        """Holds in the order of holding; of all budgets when ``budget`` is None."""
        given = {"budget": budget, "status": status}
        wanted = {column: value for column, value in given.items() if value is not None}
        conditions = " AND ".join(f"{column} = ?" for column in wanted)
        return self._entries(f"WHERE {conditions}" if wanted else "", tuple(wanted.values()))

    def last_number(self) -> int:
        """Number of the latest hold of the file, 0 for none; they are numbered in order."""
        return self.database.execute("SELECT coalesce(max(number), 0) FROM holds").fetchone()[0]

    def sent_since(self, budget: str, number: int, owner: str) -> int:
        """The owner's requests that were sent after hold ``number``; released ones were not."""
        return self.database.execute(
            "SELECT count(*) FROM holds WHERE budget = ? AND number > ? AND owner = ? "
            "AND status <> 'released'",
            (budget, number, owner),
        ).fetchone()[0]

    def is_in_flight(self, budget: str) -> bool:
        """Whether anything is held that may soon be given back: a batch's holds may take a day."""
        row = self.database.execute(
            "SELECT 1 FROM holds WHERE budget = ? AND status = 'held' AND batch = '' LIMIT 1",
            (budget,),
        ).fetchone()
        return row is not None

    def keys_of_others(self) -> set[str]:
        """Keys of requests that other writers have in flight."""
        rows = self.database.execute(
            "SELECT request_key FROM holds "
            "WHERE status = 'held' AND batch = '' AND request_key <> '' AND writer <> ?",
            (self.database.writer,),
        )
        return {key for (key,) in rows}

    def unresolved_keys(self, budget: str, number: int) -> set[str]:
        """Keys of the requests sent after hold ``number`` whose outcome is not known."""
        rows = self.database.execute(
            "SELECT DISTINCT request_key FROM holds WHERE budget = ? AND number > ? "
            "AND status = 'unresolved'",
            (budget, number),
        )
        return {key for (key,) in rows}

    def entry(self, hold_id: str) -> HoldEntry:
        """One hold by its id."""
        found = self._find(hold_id)
        if found is None:
            raise LedgerError(f"there is no hold {hold_id!r}; alkd ledger show lists them")
        return found

    def status_of(self, hold_id: str) -> HoldStatus | None:
        """A hold's status; None where there is no such hold."""
        found = self._find(hold_id)
        return found.status if found else None

    def budgets(self) -> list[str]:
        """Names, sorted."""
        rows = self.database.execute("SELECT name FROM budgets ORDER BY name")
        return [name for (name,) in rows]

    def spent_by_owner(self, budget: str) -> dict[str, Amounts]:
        """Owner -> what its answers cost, sorted by owner."""
        rows = self.database.execute(
            "SELECT owner, sum(actual_microusd), sum(actual_tokens), sum(actual_requests) "
            "FROM holds WHERE budget = ? AND status = 'settled' GROUP BY owner ORDER BY owner",
            (budget,),
        )
        return {owner: Amounts(*amounts) for owner, *amounts in rows}

    def total_breach(self, budget: str | None = None) -> Amounts:
        """What endpoints billed beyond their holds, accepted or not; over all budgets for None."""
        rows = self.database.execute(
            "SELECT breached_microusd, breached_tokens, breached_requests, name FROM budgets"
        )
        breaches = [Amounts(*row[:3]) for row in rows if budget in (None, row[3])]
        return sum(breaches, NOTHING)

    def note_rates(self, budget: str, model: str, rates: Rates) -> None:
        """Records the rates that requests are priced with; the same ones only once."""
        with self.database.transaction():
            totals_of(self.database, budget)  # raises where there is none
            self.database.execute(
                "INSERT INTO rates (budget, model, source, rates, noted_at) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (budget, model, rates.source, json.dumps(asdict(rates)), now()),
            )

    def noted_rates(self, budget: str) -> list[NotedRates]:
        """All rates ever used with the budget, in the order of noting."""
        rows = self.database.execute(
            "SELECT model, source, rates, noted_at FROM rates WHERE budget = ? ORDER BY rowid",
            (budget,),
        )
        return [NotedRates(*row) for row in rows]

    def _accept_breaches(self, budget: str) -> None:
        self.database.execute(
            "UPDATE holds SET breach_accepted = 1 WHERE budget = ? AND breached = 1", (budget,)
        )
        self.database.execute("UPDATE budgets SET open_breaches = 0 WHERE name = ?", (budget,))

    def _find(self, hold_id: str) -> HoldEntry | None:
        found = self._entries("WHERE hold_id = ?", (hold_id,))
        return found[0] if found else None

    def _entries(self, condition: str, parameters: tuple[Any, ...]) -> list[HoldEntry]:
        rows = self.database.execute(
            f"SELECT {HOLD_COLUMNS} FROM holds {condition} ORDER BY number",  # noqa: S608 - our own text
            parameters,
        )
        return [entry_of(row) for row in rows]
