"""The store: what comes in comes out unchanged, many keys at once, and as Parquet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alkd_ray.annotation.database import FILE_NAME, BooksError, Database
from alkd_ray.annotation.ledger import Ledger, LedgerError
from alkd_ray.annotation.store import Spent, Store, StoredAnswer
from alkd_ray.types import Amounts, Caps, Usage


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Database(tmp_path / FILE_NAME) as database:
        yield Store(database)


def put_request(store: Store, key: str, session_id: int = 7, body: str = "{}") -> None:
    store.put_request(
        key,
        endpoint="https://api.example/v1",
        model="m",
        kind="rank",
        prompt_version="rank.v1",
        session_id=session_id,
        body=body,
    )


def put_answer(store: Store, key: str, attempt: int, raw: str, cost: int = 5) -> int:
    return store.put_answer(
        key,
        attempt,
        raw,
        usage=Usage(100, 20, 30),
        cost_microusd=cost,
        hold_id=f"hold of {attempt}",
        finish_reason="stop",
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.text(st.characters(), max_size=200))
def test_a_raw_answer_comes_back_character_for_character(store: Store, raw: str) -> None:
    """NUL, line ends of every kind, lone surrogates: nothing is normalized."""
    number = put_answer(store, "key", 1, raw)
    assert store.answers(["key"])["key"][number - 1].raw == raw


@pytest.mark.parametrize("raw", ["", "a\x00b", "\r\n \u2028\ufeff", "\ud83d", "\udc80x", "日本語"])
def test_awkward_answers(store: Store, raw: str, tmp_path: Path) -> None:
    put_answer(store, "key", 1, raw)
    (answer,) = store.answers(["key"])["key"]
    assert answer.raw == raw
    assert answer == StoredAnswer(
        "key", 1, raw, "stop", Usage(100, 20, 30), 5, "hold of 1", answer.received_at
    )
    store.export(tmp_path)
    (exported,) = pq.read_table(tmp_path / "answers.parquet")["raw"].to_pylist()
    assert exported == raw.encode("utf-8", "replace").decode("utf-8")


def test_no_answer_replaces_another(store: Store) -> None:
    assert put_answer(store, "key", 1, "first") == 1
    assert put_answer(store, "key", 1, "late answer of the same attempt") == 2
    assert put_answer(store, "key", 2, "asked again") == 3
    assert put_answer(store, "key", 9, "far ahead") == 9
    found = [(answer.attempt, answer.raw) for answer in store.answers(["key"])["key"]]
    assert found == [
        (1, "first"),
        (2, "late answer of the same attempt"),
        (3, "asked again"),
        (9, "far ahead"),
    ]
    assert store.spent(["key", "absent"]) == {"key": Spent(4, 400, 80, 20)}


def test_an_answer_without_usage_is_kept(store: Store) -> None:
    store.put_answer("key", 1, "text", usage=None, cost_microusd=9, hold_id="h")
    assert store.answers(["key"])["key"][0].usage is None
    assert store.spent(["key"])["key"] == Spent(1, 0, 0, 9)


def test_a_request_is_recorded_once(store: Store) -> None:
    put_request(store, "key", session_id=1, body='{"a": 1}')
    put_request(store, "key", session_id=2, body="other")
    found = store.requests(["key", "absent"])
    assert list(found) == ["key"]
    assert (found["key"].session_id, found["key"].body) == (1, '{"a": 1}')
    assert (found["key"].kind, found["key"].prompt_version) == ("rank", "rank.v1")


def test_each_parser_version_has_its_own_reading(store: Store) -> None:
    store.put_parsed("key", parser_version="1", ranking=np.array([3, 1, 2]), repairs=["titles"])
    store.put_parsed("key", parser_version="2", ranking=[], failure="no numbers")
    store.put_parsed("key", parser_version="1", ranking=[9, 8], repairs=["numbers", "duplicates"])
    first = store.parsed(["key"], "1")["key"]
    assert first.ranking.dtype == np.int64
    assert first.ranking.tolist() == [9, 8]
    assert first.repairs == ("numbers", "duplicates")
    second = store.parsed(["key"], "2")["key"]
    assert (second.ranking.tolist(), second.failure) == ([], "no numbers")
    assert store.parsed(["key"], "3") == {}


def test_the_latest_failure_counts(store: Store) -> None:
    store.put_failure("key", permanent=False, reason="timeout")
    store.put_failure("key", permanent=True, reason="400: context too long")
    store.put_failure("other", permanent=False, reason="503")
    found = store.failures(["key", "other", "absent"])
    assert (found["key"].is_permanent, found["key"].reason) == (True, "400: context too long")
    assert found["other"].is_permanent is False
    assert "absent" not in found


def test_strange_words_of_an_endpoint_are_escaped_not_fatal(store: Store) -> None:
    store.put_failure("key", permanent=True, reason="bad \ud83d title")
    assert store.failures(["key"])["key"].reason == "bad \\ud83d title"
    with pytest.raises(BooksError, match="nothing was recorded"):
        store.put_answer("key", 1, "", usage=Usage(10**30, 0), cost_microusd=1, hold_id="h")
    assert store.answers(["key"]) == {}


def test_an_answer_and_its_settlement_are_one_transaction(tmp_path: Path) -> None:
    with Database(tmp_path / FILE_NAME) as database:
        ledger, store = Ledger(database), Store(database)
        ledger.open_budget("b", Caps())
        ledger.hold("b", "h", Amounts(10, 10, 1))
        with pytest.raises(LedgerError), database.transaction():  # noqa: PT012
            put_answer(store, "key", 1, "body")
            ledger.settle("not h", Amounts(5, 5, 1))
        assert store.answers(["key"]) == {}
        assert ledger.entry("h").status == "held"
        with database.transaction():
            put_answer(store, "key", 1, "body")
            ledger.settle("h", Amounts(5, 5, 1))
        assert store.answers(["key"])["key"][0].raw == "body"
        assert ledger.entry("h").status == "settled"


def test_a_hundred_thousand_keys_at_once(store: Store) -> None:
    keys = [f"{number:064x}" for number in range(100_000)]
    with store.database.transaction():
        for number, key in enumerate(keys[::2]):
            store.put_parsed(key, parser_version="1", ranking=range(number % 7))
    started = time.perf_counter()
    found = store.parsed(iter(keys + keys[:10]), "1")
    seconds = time.perf_counter() - started
    assert set(found) == set(keys[::2])
    assert found[keys[26]].ranking.tolist() == list(range(13 % 7))
    assert seconds < 60  # about 1 s on an idle machine; a query for each key takes minutes


def test_export_shows_one_instant_in_its_files(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    store.export(out)  # empty books give empty tables with the same columns
    columns = {file.name: pq.read_schema(file) for file in out.iterdir()}
    for number in range(3):
        put_request(store, f"k{number}", session_id=100 + number, body=f'{{"n": {number}}}')
        put_answer(store, f"k{number}", 1, f"raw {number}", cost=number)
    store.put_parsed("k1", parser_version="1", ranking=[5, 4], repairs=["titles"])
    store.put_parsed("k2", parser_version="1", ranking=[], failure="nothing to read")
    store.export(out)
    assert {file.name for file in out.iterdir()} == {
        "requests.parquet",
        "answers.parquet",
        "rankings.parquet",
        "failures.parquet",
    }
    assert {file.name: pq.read_schema(file) for file in out.iterdir()} == columns
    requests = pq.read_table(out / "requests.parquet").to_pylist()
    assert [row["session_id"] for row in requests] == [100, 101, 102]
    answers = pq.read_table(out / "answers.parquet").to_pylist()
    assert [(row["raw"], row["cost_microusd"]) for row in answers] == [
        ("raw 0", 0),
        ("raw 1", 1),
        ("raw 2", 2),
    ]
    assert pq.read_table(out / "rankings.parquet").to_pylist() == [
        {
            "key": "k1",
            "session_id": 101,
            "parser_version": "1",
            "ranking": [5, 4],
            "repairs": ["titles"],
            "failure": "",
        },
        {
            "key": "k2",
            "session_id": 102,
            "parser_version": "1",
            "ranking": [],
            "repairs": [],
            "failure": "nothing to read",
        },
    ]


def test_a_reader_can_export_beside_the_writer(store: Store, tmp_path: Path) -> None:
    put_request(store, "key")
    with Database(store.database.path, read_only=True) as reader:
        Store(reader).export(tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "requests.parquet").num_rows == 1
