"""Sessions to recommend for, from files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alkd_ray.errors import InputError
from alkd_ray.serving.session_files import read_sessions

text = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=8)
tables = st.dictionaries(text, st.lists(text, min_size=1, max_size=5), min_size=1, max_size=5)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions=tables)
def test_both_kinds_give_back_what_was_written(
    tmp_path: Path, sessions: dict[str, list[str]]
) -> None:
    lines = tmp_path / "s.jsonl"
    lines.write_text(
        "".join(
            json.dumps({"session_id": name, "session": ids}) + "\n"
            for name, ids in sessions.items()
        ),
        encoding="utf-8",
    )
    table = tmp_path / "s.csv"
    with table.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, quoting=csv.QUOTE_ALL)
        writer.writerow(["item_id", "session_id"])
        writer.writerows((source, name) for name, ids in sessions.items() for source in ids)
    assert read_sessions(lines) == sessions
    assert read_sessions(table) == sessions


def test_plain_lists_are_named_by_their_line_and_numbers_become_texts(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text('["a", 17]\n\n[]\n')
    assert read_sessions(file) == {"1": ["a", "17"], "3": []}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.txt", "a", "read from .jsonl or .csv files"),
        ("s.jsonl", '["a"]\n["b"\n', "line 2: is not JSON"),
        ("s.jsonl", '["a"]\n{"items": ["b"]}\n', "line 2: is not a list of item ids"),
        ("s.jsonl", '[["a"]]\n', "line 1: is not a list of item ids"),
        (
            "s.jsonl",
            '{"session_id": 1, "session": []}\n{"session_id": "1", "session": []}\n',
            "line 2: session_id '1' is there twice",
        ),
        ("s.jsonl", "", "holds no sessions"),
        ("s.csv", "session,item\n1,2\n", "lacks the column session_id, item_id"),
        ("s.csv", "session_id,item_id\n1,2\n1,\n", "line 3: a field is empty"),
        ("s.csv", "session_id,item_id\n1\n", "line 2: a field is empty"),
        ("s.csv", "session_id,item_id\n", "holds no sessions"),
        ("s.csv", None, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=said) as raised:
        read_sessions(file)
    assert str(file) in str(raised.value)
