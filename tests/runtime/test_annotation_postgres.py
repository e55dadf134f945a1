"""The books in PostgreSQL: the same as in a file, with several writers, over a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("psycopg")

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from typer.testing import CliRunner

from alkd_ray import config as configs
from alkd_ray.annotation import others, schema
from alkd_ray.annotation.database import (
    FILE_NAME,
    BooksError,
    Database,
    are_there,
    books_of,
)
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.ledger import IN_FLIGHT, Ledger, LedgerError
from alkd_ray.annotation.operations import Hold, Release, Verdict
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.turns import Limits, Turns
from alkd_ray.errors import InputError
from alkd_ray.results import run_id_of
from alkd_ray.types import Amounts, Caps, Usage
from tests.postgres_server import PASSWORD, Postgres, running
from tests.property.test_annotation_ledger_machine import LedgerMachine

ONE = Amounts(1, 1, 1)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as started:
        yield started


@pytest.fixture
def url(server: Postgres) -> str:
    return server.database()


def test_the_ledger_is_the_same_under_any_interleaving(server: Postgres) -> None:
    class OnServer(LedgerMachine):
        url = ""

        def _open(self) -> None:
            self.url = self.url or server.database()
            self.database = Database(self.url)
            self.ledger = Ledger(self.database)

    few = settings(
        max_examples=8,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OnServer, settings=few)


def test_both_databases_have_the_same_columns(tmp_path: Path, url: str) -> None:
    kinds = {"bigint": "INTEGER", "text": "TEXT", "bytea": "BLOB", "double precision": "REAL"}
    with Database(url) as database:
        rows = database.execute(
            "SELECT table_name, column_name, data_type, is_nullable = 'NO', collation_name "
            "FROM information_schema.columns WHERE table_schema = 'alkd' "
            "AND table_name <> 'schema_version' AND column_name <> 'rowid'"
        ).fetchall()
    assert {collation for *_, kind, _, collation in rows if kind == "text"} == {"C"}
    here = {(table, name): (kinds[kind], bool(must)) for table, name, kind, must, _ in rows}
    with Database(tmp_path / FILE_NAME) as database:
        rows = database.execute(
            'SELECT t.name, c.name, c.type, c."notnull", c.pk FROM sqlite_schema t '
            "JOIN pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'"
        ).fetchall()
    there = {(table, name): (kind, bool(must or key)) for table, name, kind, must, key in rows}
    assert len(there) > 50
    assert here == there


def test_many_may_open_new_books_at_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: Database(url), range(6)))
    assert sorted(database.writer for database in opened) == [1, 2, 3, 4, 5, 6]
    assert opened[0].live_writers() == {1, 2, 3, 4, 5, 6}
    for database in opened[1:]:
        database.close()
    assert opened[0].live_writers() == {opened[0].writer}
    opened[0].close()


def test_whoever_looks_while_books_are_made_sees_none_or_all(server: Postgres) -> None:
    for _ in range(5):
        url = server.database()
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(Database, url)
            while not made.done():
                are_there(url)  # raises if it takes half of a schema for somebody else's
            assert are_there(url)
            made.result().close()


def test_old_books_are_brought_up_to_date_and_newer_ones_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", old[:1])
    with Database(url) as database:
        Ledger(database).open_budget("b", Caps(tokens=7))
    monkeypatch.setattr(schema, "MIGRATIONS", old)
    with pytest.raises(InputError, match="older version"):
        Database(url, read_only=True)
    with Database(url) as database:
        assert Ledger(database).state("b").caps == Caps(tokens=7)
        assert database.execute("SELECT batch FROM holds").fetchall() == []
    monkeypatch.setattr(schema, "MIGRATIONS", (*old, "CREATE TABLE half (x TEXT); nonsense"))
    with pytest.raises(BooksError, match="cannot be opened"):
        Database(url)
    monkeypatch.setattr(schema, "MIGRATIONS", old)
    with Database(url, read_only=True) as reader:
        assert reader.execute("SELECT to_regclass('alkd.half')").fetchone() == (None,)
    monkeypatch.setattr(schema, "MIGRATIONS", old[:1])
    for read_only in (False, True):
        with pytest.raises(InputError, match=r"newer version .*update alkd_ray"):
            Database(url, read_only=read_only)


def test_what_are_no_books_is_left_alone(server: Postgres, url: str) -> None:
    assert not are_there(url)
    with pytest.raises(InputError, match="no books yet"):
        Database(url, read_only=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA alkd")
        connection.execute("CREATE TABLE alkd.theirs (x BIGINT)")
    with pytest.raises(InputError, match="another program"):
        Database(url)
    with pytest.raises(InputError, match="UTF8"):
        Database(server.database(encoding="LATIN1"))
    with pytest.raises(BooksError, match="cannot be reached"):
        Database(server.url("nowhere"))


def test_readers_see_commits_only_and_cannot_write(url: str) -> None:
    with Database(url) as database, Database(url, read_only=True) as reader:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        with database.transaction():
            assert ledger.hold("b", "one", ONE) == ""
            assert ledger.state("b").held == ONE  # it sees its own
            assert Ledger(reader).entries() == []
        with reader.transaction():  # one view, whatever is committed meanwhile
            assert Ledger(reader).state("b").held.requests == 1
            ledger.release("one")
            assert Ledger(reader).state("b").held.requests == 1
        assert Ledger(reader).state("b").held.requests == 0
        with pytest.raises(BooksError, match="read-only"):
            Ledger(reader).open_budget("c", Caps())
        assert ledger.budgets() == ["b"]


def test_a_group_is_one_transaction(url: str) -> None:
    with Database(url) as database:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012
            for number in range(5):
                ledger.hold("b", f"lost {number}", ONE)
            _ = 1 / 0
        assert ledger.entries() == []
        with database.transaction():
            ledger.hold("b", "kept", ONE)
            with pytest.raises(LedgerError):
                ledger.settle("unknown", Amounts())  # costs the group nothing
            with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012
                ledger.hold("b", "undone", ONE)
                with database.transaction():
                    ledger.settle("kept", ONE)
                    assert ledger.entry("kept").status == "settled"
                _ = 1 / 0
            assert ledger.entry("kept").status == "held"
            ledger.hold("b", "kept too", ONE)
        assert [entry.hold_id for entry in ledger.entries()] == ["kept", "kept too"]
        assert ledger.audit("b")


def test_a_failed_statement_lets_nothing_of_its_group_through(url: str) -> None:
    """PostgreSQL itself would "commit" such a transaction without an error, by undoing it."""
    insert = "INSERT INTO budgets (name, opened_at) VALUES (?, '')"
    with Database(url) as database:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        with pytest.raises(BooksError, match="nothing was recorded"), database.transaction():  # noqa: PT012
            ledger.hold("b", "one", ONE)
            with pytest.raises(BooksError, match="duplicate key"), database.transaction():  # noqa: PT012
                database.execute(insert, ("b",))
                ledger.budgets()  # what was waiting is run with this
        with pytest.raises(BooksError, match="duplicate key"), database.transaction():  # noqa: PT012
            ledger.hold("b", "two", ONE)
            database.execute(insert, ("b",))  # run with the commit
        assert ledger.entries() == []
        assert ledger.hold("b", "three", ONE) == ""
        assert ledger.audit("b")


def test_writers_take_turns_and_keep_to_one_cap(url: str) -> None:
    """Each thread is a writer of its own; all read the totals and add to them."""
    with Database(url) as database:
        Ledger(database).open_budget("b", Caps(microusd=100))

    def work(name: str) -> tuple[int, list[int]]:
        with Database(url) as mine:
            ledger, store, granted = Ledger(mine), Store(mine), 0
            for number in range(20):
                with mine.transaction():
                    hold_id = f"{name}-{number}"
                    if not ledger.hold("b", hold_id, Amounts(2, 2, 1)):
                        granted += 1
                        ledger.settle(hold_id, Amounts(2, 2, 1))
            numbers = [
                store.put_answer("k", 1, name, usage=None, cost_microusd=0, hold_id="")
                for _ in range(5)
            ]
        return granted, numbers

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, "abcd"))
    assert sum(granted for granted, _ in found) == 50
    assert sorted(number for _, numbers in found for number in numbers) == list(range(1, 21))
    with Database(url, read_only=True) as reader:
        assert Ledger(reader).state("b").settled.microusd == 100
        assert Ledger(reader).audit("b")
        assert len(Store(reader).answers(["k"])["k"]) == 20


def test_a_writer_waits_until_the_other_has_ended(url: str) -> None:
    with Database(url) as first, Database(url) as second:
        Ledger(first).open_budget("b", Caps())
        began = threading.Event()

        def late() -> int:
            began.set()
            with second.transaction():
                return Ledger(second).state("b").held.requests

        with ThreadPoolExecutor(1) as pool:
            with first.transaction():
                waiting = pool.submit(late)
                assert began.wait(30)
                for number in range(10):
                    Ledger(first).hold("b", str(number), ONE)
                assert not waiting.done()
            assert waiting.result(30) == 10


def test_only_what_the_dead_held_is_unresolved(url: str) -> None:
    with Database(url) as first:
        ledger = Ledger(first)
        ledger.open_budget("b", Caps())
        second = Database(url)
        Ledger(second).hold("b", "theirs", ONE, key="k")
        ledger.hold("b", "ours", ONE)
        assert ledger.hold("b", "again", ONE, key="k").startswith(IN_FLIGHT)
        assert ledger.recover() == 0
        assert ledger.keys_of_others() == {"k"}
        second.close()
        assert ledger.recover() == 1
        assert ledger.entry("theirs").status == "unresolved"
        assert ledger.entry("ours").status == "held"
        assert ledger.hold("b", "again", ONE, key="k") == ""


def test_a_lost_connection_costs_its_transaction_alone(url: str) -> None:
    with Database(url) as database, Database(url) as other:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        assert ledger.hold("b", "before", ONE) == ""
        number = database.writer
        _cut_off(url, number)
        assert ledger.hold("b", "between", ONE) == ""  # nobody notices
        assert database.writer == number
        assert number in other.live_writers()
        lost = pytest.raises(BooksError, match=r"connection was lost.*nothing was recorded")
        with lost, database.transaction():
            ledger.hold("b", "lost", ONE)
            ledger.state("b")
            _cut_off(url, number)
            ledger.hold("b", "lost too", ONE)
        assert Ledger(other).recover() == 2  # for all that others know, it is dead
        assert ledger.hold("b", "after", ONE) == ""
        assert Ledger(other).recover() == 0
        assert not ledger.settle("before", ONE)  # its answer came late
        assert [entry.hold_id for entry in ledger.entries()] == ["before", "between", "after"]
        assert ledger.audit("b")
        unknown = pytest.raises(BooksError, match="whether it was recorded is not known")
        with unknown, database.transaction():
            ledger.state("b")
            _cut_off(url, number)
    with pytest.raises(BooksError, match="closed"):
        ledger.state("b")


def test_a_lost_server_is_waited_for(url: str) -> None:
    with Database(url) as database:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        calls = []

        def act(again: bool) -> int:
            calls.append(again)
            with database.transaction():
                ledger.hold("b", "one", ONE)
                ledger.state("b")
                if not again:
                    _cut_off(url, database.writer)
                return ledger.state("b").held.requests

        assert database.patiently(act) == 1
        assert calls == [False, True]
        assert ledger.audit("b")


def test_a_pass_waits_for_what_a_live_driver_holds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "REFUSED_SECONDS", 0.0)
    monkeypatch.setattr(others, "DEAD_SECONDS", 0.0)
    cap = Caps(requests=1)

    def asked(hold_id: str, key: str) -> Hold:
        return Hold(hold_id, key, "rank", 1, ONE, "w")

    first = Database(url)
    with Database(url) as second:
        theirs, ours = Desk(first, "b", cap, "theirs"), Desk(second, "b", cap, "ours")
        assert theirs.apply([asked("1", "k")]) == [Verdict(True)]
        (refused,) = ours.apply([asked("2", "other")])
        assert "the cap of 1 request" in refused.reason
        assert not refused.stop
        (refused,) = ours.apply([asked("3", "k")])
        assert (refused.elsewhere, refused.stop) == ("request", False)
        theirs.apply([Release("1")])
        assert ours.apply([asked("4", "k")]) == [Verdict(True)]
        ours.apply([Release("4")])
        assert theirs.apply([asked("5", "k")]) == [Verdict(True)]
        first.close()  # it has died, so what it holds is not given back
        (refused,) = ours.apply([asked("6", "other")])
        assert refused.stop
        assert ours.ledger.entry("5").status == "unresolved"


def _cut_off(url: str, number: int) -> None:
    """Ends a writer's session, as a server that restarts does."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_locks "
            "WHERE locktype = 'advisory' AND objid = %s",
            (number,),
        ).fetchall()
    assert found == [(True,)]


