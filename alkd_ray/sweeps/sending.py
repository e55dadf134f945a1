"""How many requests a sweep sends, by the ledger: a plan says only what is meant to be sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alkd_ray import buying
from alkd_ray.annotation.database import Database, are_there
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.stages import Context


@dataclass(slots=True)
class Sent:
    """Counts the requests that a sweep sends; all its settings have one budget.

    Attributes:
        context: of any setting.
        run_id: whose requests.
        since: the ledger's last hold before the first of them; None = there was none to send.
    """

    context: Context
    run_id: str
    since: int | None = None

    def begin(self) -> None:
        """From here on."""
        self.since = 0
        if are_there(self._books):
            with Database(self._books, read_only=True) as database:
                self.since = Ledger(database).last_number()

    def count(self) -> int:
        """Requests sent since then."""
        if self.since is None or not are_there(self._books):
            return 0
        budget = buying.budget_name(self.context.config)
        with Database(self._books, read_only=True) as database:
            return Ledger(database).sent_since(budget, self.since, self.run_id)

    @property
    def _books(self) -> Path | str:
        return buying.books(self.context.root, self.context.config.books)
