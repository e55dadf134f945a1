"""The batches that are this driver's: which they are, and what becomes of their holds and rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from alkd_ray.annotation.batch_rows import WORKER, BatchRows
from alkd_ray.annotation.batches import BatchEntry, Batches
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.entries import HoldEntry
from alkd_ray.annotation.operations import LeaveUnresolved, Release
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_results import BatchStatus
from alkd_ray.llm_teachers._client import NotBilledError


class BatchKeeping:
    """Books and rows of the batches that are under way.

    A batch that cannot be found is *doubtful*: nobody knows whether it was, or will be, billed.
    Its holds are unresolved and its requests may be asked again, but it is not over: whoever takes
    it over looks once more, and collects it where it has turned up.

    Attributes:
        under_way: label -> batch.
        late: label of a doubtful one that turned up -> its requests' keys, which wait for it.
    """

    def __init__(self, rows: BatchRows, desk: Desk, endpoint: Endpoint) -> None:
        self.rows = rows
        self.desk = desk
        self.endpoint = endpoint
        self.batches = Batches(desk.database)
        self.under_way: dict[str, BatchEntry] = {}
        self.late: dict[str, frozenset[str]] = {}

    def claimed(self) -> Iterator[BatchEntry]:
        """Makes the endpoint's batches ours whose driver has ended, and the doubtful ones."""
        for entry in self.desk.database.patiently(
            lambda _: self.batches.under_way(self.endpoint.identity, self.endpoint.model)
        ):
            if entry.label not in self.under_way and self._claims(entry.label):
                held = [hold for hold in self.holds(entry.label) if hold.status == "held"]
                self.desk.adopt([hold.hold_id for hold in held], WORKER)
                yield entry

    def _claims(self, label: str) -> bool:
        return self.desk.database.patiently(lambda _: self.batches.claim(label))

    def is_ours(self, label: str) -> bool:
        """Whether nobody has claimed it from us."""
        return self.desk.database.patiently(lambda _: self.batches.is_ours(label))

    def submits(self, label: str) -> bool:
        """Notes that it is submitted next; False = somebody else has it, and it is not."""
        return self.desk.database.patiently(lambda _: self.batches.note_submitting(label))

    def not_submitted(self, label: str) -> None:
        """The endpoint has refused it, for now."""
        self.desk.database.patiently(lambda _: self.batches.note_refused(label))

    def keys_under_way(self) -> set[str]:
        """Keys of all requests that an answer may come for, anybody's."""
        keys = self.desk.database.patiently(lambda _: self.batches.keys_under_way())
        return keys.union(*self.late.values())

    def holds(self, label: str) -> list[HoldEntry]:
        """The holds of its requests."""
        return self.desk.database.patiently(lambda _: self.batches.holds(label))

    def open_holds(self, label: str) -> dict[str, HoldEntry]:
        """Those that a late answer can settle, by their ids."""
        return {
            hold.hold_id: hold
            for hold in self.holds(label)
            if hold.status in ("held", "unresolved")
        }

    def submitted(self, label: str, status: BatchStatus) -> None:
        """The endpoint has it."""
        self.batches.note_submitted(label, status.id)
        self.under_way[label] = self.batches.entry(label)

    def let_go(self, label: str) -> None:
        """Its rows wait for what becomes of it elsewhere, or to be asked again."""
        known = self.rows.by_key
        for hold in self._forget(label):
            if hold.key in known:
                self.rows.wait(known[hold.key])

    def give_back(self, label: str, outcome: str) -> None:
        """Ends a batch that was not billed: nothing of it was, or will be, generated."""
        with self.desk.database.transaction():
            self.desk.apply([Release(hold_id) for hold_id in self.open_holds(label)])
            self.batches.end(label, outcome)
        self.let_go(label)

    def end(self, label: str, outcome: str, left: Iterable[HoldEntry]) -> None:
        """Ends a batch that is recorded, but for what the endpoint says nothing of."""
        self._leave(left, f"the batch ended ({outcome}) without a word on it")
        self.batches.end(label, outcome)
        self._forget(label)

    def doubt(self, label: str, why: str) -> None:
        """It may be billed, and cannot be found: its rows are asked again."""
        self._leave(self.open_holds(label).values(), why)
        self._forget(label)

    def _leave(self, holds: Iterable[HoldEntry], why: str) -> None:
        """What is not known to be free may have been billed."""
        left = list(holds)
        self.desk.apply([LeaveUnresolved(hold.hold_id, why) for hold in left])
        for hold in left:
            wanted = self.rows.by_key.get(hold.key)
            if wanted is not None:
                self.rows.failed(wanted, self.rows.questions[wanted.index], NotBilledError(why))

    def _forget(self, label: str) -> list[HoldEntry]:
        """It is not one of ours, or not any more; returns its holds."""
        holds = self.holds(label)
        self.desk.disown([hold.hold_id for hold in holds])
        self.under_way.pop(label, None)
        self.late.pop(label, None)
        return holds
