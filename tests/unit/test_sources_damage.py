"""Bad tables: which file, which line, which field, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alkd_ray import registry
from alkd_ray.errors import InputError
from alkd_ray.types import Dataset

HEADER = "user,item,time,title\n"
GOOD = [
    f"u{user},i{item},{1_700_000_000 + item},Title {item}\n"
    for user in range(9)
    for item in range(5)
]
OPTIONS = {"user": "user", "time": "time", "title": "title"}


def reader(path: Path, content: str | bytes, **options: Any) -> Any:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return registry.build("sources", "table", {"path": str(path), **OPTIONS, **options})


def load(path: Path, content: str | bytes, **options: Any) -> Dataset:
    return reader(path, content, **options).load()


def refused(path: Path, content: str | bytes, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        load(path, content, **options)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("u1,i1,yesterday,T\n", "line 12, field time: 'yesterday' is not a time"),
        ("u1,i1,,T\n", "line 12, field time: '' is not a time"),
        ("u1,i1,-9e18,T\n", "line 12, field time: '-9e18' is not a time"),
        ("u1,i1,nan,T\n", "line 12, field time: 'nan' is not a time"),
        ("u1,,1700000000,T\n", "line 12, field item: is empty"),
        ("u1, ,1700000000,T\n", "line 12, field item: is empty"),
        (",i1,1700000000,T\n", "line 12, field user: is empty"),
        ("u1,i1,1700000000\n", "line 12: has 3 fields, must have 4"),
        ("u1,i1,1700000000,T,more\n", "line 12: has 5 fields, must have 4"),
        (b"u1,i\xff,1700000000,T\n", "line 12, field item: is not text in the file's encoding"),
        (b"u1,i1,1700000000,\xe9t\xe9\n", "line 12, field title: is not text"),
    ],
)
def test_a_damaged_line_is_named_or_left_out(tmp_path: Path, line: str | bytes, said: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    # Line 4 is a title over three lines, lines 9 and 10 are empty: line 12 is the tenth record.
    head = HEADER + "".join(GOOD[:2]) + 'u0,i2,1700000002,"Title\n2\n."\n'
    content = (head + "".join(GOOD[3:5]) + "\n\n" + GOOD[5]).encode() + raw
    content += "".join(GOOD[6:]).encode()
    path = tmp_path / "log.csv"
    message = refused(path, content)
    assert f"{path}: {said}" in message
    assert "1 damaged in all, max_bad is 0" in message
    source = reader(path, content, max_bad=1)
    dataset = source.load()
    assert dataset.damaged_lines == 1
    assert said in source.problems[0]
    assert len(dataset.sessions) == 9
    assert dataset.catalogue.titles[2] == "Title\n2\n."


def test_every_damaged_line_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    bad = [",,x,\n", "u1,i1\n", "u1,,1700000000,T\n", "u1,i1,soon,T\n"]
    content = HEADER + bad[0] + GOOD[0] + bad[1] + "".join(GOOD[1:]) + bad[2] + bad[3]
    message = refused(path, content, max_bad=3)
    assert "line 2, field user" in message
    assert "line 4: has 2 fields" in message
    assert "line 49, field item" in message
    assert "line 50" not in message  # the first three are described
    assert "; ... (4 damaged in all, max_bad is 3)" in message
    assert load(path, content, max_bad=4).damaged_lines == 4


def test_a_quote_that_is_never_closed_counts_all_it_swallows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    content = HEADER + "".join(GOOD[:40]) + 'u8,i0,"1700000000,T\n' + "".join(GOOD[41:])
    message = refused(path, content, max_bad=4)
    assert "line 42: has 3 fields, must have 4, over 5 lines: is a quote never closed?" in message
    assert "(5 damaged in all" in message


def test_line_numbers_of_many(tmp_path: Path) -> None:
    """Every third line is broken, every fourth has no time; each is found where it stands."""
    path = tmp_path / "log.csv"
    lines = [
        "a,b\n" if n % 3 == 0 else f"u{n % 5},i{n % 7},never,T\n" if n % 4 == 0
        else f"u{n % 5},i{n % 7},{1_700_000_000 + n},T\n"
        for n in range(2, 200)
    ]  # fmt: skip
    source = reader(path, HEADER + "".join(lines), max_bad=200)
    bad = [n for n in range(2, 200) if n % 3 == 0 or n % 4 == 0]
    assert source.load().damaged_lines == len(bad)
    assert [int(p.split("line ")[1].split(",")[0].split(":")[0]) for p in source.problems] == bad[
        :10
    ]


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("", {}, "is empty; its first line must name the columns"),
        ("\n\n", {}, "is empty"),
        (HEADER, {}, "holds no rows below its header"),
        ("user,item\nu,i\n", {}, "column 'time' is not there; the columns are: user, item"),
        ("user,user,item,time,title\n", {}, "the column 'user' is there more than once"),
        (HEADER + "".join(GOOD), {"min_length": 6}, "at least 6 records (the longest has 5)"),
        (HEADER + "".join(GOOD[:10]), {}, "2 sessions have at least 5 records"),
        (HEADER.encode() + b"u,i,1,\xff\n", {"encoding": "ascii"}, "not text in the encoding"),
        (HEADER + "".join(GOOD), {"encoding": "klingon"}, "encoding 'klingon' is not known"),
        (HEADER + "".join(GOOD), {"target": "title"}, "target is only for tables with lists"),
        (b"\xff\xfe" + HEADER.encode(), {}, "is not text in the encoding utf-8"),
    ],
)  # fmt: skip
def test_bad_files(
    tmp_path: Path, content: str | bytes, options: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path / "log.csv", content, **options)


def test_missing_titles(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    content = HEADER + "".join(GOOD).replace("Title 3", "")
    assert "field title: 1 of 5 items have no title, e.g. 'i3'" in refused(path, content)
    kept = load(path, content, untitled="keep")
    assert kept.catalogue.titles.tolist() == ["Title 0", "Title 1", "Title 2", "", "Title 4"]


def test_damage_in_the_file_of_titles(tmp_path: Path) -> None:
    titles = tmp_path / "titles.csv"
    titles.write_text("item,title\n" + "".join(f"i{n},T\n" for n in range(5)) + ",lost\ni9\n")
    path = tmp_path / "log.csv"
    content = HEADER + "".join(GOOD) + "u1,,1700000000,T\n"
    options = {"titles_path": str(titles)}
    message = refused(path, content, **options)
    assert f"{path}: line 47, field item" in message
    assert f"{titles}: line 7, field item: is empty" in message
    assert "3 damaged in all" in message
    assert load(path, content, max_bad=3, **options).damaged_lines == 3
    titles.unlink()
    with pytest.raises(InputError, match=r"titles.csv: there is no such file"):
        load(path, content, max_bad=3, **options)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    table = pd.DataFrame(
        {"user": ["u", None, "v"] * 5, "item": [1, 2, None] * 5, "time": [1.7e9] * 15}
    )
    table.to_parquet(path)
    source = {"path": str(path), "user": "user", "time": "time", "min_length": 2}
    with pytest.raises(InputError, match=r"row 1, field user: is empty.*10 damaged in all"):
        registry.build("sources", "table", source).load()
    with pytest.raises(InputError, match="'item' holds no lists"):
        registry.build("sources", "table", {"path": str(path)}).load()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"log.parquet: cannot be read as Parquet"):
        registry.build("sources", "table", source).load()


def test_damaged_lists(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    lists = [["a", "b"], [], None, ["a", ""], ["b", None], ["b", "a"], ["a", "a"]]
    pq.write_table(pa.table({"item": lists, "next": [*"xyzxy", None, "x"], "user": [1] * 7}), path)

    def build(**options: Any) -> Any:
        return registry.build("sources", "table", {"path": str(path), **options})

    said = r"row 1, field item: holds no items; .*row 2.*row 3, .*an empty item id; ... .4 damaged"
    with pytest.raises(InputError, match=said):
        build().load()
    source = build(target="next", max_bad=5, min_length=3)
    with pytest.raises(InputError, match="2 sessions have at least 3 records"):
        source.load()
    assert [problem.split("row ")[1][0] for problem in source.problems] == list("12345")
    with pytest.raises(InputError, match="leave out user"):
        build(user="user", time="user").load()
    with pytest.raises(InputError, match="titles_path"):
        build(title="next").load()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"user": "u"}, "need the column of their times"),
        ({"user": "u", "session": "s", "time": "t"}, "not both"),
        ({}, "name the column of users"),
        ({"session": "s", "split": "time"}, "split by time needs"),
        ({"session": "s", "min_length": 1}, "2 or more"),
        ({"session": "s", "delimiter": "ab"}, "one character"),
        ({"session": "s", "colour": "red"}, "no such field"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        registry.options("sources", "table", {"path": "log.csv", **options}, "data.options")
