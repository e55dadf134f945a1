"""What the books know of batches: files of requests that an endpoint works through by itself.

A batch is written down before it is submitted, with a hold for each of its requests, and found
again by its label, so that a process that dies at any step leaves nothing that is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from alkd_ray.annotation.database import Database, now
from alkd_ray.annotation.entries import HOLD_COLUMNS, HoldEntry, entry_of

BATCH_COLUMNS = (
    "label, budget, owner, endpoint, model, structured, batch_id, outcome, prepared_at, ended_at, "
    "is_over"
)

# The outcome of a batch from just before it is submitted until its id is known.
SUBMITTING = "submitting"


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One batch.

    Attributes:
        label: of our making; stands in the batch's metadata at the endpoint.
        budget: what its holds count against.
        owner: the run.
        endpoint: identity of the endpoint.
        model: the model's name.
        structured: the response format that its requests ask for.
        batch_id: the endpoint's id of the batch, "" while it is not known to be submitted.
        outcome: how it ended; :data:`SUBMITTING` while it is perhaps submitted.
        prepared_at: when it was written down, or last about to be submitted; UTC, ISO 8601.
        ended_at: the same for its end; "" for not yet.
        is_over: its answers are recorded.
    """

    label: str
    budget: str
    owner: str
    endpoint: str
    model: str
    structured: str
    batch_id: str
    outcome: str
    prepared_at: str
    ended_at: str
    is_over: bool

    @property
    def is_perhaps_submitted(self) -> bool:
        """Whether the endpoint may have it although nobody knows its id."""
        return not self.batch_id and self.outcome == SUBMITTING

    @property
    def age_seconds(self) -> float:
        """Since ``prepared_at``, by this machine's clock."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.prepared_at)).total_seconds()


class Batches:
    """Batches of one :class:`~alkd_ray.annotation.database.Database`.

    Every writing method is one transaction, joined to the caller's where one is open.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def prepare(
        self, label: str, *, budget: str, owner: str, endpoint: str, model: str, structured: str
    ) -> None:
        """Writes a batch down, in the transaction that holds for its requests."""
        with self.database.transaction():
            self.database.execute(
                "INSERT INTO batches (label, budget, owner, endpoint, model, structured, "
                "prepared_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (label, budget, owner, endpoint, model, structured, now()),
            )

    def note_submitting(self, label: str) -> bool:
        """It is submitted next, unless it is not this driver's any more; returns whether it is.

        Without this note a batch was certainly not submitted; with it, nobody knows until it is
        found at the endpoint, which may take a while to list it.
        """
        with self.database.transaction():
            if not self.is_ours(label):
                return False
            self.database.execute(
                "UPDATE batches SET outcome = ?, prepared_at = ? WHERE label = ?",
                (SUBMITTING, now(), label),
            )
            return True

    def note_refused(self, label: str) -> None:
        """It was certainly not submitted; whoever finds it so need not look for it."""
        with self.database.transaction():
            self.database.execute(
                "UPDATE batches SET outcome = '' WHERE label = ? AND outcome = ?",
                (label, SUBMITTING),
            )

    def note_submitted(self, label: str, batch_id: str) -> None:
        """The endpoint has it."""
        with self.database.transaction():
            self.database.execute(
                "UPDATE batches SET batch_id = ?, outcome = '' WHERE label = ?", (batch_id, label)
            )

    def end(self, label: str, outcome: str) -> None:
        """All that can be known of it is recorded."""
        with self.database.transaction():
            self.database.execute(
                "UPDATE batches SET is_over = 1, outcome = ?, ended_at = ? WHERE label = ?",
                (outcome, now(), label),
            )

    def under_way(self, endpoint: str, model: str) -> list[BatchEntry]:
        """Batches of an endpoint that are not over, of any budget, in the order of making."""
        return self._found("WHERE is_over = 0 AND endpoint = ? AND model = ?", (endpoint, model))

    def all_under_way(self) -> list[BatchEntry]:
        """The same, of every endpoint."""
        return self._found("WHERE is_over = 0", ())

    def entry(self, label: str) -> BatchEntry:
        """One batch by its label."""
        return self._found("WHERE label = ?", (label,))[0]

    def holds(self, label: str) -> list[HoldEntry]:
        """The holds of its requests, in the file's order."""
        rows = self.database.execute(
            f"SELECT {HOLD_COLUMNS} FROM holds WHERE batch = ? AND batch <> '' ORDER BY number",  # noqa: S608 - our own column names
            (label,),
        )
        return [entry_of(row) for row in rows]

    def claim(self, label: str) -> bool:
        """Makes a batch this driver's, unless it is over, or the driver that has it lives.

        Of several drivers that find the batch of a dead one, one gets it.
        """
        with self.database.transaction():
            others = self.database.live_writers() - {self.database.writer}
            if self.entry(label).is_over or self._writers(label) & others:
                return False
            self.database.execute(
                "UPDATE holds SET writer = ? WHERE batch = ? AND batch <> ''",
                (self.database.writer, label),
            )
            return True

    def is_ours(self, label: str) -> bool:
        """Whether it is not over, and nobody has claimed it.

        A driver whose connection to the books was lost for a moment was taken for dead.
        """
        with self.database.transaction():
            return not self.entry(label).is_over and self._writers(label) == {self.database.writer}

    def keys_under_way(self) -> set[str]:
        """Keys of all requests that are under way, anybody's, in a batch or not."""
        rows = self.database.execute(
            "SELECT request_key FROM holds WHERE status = 'held' AND request_key <> ''"
        )
        return {key for (key,) in rows}

    def all_held(self) -> list[HoldEntry]:
        """The holds of all requests that are in a batch under way, of any budget."""
        rows = self.database.execute(
            f"SELECT {HOLD_COLUMNS} FROM holds WHERE status = 'held' AND batch <> '' "  # noqa: S608 - our own column names
            "ORDER BY number"
        )
        return [entry_of(row) for row in rows]

    def _writers(self, label: str) -> set[int]:
        rows = self.database.execute(
            "SELECT DISTINCT writer FROM holds WHERE batch = ? AND batch <> ''", (label,)
        )
        return {writer for (writer,) in rows}

    def _found(self, condition: str, parameters: tuple[Any, ...]) -> list[BatchEntry]:
        rows = self.database.execute(
            f"SELECT {BATCH_COLUMNS} FROM batches {condition} ORDER BY number",  # noqa: S608 - our own text
            parameters,
        )
        return [BatchEntry(*columns, is_over=bool(is_over)) for *columns, is_over in rows]