def test_texts_and_numbers_come_back(tmp_path: Path, url: str) -> None:
    """Also those that PostgreSQL has no form for; the exported files are those of SQLite."""
    strange = "half \ud83d of \x00 a pair"
    for books in (url, tmp_path / FILE_NAME):
        with Database(books) as database:
            ledger, store = Ledger(database), Store(database)
            ledger.open_budget("b", Caps(microusd=10**15))
            for number in range(3):
                key = f"key {number}"
                asked = {"endpoint": "e", "model": "m", "kind": "rank", "prompt_version": "v"}
                store.put_request(key, **asked, session_id=number, body="{}")
                ledger.hold("b", key, Amounts(10**14, 1, 1), owner="o", key=key)
                store.put_answer(key, 1, strange, usage=Usage(1, 2), cost_microusd=1, hold_id=key)
                ledger.settle(key, Amounts(10**14, 1, 1))
                store.put_parsed(key, parser_version="1", ranking=[3, 1], repairs=["é"])
            store.put_failure("key 9", permanent=True, reason=strange)
            assert store.answers(["key 1", "none"])["key 1"][0].raw == strange
            assert store.spent(["key 2"])["key 2"].prompt_tokens == 1
            assert store.failures(["key 9"])["key 9"].is_permanent
            assert "half" in store.failures(["key 9"])["key 9"].reason
            assert ledger.spent_by_owner("b") == {"o": Amounts(3 * 10**14, 3, 3)}
            assert type(ledger.spent_by_owner("b")["o"].microusd) is int
            for source in ("one", "two", "one"):
                ledger.note_rates("b", "m", _rates(source))
            assert [noted.source for noted in ledger.noted_rates("b")] == ["one", "two"]
            turns = Turns(database, "e", Limits(requests_per_minute=60))
            assert turns.take(10, at=1000.125).seconds == 0
            assert turns.take(10, at=1000.125).seconds == pytest.approx(60 / 60 / 0.98)
            folder = tmp_path / ("server" if books == url else "file")
            store.export(folder)
    for file in ("requests", "answers", "rankings"):
        here, there = (
            pq.read_table(tmp_path / where / f"{file}.parquet") for where in ("server", "file")
        )
        times = [name for name in here.column_names if name.endswith("_at")]
        assert here.drop_columns(times).equals(there.drop_columns(times))
        assert len(here) == 3


