"""Whose a batch is: drivers on the same books take over those of one that ended, no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg")

import psycopg

from alkd_ray.annotation import worker
from alkd_ray.annotation.batches import Batches
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.types import Amounts, Caps
from tests.annotation_rows import BATCH_RATES, job, serving
from tests.postgres_server import Postgres, running

COUNT, BATCH_SIZE = 20, 10
LABEL = "a-batch"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as started:
        yield started


def written_down(database: Database) -> None:
    """A batch of one request."""
    with database.transaction():
        ledger = Ledger(database)
        ledger.open_budget("b", Caps(requests=5))
        ledger.hold("b", "hold", Amounts(1, 1, 1), owner="x", key="k", kind="rank", batch=LABEL)
        Batches(database).prepare(
            LABEL, budget="b", owner="x", endpoint="e", model="m", structured="none"
        )


def test_of_several_that_find_it_one_gets_it(server: Postgres) -> None:
    url = server.database()
    with Database(url) as dead:
        written_down(dead)
        with Database(url) as other:
            assert not Batches(other).claim(LABEL)  # its driver lives
        assert Batches(dead).is_ours(LABEL)
    with Database(url) as one, Database(url) as two:
        claims = [Batches(one).claim(LABEL), Batches(two).claim(LABEL)]
        assert claims == [True, False]
        assert [Batches(one).is_ours(LABEL), Batches(two).is_ours(LABEL)] == [True, False]
        assert [Batches(two).note_submitting(LABEL), Batches(one).note_submitting(LABEL)] == [
            False,
            True,
        ]
        assert Batches(two).entry(LABEL).is_perhaps_submitted
        assert 0 <= Batches(two).entry(LABEL).age_seconds < 60
        assert [hold.key for hold in Batches(two).all_held()] == ["k"]
        assert Batches(one).claim(LABEL)  # asked again, after a lost connection
        Batches(one).end(LABEL, "completed")
        assert not Batches(one).is_ours(LABEL)
    with Database(url) as late:
        assert not Batches(late).claim(LABEL)  # it is over


def test_a_file_of_books_has_one_driver(tmp_path: Path) -> None:
    with Database(tmp_path / "books.sqlite") as first:
        written_down(first)
    with Database(tmp_path / "books.sqlite") as second:
        assert Batches(second).claim(LABEL)
        assert Batches(second).is_ours(LABEL)
        assert Batches(second).keys_under_way() == {"k"}


@pytest.mark.parametrize("name", ["upload", "create"])
def test_what_was_taken_over_meanwhile_is_neither_submitted_nor_collected(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The driver's session is cut, so that it seems dead, while it waits for the endpoint."""
    url = server.database()
    call = getattr(BatchClient, name)
    seen: list[str] = []

    async def cut_off(*arguments: Any) -> Any:
        found = await call(*arguments)
        if not seen:
            seen.append("cut")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 30000) FROM pg_locks "
                    "WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                )
            # What another driver does that finds it dead: it claims the first batch, of which the
            # endpoint knows nothing, and gives it back; or it collects it, some time.
            with Database(url) as other:
                (entry,) = Batches(other).all_under_way()
                assert Batches(other).claim(entry.label)
                if name == "upload":
                    for hold in Batches(other).holds(entry.label):
                        Ledger(other).release(hold.hold_id)
                    Batches(other).end(entry.label, "it was never submitted")
                seen.append(entry.label)
        return found

    monkeypatch.setattr(BatchClient, name, cut_off)
    with serving(tmp_path, "--batch-seconds", "0.3") as endpoint:
        given = {"mode": "batch", "batch_poll_seconds": 0.1, "batch_size": BATCH_SIZE}
        here = job(tmp_path, endpoint.url, count=COUNT, options={"rates": BATCH_RATES}, **given)
        found = worker.annotate(replace(here, books_url=url))
        bill = endpoint.bill()
    assert len(seen) == 2
    assert found.status == "complete"
    assert len(found.annotations) == COUNT
    assert bill["requests"] == COUNT
    with Database(url, read_only=True) as reader:
        ledger = Ledger(reader)
        assert ledger.audit("test")
        assert ledger.state("test").settled.microusd == bill["microusd"]
        assert ledger.state("test").held.requests == 0
        rows = reader.execute("SELECT label, outcome FROM batches ORDER BY number").fetchall()
    outcomes = dict(rows)
    assert len(outcomes) == (3 if name == "upload" else 2)
    assert (
        outcomes.pop(seen[1]) == {"upload": "it was never submitted", "create": "completed"}[name]
    )
    assert set(outcomes.values()) == {"completed"}
