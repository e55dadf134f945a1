"""Recorded rankings: the two forms, and what is said about damaged ones."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alkd_ray import registry
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers.replay import Replay


def recording(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_text_form(tmp_path):
    path = recording(tmp_path / "x.data", "9\t[4, 4, -1, 70000]\t25\n\n3\t[]\n8\t[ 5 ]\t0\n")
    teacher = Replay(path)
    assert teacher.recorded_ids().tolist() == [3, 8, 9]
    assert [teacher.ranking(i).tolist() for i in (9, 3, 8)] == [[4, 4, -1, 70000], [], [5]]


def test_order_of_rows_line_ends_and_other_columns_do_not_matter(tmp_path):
    one = Replay(recording(tmp_path / "a", "1\t[2, 3]\t25\n5\t[4]\t0\n"))
    other = Replay(recording(tmp_path / "b", "\ufeff5\t[4]\r\n1\t[2,3]\r\n"))
    columns = {
        "note": ["x", "y"],
        "ranking": pa.array([[4], [2, 3]], pa.large_list(pa.int16())),
        "session_id": pa.array([5, 1], pa.uint8()),
    }
    third = Replay(table(tmp_path / "c", **columns))
    assert one.fingerprint == other.fingerprint == third.fingerprint
    # Where a list ends is part of the content.
    fourth = Replay(recording(tmp_path / "d", "1\t[2]\n5\t[3, 4]\n"))
    assert fourth.fingerprint != one.fingerprint


def test_home_and_working_directory(tmp_path, monkeypatch):
    recording(tmp_path / "x.data", "1\t[2]\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Replay("~/x.data").fingerprint == Replay("x.data").fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t[2]\t0\n2 [3] 0\n", "line 2: 1 fields between tabs, wanted 2 or 3"),
        ("1\t[2]\t0\t9\n", "line 1: 4 fields"),
        ("x\t[2]\t0\n", "line 1, session id: 'x' is not a whole number"),
        ("1.0\t[2]\t0\n", "line 1, session id: '1.0' is not"),
        ("true\t[2]\t0\n", "line 1, session id: 'true' is not"),
        ("1\t[2]\n\n3\t[2, 'a']\n", r"line 3, ranking: .* is not a list of whole numbers"),
        ("1\t[2, 3.5]\n", "line 1, ranking"),
        ("1\t[2, true]\n", "line 1, ranking"),
        ("1\t2, 3\n", "line 1, ranking"),
        ("1\t[99999999999999999999]\n", "line 1, ranking"),
        ("1\t" + "[" * 100_000 + "\n", "line 1, ranking"),
        ("7\t[2]\n1\t[2]\n7\t[3]\n", "session id: 7 is recorded more than once"),
        ("", "there are no recorded rankings"),
        ("PAR1 and then nothing", "the parquet table is damaged"),
    ],
)
def test_damaged_text(tmp_path, text, message):
    path = recording(tmp_path / "x.data", text)
    with pytest.raises(InputError, match=message) as raised:
        Replay(path)
    assert str(raised.value).startswith(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"session": [1]}, "no column 'session_id' .columns: session.;"),
        ({"session_id": [1], "items": [[2]]}, "no column 'ranking'"),
        ({"session_id": ["1"], "ranking": [[2]]}, "column session_id: must hold integers"),
        ({"session_id": [1], "ranking": ["[2]"]}, "column ranking: must hold lists of integers"),
        ({"session_id": [1], "ranking": [[2.5]]}, "column ranking: must hold lists of integers"),
        ({"session_id": [1, 2], "ranking": [[2], None]}, "row 1, ranking: there is no value"),
        ({"session_id": [1, None], "ranking": [[2], [3]]}, "row 1, session_id: there is no value"),
        ({"session_id": [1], "ranking": [[2, None]]}, "ranking: a list holds an item that is null"),
        ({"session_id": [4, 4], "ranking": [[2], [2]]}, "session id: 4 is recorded more than once"),
    ],
)
def test_damaged_tables(tmp_path, columns, message):
    path = table(tmp_path / "x.parquet", **columns)
    with pytest.raises(InputError, match=message) as raised:
        Replay(path)
    assert str(raised.value).startswith(path)


def test_an_empty_table(tmp_path):
    schema = {"session_id": pa.array([], pa.int64()), "ranking": pa.array([], pa.list_(pa.int64()))}
    with pytest.raises(InputError, match="there are no recorded rankings"):
        Replay(table(tmp_path / "x.parquet", **schema))


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read .*set llm\.options\.path"):
            Replay(str(path))
    (tmp_path / "x").write_bytes(b"1\t[2]\n\xff\xfe")
    with pytest.raises(InputError, match="neither a parquet table nor text"):
        Replay(str(tmp_path / "x"))


def test_a_path_is_needed():
    with pytest.raises(InputError, match=r"llm\.options\.path"):
        registry.options("llm_teachers", "replay", {}, "llm.options")