def _rates(source: str) -> Rates:
    from alkd_ray.annotation import pricing

    given = {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0}
    return replace(pricing.rates_of("m", "http://127.0.0.1/v1", given), source=source)


def test_no_password_is_shown_or_kept(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = url.replace("@", f":{PASSWORD}@")
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(BooksError, match="authentication failed") as refused:
        Database(url)
    assert "wrong" not in str(refused.value)
    with Database(whole) as database:
        assert database.place == url
    with pytest.raises(BooksError, match="cannot be reached") as refused:
        Database(whole.replace("/test", "/nowhere"))
    assert PASSWORD not in str(refused.value)
    for broken in (whole.replace("@", "/@"), whole.replace("@", "@x@"), f"http://{PASSWORD}@h/d"):
        with pytest.raises(InputError) as refused_url:
            Database(broken)
        assert PASSWORD not in str(refused_url.value)
    for given in (whole, f"{url}?password={PASSWORD}", f"x:{PASSWORD}@h/d"):
        with pytest.raises(InputError, match="books") as refused_config:
            configs.make({"books": given})
        assert PASSWORD not in str(refused_config.value)
        assert refused_config.value.__cause__ is None


def test_where_the_books_are_is_no_part_of_a_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, shared = configs.make({}), configs.make({"books": url})
    assert shared.books == url
    assert run_id_of(plain) == run_id_of(shared)
    monkeypatch.delenv("ALKD_BOOKS", raising=False)
    assert books_of(plain.books, tmp_path) == tmp_path / FILE_NAME
    monkeypatch.setenv("ALKD_BOOKS", "postgresql://other/db")
    assert books_of(plain.books, tmp_path) == "postgresql://other/db"
    assert books_of(shared.books, tmp_path) == url


def test_ledger_verbs_work_on_the_url(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alkd_ray.cli.main import build

    monkeypatch.setenv("ALKD_BOOKS", url.replace("@", f":{PASSWORD}@"))

    def told(*words: str) -> str:
        done = CliRunner().invoke(build(), words, catch_exceptions=False)
        assert done.exit_code == 0
        assert PASSWORD not in done.output
        return done.output

    with Database(url) as database:  # a run that is alive
        ledger = Ledger(database)
        ledger.open_budget("b", Caps(microusd=1_000_000))
        ledger.hold("b", "alive", Amounts(1000, 1, 1))
        ledger.hold("b", "unknown", Amounts(1000, 1, 1))
        ledger.leave_unresolved("unknown", "timeout")
        assert re.search(r"unresolved: settle these(.|\n)*unknown", told("ledger", "show"))
        assert f'"books": "{url}"' in told("ledger", "show", "--json")
        assert "settled at" in told("ledger", "resolve", "unknown", "--dollars", "0.0004")
        assert ledger.entry("unknown").actual.microusd == 400
        assert ledger.entry("alive").status == "held"
        told("ledger", "export", str(tmp_path / "holds.csv"))
        assert "alive" in (tmp_path / "holds.csv").read_text()
        told("annotate", "export", str(tmp_path / "answers"))
        assert (tmp_path / "answers" / "requests.parquet").is_file()


def test_the_missing_package_is_named(url: str) -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from alkd_ray.annotation.database import Database\n"
        "try: Database(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, url],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    ).stdout
    assert told.startswith("InputError")
    assert "alkd_ray[postgres]" in told
