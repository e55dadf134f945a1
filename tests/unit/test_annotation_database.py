"""The file of books: one writer, readers beside it, groups, migrations, damage."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alkd_ray.annotation import schema
from alkd_ray.annotation.database import FILE_NAME, BooksError, Database
from alkd_ray.annotation.ledger import Ledger, LedgerError
from alkd_ray.annotation.schema import MIGRATIONS
from alkd_ray.errors import InputError
from alkd_ray.types import Amounts, Caps


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / FILE_NAME


def test_a_second_writer_is_told_who_writes(path: Path) -> None:
    with Database(path):
        with pytest.raises(BooksError, match=f"process {os.getpid()} on .*wait until it ends"):
            Database(path)
        program = (
            "import sys; from alkd_ray.annotation.database import *\n"
            "try: Database(sys.argv[1])\n"
            "except BooksError as error: print(error)"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        ).stdout
        assert f"process {os.getpid()}" in told
    with Database(path):
        pass


def test_a_writer_can_wait_for_another_to_end(path: Path) -> None:
    first = Database(path)
    timer = threading.Timer(0.5, first.close)
    started = time.monotonic()
    timer.start()
    with Database(path, wait_seconds=30):
        assert time.monotonic() - started >= 0.4
    timer.join()


def test_readers_see_commits_only_and_cannot_write(path: Path) -> None:
    with Database(path) as database, Database(path, read_only=True) as reader:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        with database.transaction():
            assert ledger.hold("b", "one", Amounts(1, 1, 1)) == ""
            assert Ledger(reader).entries() == []
        assert [entry.hold_id for entry in Ledger(reader).entries()] == ["one"]
        with reader.transaction():  # one view, whatever is committed meanwhile
            assert Ledger(reader).state("b").held.requests == 1
            ledger.release("one")
            assert Ledger(reader).state("b").held.requests == 1
        assert Ledger(reader).state("b").held.requests == 0
        with pytest.raises(BooksError, match="readonly"):
            Ledger(reader).open_budget("c", Caps())


def test_a_reader_reads_what_a_killed_writer_left_in_the_log(path: Path, tmp_path: Path) -> None:
    with Database(path) as database:
        Ledger(database).open_budget("b", Caps(microusd=5))
        copy = tmp_path / "copy" / FILE_NAME
        shutil.copytree(path.parent, copy.parent)  # as if the process had died here
        (copy.parent / f"{FILE_NAME}-shm").unlink()
    assert (copy.parent / f"{FILE_NAME}-wal").stat().st_size > 0
    with Database(copy, read_only=True) as reader:
        assert Ledger(reader).state("b").caps == Caps(microusd=5)


def test_a_group_is_one_transaction(path: Path) -> None:
    with Database(path) as database:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012
            for number in range(5):
                ledger.hold("b", f"lost {number}", Amounts(1, 1, 1))
            _ = 1 / 0
        assert ledger.entries() == []
        assert ledger.state("b").held == Amounts()
        with database.transaction():
            ledger.hold("b", "kept", Amounts(1, 1, 1))
            with pytest.raises(LedgerError):
                ledger.settle("unknown", Amounts())  # costs the group nothing
            with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012
                ledger.hold("b", "undone", Amounts(1, 1, 1))
                _ = 1 / 0
            ledger.hold("b", "kept too", Amounts(1, 1, 1))
        assert [entry.hold_id for entry in ledger.entries()] == ["kept", "kept too"]
        assert ledger.audit("b")


def test_a_failed_write_inside_a_group_lets_nothing_of_it_through(path: Path) -> None:
    """A full disk, through SQLite's own limit on the file's size."""
    with Database(path) as database:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(BooksError, match="full"), database.transaction():  # noqa: PT012
            for number in range(2_000):
                ledger.hold("b", f"hold {number}", Amounts(1, 1, 1), owner="x" * 1_000)
        assert ledger.entries() == []
        assert ledger.audit("b")
        database.execute("PRAGMA max_page_count = 100000")
        assert ledger.hold("b", "later", Amounts(1, 1, 1)) == ""


def test_a_group_that_sqlite_undid_refuses_to_go_on(path: Path) -> None:
    with Database(path) as database:
        ledger = Ledger(database)
        ledger.open_budget("b", Caps())
        with pytest.raises(BooksError, match="nothing was recorded"), database.transaction():  # noqa: PT012
            ledger.hold("b", "one", Amounts(1, 1, 1))
            database.execute("ROLLBACK")  # what SQLite itself does after some errors
            ledger.hold("b", "two", Amounts(1, 1, 1))
        assert ledger.entries() == []


def test_a_closed_file_raises_and_may_be_closed_again(path: Path) -> None:
    database = Database(path)
    database.close()
    database.close()
    with pytest.raises(BooksError):
        Ledger(database).budgets()


def test_durability_settings(path: Path) -> None:
    with Database(path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_an_instance_may_move_to_another_thread(path: Path) -> None:
    database = Database(path)
    done = []
    thread = threading.Thread(target=lambda: done.append(Ledger(database).open_budget("b", Caps())))
    thread.start()
    thread.join()
    assert done
    database.close()


def test_a_newer_file_is_refused(path: Path) -> None:
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for read_only in (False, True):
        with pytest.raises(InputError, match=r"newer version .*update alkd_ray"):
            Database(path, read_only=read_only)


def test_an_older_file_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database(path) as database:
        Ledger(database).open_budget("b", Caps(tokens=7))
    later = (*MIGRATIONS, "ALTER TABLE budgets ADD COLUMN note TEXT NOT NULL DEFAULT ''")
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    with pytest.raises(InputError, match="older version"):
        Database(path, read_only=True)
    with Database(path) as database:
        assert Ledger(database).state("b").caps == Caps(tokens=7)
        assert database.execute("SELECT note FROM budgets").fetchone() == ("",)
        assert database.execute("PRAGMA user_version").fetchone() == (len(later),)
    Database(path, read_only=True).close()


def test_a_migration_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE half (x); CREATE TABLE budgets (x)")
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with pytest.raises(BooksError, match="cannot be opened"):
        Database(path)
    monkeypatch.setattr(schema, "MIGRATIONS", MIGRATIONS)
    with Database(path) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}
        assert "half" not in names


def test_what_is_no_file_of_books_is_left_alone(path: Path) -> None:
    with pytest.raises(InputError, match="no books yet"):
        Database(path, read_only=True)
    assert not path.parent.exists()
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(InputError, match="another program"):
        Database(path)
    path.write_bytes(b"garbage, certainly not a database" * 100)
    with pytest.raises(InputError, match="not a file of books"):
        Database(path)
    assert path.read_bytes().startswith(b"garbage")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BooksError, match="cannot be made"):
        Database(tmp_path / "file" / "below" / FILE_NAME)
