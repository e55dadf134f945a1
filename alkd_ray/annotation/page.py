"""What one group of operations does to the books: every table is read once, and written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alkd_ray.annotation.database import Database
from alkd_ray.annotation.operations import Hold, LeaveUnresolved, Record, Release
from alkd_ray.annotation.sheet import Sheet
from alkd_ray.annotation.store import Store, StoredAnswer, StoredRanking


class Page:
    """Holds, answers and readings of the transaction that it was made in, until :meth:`write`.

    Lines of the ledger are on its :attr:`sheet`. An answer and the settlement of its hold are
    written in the same :meth:`write`.
    """

    def __init__(self, database: Database, store: Store, operations: Sequence[Any]) -> None:
        """Reads what the operations will need."""
        self.sheet = Sheet(database)
        self.at = self.sheet.at
        self._store = store
        holds = [each for each in operations if isinstance(each, Hold)]
        records = [each for each in operations if isinstance(each, Record)]
        others = [each for each in operations if isinstance(each, (Release, LeaveUnresolved))]
        self.sheet.look_up(
            [each.hold_id for each in (*holds, *records, *others)], [hold.key for hold in holds]
        )
        self._known = {each.key for each in (*holds, *records)}
        self._attempts = store.attempts(self._known)
        self._forget()

    def bought(self, key: str, attempt: int) -> str | None:
        """Raw body of the answer that is there, or that the group has brought; None for none."""
        if key in self._answered:
            self.write()  # its number may be another than its attempt
        if key not in self._known:
            self._known.add(key)
            self._attempts.update(self._store.attempts([key]))
        if attempt not in self._attempts[key]:
            return None
        answers = self._store.answers([key])[key]
        return next(answer.raw for answer in answers if answer.attempt == attempt)

    def put_answer(self, answer: StoredAnswer) -> None:
        """See :meth:`Store.put_answers`."""
        self._answers.append(answer)
        self._answered.add(answer.key)

    def put_ranking(self, ranking: StoredRanking) -> None:
        """See :meth:`Store.put_rankings`."""
        self._rankings.append(ranking)

    def write(self) -> None:
        """Writes what there is; the page can be used on.

        Others of this transaction may change the books afterwards, but for answers: lines of the
        ledger are read again when they are needed.
        """
        self.sheet.write()
        if self._answers:
            self._store.put_answers(self._answers, self._attempts)
        if self._rankings:
            self._store.put_rankings(self._rankings)
        self._forget()

    def _forget(self) -> None:
        self._answers: list[StoredAnswer] = []
        self._answered: set[str] = set()
        self._rankings: list[StoredRanking] = []
