"""Groups of the desk's operations are what the same operations are one by one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alkd_ray.annotation.database import FILE_NAME, Database
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.operations import (
    Finish,
    GiveUp,
    Hold,
    LeaveUnresolved,
    Pull,
    Record,
    Release,
    RowRequest,
    Stop,
)
from alkd_ray.types import Amounts, Caps, Usage
from tests.property.test_annotation_ledger_machine import MEMORY

WORKER = "worker"
KEYS = tuple(f"key {number}" for number in range(4))
TABLES = {  # without the times, which alone may differ
    "budgets": "*",
    "holds": (
        "number, hold_id, budget, status, owner, request_key, kind, writer, worst_microusd, "
        "worst_tokens, worst_requests, actual_microusd, actual_tokens, actual_requests, breached, "
        "breach_accepted, by_hand, why, ended_at = '', attempt, batch"
    ),
    "answers": (
        "number, request_key, attempt, raw, finish_reason, prompt_tokens, completion_tokens, "
        "cached_tokens, cost_microusd, hold_id"
    ),
    "parsed": "request_key, parser_version, ranking, repairs, failure",
    "failures": "request_key, permanent, reason",
}
amounts = st.builds(Amounts, st.integers(0, 30), st.integers(0, 30), st.just(1))
cap = st.none() | st.integers(20, 200)


def desk(books: Database, caps: Caps) -> Desk:
    opened = Desk(books, "b", caps, "run")
    rows = [RowRequest(number, key, "rank", "v1", number, "{}") for number, key in enumerate(KEYS)]
    opened.add(rows, {}, endpoint="e", model="m")
    return opened


def tables(books: Database) -> dict[str, list[Any]]:
    order = {"budgets": "name", "parsed": "request_key", "failures": "number"}
    found = {
        name: books.execute(
            f"SELECT {columns} FROM {name} ORDER BY {order.get(name, 'number')}"
        ).fetchall()
        for name, columns in TABLES.items()
    }
    found["budgets"] = [row[:-1] for row in found["budgets"]]  # opened_at
    return found


class Story:
    """Draws operations as workers say them: only of holds that were granted, late and twice too."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.made = 0
        self.granted: list[Hold] = []

    def operation(self, statuses: dict[str, str]) -> Any:
        kinds = ["hold"] * 3 + ["record", "finish", "give up", "pull"]
        answerable = [hold for hold in self.granted if statuses[hold.hold_id] != "released"]
        kind = self.draw(st.sampled_from(kinds + ["record", "release", "leave"] * bool(answerable)))
        index = self.draw(st.integers(0, len(KEYS) - 1))
        if kind == "finish":
            ranking = tuple(self.draw(st.permutations([1, 2, 3])))
            return Finish(WORKER, index, KEYS[index], ranking, ("duplicates dropped: 1",), "")
        if kind == "give up":
            return GiveUp(WORKER, index, KEYS[index], "refused", self.draw(st.booleans()), True)
        if kind == "pull":
            return Pull(WORKER, 2)
        if kind == "hold" or not answerable:
            self.made += 1
            attempt = self.draw(st.integers(1, 2))
            worst = self.draw(amounts)
            return Hold(f"hold {self.made}", KEYS[index], "rank", attempt, worst, WORKER)
        hold = self.draw(st.sampled_from(answerable))
        if kind == "release":
            return Release(hold.hold_id)
        if kind == "leave":
            return LeaveUnresolved(hold.hold_id, "timeout")
        usage = self.draw(st.none() | st.builds(Usage, st.integers(0, 9), st.integers(0, 9)))
        raw = f"answer {self.made} \ud800"  # half of a surrogate pair
        actual = self.draw(st.just(hold.worst) | amounts)
        return Record(hold.hold_id, hold.key, hold.attempt, raw, "stop", usage, 8, actual)

    def happened(self, operation: Any, result: Any) -> None:
        if isinstance(operation, Hold) and result.granted:
            self.granted.append(operation)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), caps=st.builds(Caps, cap, cap, cap))
def test_a_group_is_what_its_operations_are_one_by_one(data: st.DataObject, caps: Caps) -> None:
    with ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY)) for _ in range(2)]
        books = [stack.enter_context(Database(Path(folder) / FILE_NAME)) for folder in folders]
        single, grouped = (desk(each, caps) for each in books)
        story = Story(data)
        for size in data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)):
            group: list[Any] = []
            expected: list[Any] = []
            for _ in range(size):
                statuses = {entry.hold_id: entry.status for entry in single.ledger.entries()}
                operation = story.operation(statuses)
                group.append(operation)
                expected += single.apply([operation])
                story.happened(operation, expected[-1])
            assert grouped.apply(group) == expected
            assert tables(books[1]) == tables(books[0])
            assert grouped.standing() == single.standing()
            assert grouped.ledger.audit("b")


def test_a_group_that_cannot_be_done_does_nothing_at_all(tmp_path: Path) -> None:
    with Database(tmp_path / FILE_NAME) as books:
        opened = desk(books, Caps())
        hold = Hold("hold", KEYS[0], "rank", 1, Amounts(5, 5, 1), WORKER)
        assert opened.apply([hold])[0].granted
        before = tables(books)
        record = Record("hold", KEYS[0], 1, "{}", "stop", None, 8, Amounts(5, 5, 1))
        unknown = LeaveUnresolved("never held", "timeout")
        for group in ([record, unknown], [unknown, record], [record, Release("hold"), unknown]):
            failed = ""
            try:
                opened.apply(group)
            except Exception as error:
                failed = str(error)
            assert "there is no hold 'never held'" in failed
            assert tables(books) == before
        assert opened.apply([record, record]) == [None, None]
        assert [row[3] for row in tables(books)["holds"]] == ["settled"]
        assert len(tables(books)["answers"]) == 1


def test_more_operations_than_a_statement_takes_rows(tmp_path: Path) -> None:
    many = [f"hold {number}" for number in range(150)]

    def numbers(books: Database, sql: str) -> Sequence[Any]:
        return [row[0] for row in books.execute(sql)]

    with Database(tmp_path / FILE_NAME) as books:
        opened = desk(books, Caps(requests=140))
        one = Amounts(1, 1, 1)
        verdicts = opened.apply([Hold(name, name, "rank", 1, one, WORKER) for name in many])
        assert [verdict.granted for verdict in verdicts] == [True] * 140 + [False] * 10
        assert numbers(books, "SELECT hold_id FROM holds ORDER BY number") == many[:140]
        opened.apply(
            [Record(name, name, 1, json.dumps(name), "stop", None, 8, one) for name in many[:140]]
        )
        assert opened.ledger.state("b").settled == Amounts(140, 140, 140)
        found = opened.store.answers(many)
        assert {key: each[0].raw for key, each in found.items()} == {
            name: json.dumps(name) for name in many[:140]
        }
        again = opened.apply([Hold("again", many[0], "rank", 1, one, WORKER), Stop("stopped", "")])
        assert again[0].answer == json.dumps(many[0])
