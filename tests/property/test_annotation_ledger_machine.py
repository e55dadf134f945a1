"""The ledger under arbitrary interleavings and crashes, against a model in plain Python."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from alkd_ray.annotation.database import FILE_NAME, Database
from alkd_ray.annotation.ledger import BREACHED, IN_BATCH, IN_FLIGHT, Ledger, LedgerError
from alkd_ray.annotation.sheet import Sheet
from alkd_ray.types import Amounts, Caps

BUDGETS = ("first", "second")
KEYS = ("", "one", "two")
BATCHES = ("", "", "some", "more")
# No power cut is tested here, so the disk need not be waited for.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

amounts = st.builds(Amounts, st.integers(0, 40), st.integers(0, 40), st.integers(0, 2))
cap = st.none() | st.integers(0, 150)
caps = st.builds(Caps, cap, cap, cap)


def units(value: Amounts | Caps) -> tuple:
    return value.microusd, value.tokens, value.requests


@dataclass
class ModelHold:
    budget: str
    worst: tuple
    key: str
    status: str = "held"
    actual: tuple = (0, 0, 0)
    is_open_breach: bool = False
    batch: str = ""


class Model:
    """What a ledger is, said once more in lists and sums."""

    def __init__(self) -> None:
        self.caps: dict[str, tuple] = {}
        self.holds: dict[str, ModelHold] = {}

    def sum(self, budget: str, status: str) -> tuple:
        of = [h for h in self.holds.values() if h.budget == budget and h.status == status]
        values = [h.actual if status == "settled" else h.worst for h in of]
        return tuple(sum(v[unit] for v in values) for unit in range(3))

    def overshoot(self, budget: str) -> tuple:
        of = [h for h in self.holds.values() if h.budget == budget and h.status == "settled"]
        return tuple(sum(max(h.actual[u] - h.worst[u], 0) for h in of) for u in range(3))

    def counted(self, budget: str) -> tuple:
        sums = [self.sum(budget, status) for status in ("settled", "held", "unresolved")]
        return tuple(map(sum, zip(*sums, strict=True)))

    def refuses(self, budget: str, worst: tuple, key: str) -> str:
        for other in self.holds.values():
            if key and other.key == key and other.status == "held":
                return IN_BATCH if other.batch else IN_FLIGHT
        if any(h.is_open_breach for h in self.holds.values() if h.budget == budget):
            return BREACHED
        counted = self.counted(budget)
        over = [
            c is not None and t + w > c
            for c, t, w in zip(self.caps[budget], counted, worst, strict=True)
        ]
        return "cap" if any(over) else ""

    def settle(self, hold: ModelHold, actual: tuple, by_hand: bool) -> bool:
        hold.status, hold.actual = "settled", actual
        over = any(a > w for a, w in zip(actual, hold.worst, strict=True))
        hold.is_open_breach = over and not by_hand
        return over


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.model = Model()
        self.next_id = 0
        # Beyond this the totals may never go, other than by recorded breaches.
        self.ceiling: dict[str, list] = {}
        self._open()

    def _open(self) -> None:
        self.database = Database(self.folder / FILE_NAME)
        self.ledger = Ledger(self.database)

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    def _some(self, data: st.DataObject, *statuses: str) -> str:
        ids = [i for i, h in self.model.holds.items() if h.status in statuses]
        return data.draw(st.sampled_from(sorted(ids)))

    def _has(self, *statuses: str) -> bool:
        return any(h.status in statuses for h in self.model.holds.values())

    @initialize(first=caps, second=caps)
    def open_budgets(self, first: Caps, second: Caps) -> None:
        for name, value in zip(BUDGETS, (first, second), strict=True):
            self.ledger.open_budget(name, value)
            self.model.caps[name] = units(value)
            self.ceiling[name] = list(units(value))

    @rule(budget=st.sampled_from(BUDGETS), value=caps)
    def change_caps(self, budget: str, value: Caps) -> None:
        old, new = self.model.caps[budget], units(value)
        self.ledger.open_budget(budget, value)
        if any(o is not None and (n is None or n > o) for o, n in zip(old, new, strict=True)):
            for hold in self.model.holds.values():
                hold.is_open_breach &= hold.budget != budget
        self.model.caps[budget] = new
        self.ceiling[budget] = [
            None if c is None or n is None else max(c, n)
            for c, n in zip(self.ceiling[budget], new, strict=True)
        ]

    @rule(
        budget=st.sampled_from(BUDGETS),
        worst=amounts,
        key=st.sampled_from(KEYS),
        batch=st.sampled_from(BATCHES),
    )
    def hold(self, budget: str, worst: Amounts, key: str, batch: str) -> None:
        hold_id = f"hold-{self.next_id}"
        self.next_id += 1
        expected = self.model.refuses(budget, units(worst), key)
        reason = self.ledger.hold(budget, hold_id, worst, owner="run", key=key, batch=batch)
        if expected == "":
            assert reason == ""
            self.model.holds[hold_id] = ModelHold(budget, units(worst), key, batch=batch)
        else:
            assert reason.startswith("the cap of " if expected == "cap" else expected)

    @precondition(lambda self: self._has("held", "unresolved"))
    @rule(data=st.data(), actual=amounts)
    def settle(self, data: st.DataObject, actual: Amounts) -> None:
        """An answer, in time or late, within the hold or beyond it."""
        hold_id = self._some(data, "held", "unresolved")
        expected = self.model.settle(self.model.holds[hold_id], units(actual), by_hand=False)
        assert self.ledger.settle(hold_id, actual) is expected

    @precondition(lambda self: self._has("held"))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        hold_id = self._some(data, "held")
        self.ledger.release(hold_id)
        self.model.holds[hold_id].status = "released"

    @precondition(lambda self: self._has("held"))
    @rule(data=st.data())
    def leave_unresolved(self, data: st.DataObject) -> None:
        hold_id = self._some(data, "held")
        self.ledger.leave_unresolved(hold_id, "timeout")
        self.model.holds[hold_id].status = "unresolved"

    @precondition(lambda self: self._has("unresolved"))
    @rule(data=st.data(), actual=st.just(Amounts()) | amounts)
    def resolve(self, data: st.DataObject, actual: Amounts) -> None:
        hold_id = self._some(data, "unresolved")
        self.ledger.resolve(hold_id, actual)
        self.model.settle(self.model.holds[hold_id], units(actual), by_hand=True)

    @rule(batch=st.sampled_from(BATCHES[2:]))
    def abandon(self, batch: str) -> None:
        """Also of no holds at all."""
        of = [h for h in self.model.holds.values() if h.batch == batch and h.status == "held"]
        assert self.ledger.abandon(batch) == len(of)
        for hold in of:
            hold.status = "unresolved"

    @rule(batch=st.sampled_from(BATCHES[2:]))
    def write_off(self, batch: str) -> None:
        of = [h for h in self.model.holds.values() if h.batch == batch and h.status == "unresolved"]
        assert self.ledger.write_off(batch) == len(of)
        for hold in of:
            self.model.settle(hold, (0, 0, 0), by_hand=True)

    @precondition(lambda self: any(h.is_open_breach for h in self.model.holds.values()))
    @rule(data=st.data())
    def accept_breach(self, data: st.DataObject) -> None:
        ids = sorted(i for i, h in self.model.holds.items() if h.is_open_breach)
        hold_id = data.draw(st.sampled_from(ids))
        self.ledger.accept_breach(hold_id)
        self.model.holds[hold_id].is_open_breach = False

    @rule(data=st.data(), size=st.integers(2, 8))
    def group(self, data: st.DataObject, size: int) -> None:
        """Many steps on one sheet are what the same steps are one after the other."""
        # Drawn from before the group, or made in it, ended in it, and held again in it.
        known = st.sampled_from(sorted(self.model.holds) or ["never held"])
        new = st.sampled_from([f"hold-{self.next_id + number}" for number in range(size)])
        with self.ledger.sheet(data.draw(st.lists(known, max_size=2)), KEYS[:2]) as sheet:
            for _ in range(size):
                if data.draw(st.booleans()):
                    self._hold_on(sheet, data)
                else:
                    self._end_on(sheet, data, data.draw(known | new))

    def _hold_on(self, sheet: Sheet, data: st.DataObject) -> None:
        budget, key = data.draw(st.sampled_from(BUDGETS)), data.draw(st.sampled_from(KEYS))
        worst, hold_id = data.draw(amounts), f"hold-{self.next_id}"
        self.next_id += 1
        made = {"owner": "run", "key": key, "kind": "rank", "attempt": 1, "batch": ""}
        expected = self.model.refuses(budget, units(worst), key)
        reason = sheet.hold(budget, hold_id, worst, **made)
        assert reason.startswith("the cap of " if expected == "cap" else expected)
        assert bool(reason) is bool(expected)
        if not expected:
            self.model.holds[hold_id] = ModelHold(budget, units(worst), key)

    def _end_on(self, sheet: Sheet, data: st.DataObject, hold_id: str) -> None:
        hold, actual = self.model.holds.get(hold_id), data.draw(amounts)
        assert sheet.status_of(hold_id) == (hold.status if hold else None)
        step = data.draw(st.sampled_from(["settle", "release", "leave", "resolve"]))
        allowed = {"settle": ("held", "unresolved"), "resolve": ("unresolved",)}
        if hold is None or hold.status not in allowed.get(step, ("held",)):
            with pytest.raises(LedgerError):
                self._step(sheet, step, hold_id, actual)
            return
        breached = self._step(sheet, step, hold_id, actual)
        if step in ("settle", "resolve"):
            assert self.model.settle(hold, units(actual), by_hand=step == "resolve") is breached
        else:
            hold.status = "released" if step == "release" else "unresolved"

    def _step(self, sheet: Sheet, step: str, hold_id: str, actual: Amounts) -> bool | None:
        if step in ("settle", "resolve"):
            return sheet.settle(hold_id, actual, by_hand=step == "resolve")
        return sheet.release(hold_id) if step == "release" else sheet.leave(hold_id, "timeout")

    @precondition(lambda self: self._has("settled", "released"))
    @rule(data=st.data(), actual=amounts)
    def what_is_ended_stays_ended(self, data: st.DataObject, actual: Amounts) -> None:
        hold_id = self._some(data, "settled", "released")
        attempts = (
            lambda: self.ledger.settle(hold_id, actual),
            lambda: self.ledger.release(hold_id),
            lambda: self.ledger.leave_unresolved(hold_id, "why"),
            lambda: self.ledger.resolve(hold_id, actual),
        )
        for attempt in attempts:
            with pytest.raises(LedgerError):
                attempt()

    @rule()
    def restart(self) -> None:
        self.database.close()
        self._reopen()

    @rule(data=st.data(), worst=amounts, actual=amounts)
    def crash(self, data: st.DataObject, worst: Amounts, actual: Amounts) -> None:
        """The process dies inside a transaction: nothing of it happened."""
        with contextlib.suppress(KeyboardInterrupt), self.database.transaction():
            self.ledger.hold(BUDGETS[0], f"lost-{self.next_id}", worst)
            if self._has("held", "unresolved"):
                self.ledger.settle(self._some(data, "held", "unresolved"), actual)
            self.database.close()  # as the kernel does: no commit, no rollback of ours
            raise KeyboardInterrupt
        self.next_id += 1
        self._reopen()

    def _reopen(self) -> None:
        self._open()
        held = [h for h in self.model.holds.values() if h.status == "held"]
        expected = [h for h in held if not h.batch]  # a batch outlives its writer
        assert self.ledger.recover() == len(expected)
        for hold in expected:
            hold.status = "unresolved"
        assert self.ledger.recover() == 0

    @invariant()
    def ledger_equals_model(self) -> None:
        for budget in self.model.caps:
            state = self.ledger.state(budget)
            for status in ("settled", "held", "unresolved"):
                assert units(getattr(state, status)) == self.model.sum(budget, status), status
            overshoot = self.model.overshoot(budget)
            assert units(self.ledger.total_breach(budget)) == overshoot
            assert state.breached_microusd == overshoot[0]
            assert units(state.caps) == self.model.caps[budget]
            assert self.ledger.audit(budget)
        statuses = {entry.hold_id: entry.status for entry in self.ledger.entries()}
        assert statuses == {i: h.status for i, h in self.model.holds.items()}

    @invariant()
    def caps_hold(self) -> None:
        for budget, ceiling in self.ceiling.items():
            state = self.ledger.state(budget)
            counted = units(state.settled + state.held + state.unresolved)
            overshoot = units(self.ledger.total_breach(budget))
            for limit, value, over in zip(ceiling, counted, overshoot, strict=True):
                assert limit is None or value <= limit + over


LedgerMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLedgerMachine = LedgerMachine.TestCase
