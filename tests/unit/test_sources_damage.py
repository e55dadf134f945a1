"""Bad tables: which file, which line, which field, and what to do."""

from __future__ import annotations

import gzip
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


@pytest.mark.parametrize("title_is_last", [True, False])
@pytest.mark.parametrize("title", ["title", ""])
@pytest.mark.parametrize(
    ("opened", "closed", "lines", "sessions"),
    [
        (21, '"Title', 10, 6),  # closed by the next such title, amid a field
        (21, 'Title"', 10, 6),  # closed as it should be, but after lines that are rows
        (21, "Title", 24, 4),
        (44, "Title", 1, 8),
    ],
)
def test_a_quote_that_merges_rows(
    tmp_path: Path,
    title_is_last: bool,
    title: str,
    opened: int,
    closed: str,
    lines: int,
    sessions: int,
) -> None:
    """The merged row may have as many fields as the header, so that Arrow takes it."""
    path = tmp_path / "log.csv"
    rows = [line.strip().split(",") for line in [HEADER, *GOOD]]
    rows[1 + opened][3] = '"Title'
    rows[31][3] = closed
    if not title_is_last:
        rows = [[row[3], row[0], row[1], row[2]] for row in rows]
    content = "\n".join(map(",".join, rows))
    for text in (content, content + "\n"):
        message = refused(path, text, title=title)
        assert f"log.csv: line {opened + 2}" in message
        assert lines == 1 or "never closed" in message
        assert f"({lines} damaged in all, max_bad is 0)" in message
    dataset = load(path, content, title=title, max_bad=lines)
    assert len(dataset.sessions) == sessions
    assert len(load(path, content, title=title, quote="").sessions) == 9


def test_a_quote_that_swallows_more_than_python_takes_in_one_field(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [f"u{n % 9},i{n % 5},{1_700_000_000 + n},Title {n % 5}\n" for n in range(9_000)]
    rows[2_000] = rows[2_000].replace("Title", '"Title')
    assert "(7000 damaged in all" in refused(path, HEADER + "".join(rows))
    rows[0] = "u0,i0,1700000000\n"
    message = refused(path, HEADER + "".join(rows) + ",,,\n", max_bad=1)
    assert "line 2: has 3 fields" in message
    assert "line 2002: holds a quote" in message
    assert "(7002 damaged in all" in message


def test_lines_behind_a_merged_row_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [*GOOD[:20], 'u1,i1,1700000000,"A', 'b" c\n', *GOOD[20:], "u1,,1700000000,T\n"]
    rows[20] += "\n"
    message = refused(path, HEADER + "".join(rows))
    assert "line 22: holds a quote that is never closed, over 2 lines" in message
    assert "line 49, field item: is empty (3 damaged in all" in message


def test_text_over_several_lines_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    prose = '"Say ""no"", they said,\n\nand wrote, over\nfour, lines, of, it,\nthis: ""Title\n"'
    content = HEADER + "".join(GOOD).replace("Title 3", prose)
    dataset = load(path, content)
    assert (dataset.damaged_lines, len(dataset.sessions)) == (0, 9)
    assert dataset.catalogue.titles[3].startswith('Say "no", they said,\n\nand')


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
        (HEADER + "".join(GOOD), {"encoding": "undefined"}, "encoding 'undefined' is not known"),
        ((HEADER + GOOD[0]).encode("utf-16"), {}, "not text in the encoding utf-8 (it begins as "
         "UTF-16 does); set encoding=utf-16"),
        (b"\xff" + HEADER.encode(), {}, "is not text in the encoding utf-8"),
        (gzip.compress(HEADER.encode(), mtime=0), {}, "give its name the ending .gz"),
        (b"PK\x03\x04", {}, "is a packed file; unpack it"),
        (b"PAR1", {}, "is Parquet; give its name the ending .parquet"),
        ('{"user": "u1", "item": "i1"}\n', {}, "holds JSON, not a table"),
        ('"' + HEADER + GOOD[0], {}, "line 1 cannot be read as a header"),
    ],
)  # fmt: skip
def test_bad_files(
    tmp_path: Path, content: str | bytes, options: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path / "log.csv", content, **options)


def test_a_packed_file_that_is_cut(tmp_path: Path) -> None:
    packed = gzip.compress((HEADER + "".join(GOOD)).encode())
    for content in (packed[:-20], HEADER.encode()):
        assert "log.csv.gz: cannot be read" in refused(tmp_path / "log.csv.gz", content)


def test_a_line_that_is_neither_text_nor_as_wide_as_the_others(tmp_path: Path) -> None:
    """Beside lines of which each has one of the two faults."""
    path = tmp_path / "log.csv"
    bad = [b"u1,i1,1700000000,\xe9,more\n", b"u1,i\xff,1700000000,T\n", b"u1,i1\n"]
    content = b"\xef\xbb\xbf" + (HEADER + "".join(GOOD)).encode() + b"".join(bad)
    message = refused(path, content, max_bad=2)
    assert "line 47: has 5 fields, must have 4" in message
    assert "line 48, field item: is not text in the file's encoding" in message
    assert "line 49: has 2 fields" in message
    dataset = load(path, content.replace(b"Title 2", "Tïtle".encode()), max_bad=3)
    assert (dataset.damaged_lines, len(dataset.sessions)) == (3, 9)
    assert dataset.catalogue.titles[2] == "Tïtle"


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


@pytest.mark.parametrize("name", ["user", "item"])
def test_ids_that_are_not_a_number(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.parquet"
    columns = {
        "user": [user for user in range(9) for _ in range(5)],
        "item": [*range(5)] * 9,
        "time": [1_700_000_000] * 45,
    }
    columns[name] = pa.array(
        [float("nan") if row < 10 else value for row, value in enumerate(columns[name])],
        pa.float64(),
        from_pandas=False,
    )
    pq.write_table(pa.table(columns), path)
    options = {"path": str(path), "user": "user", "time": "time"}
    with pytest.raises(InputError, match=rf"row 0, field {name}: is empty.*10 damaged in all"):
        registry.build("sources", "table", options).load()
    dataset = registry.build("sources", "table", {**options, "max_bad": 10}).load()
    assert len(dataset.sessions) == 7
    assert sorted(dataset.catalogue.source_ids) == list("01234")


def test_lists_with_ids_that_are_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    nan = float("nan")
    lists = pa.array([[1.0, 2.0], [1.0, nan], [2.0, 1.0], [1.0, 1.0]], pa.list_(pa.float64()))
    pq.write_table(pa.table({"item": lists, "next": pa.array([1.0, 1.0, nan, 2.0])}), path)
    options = {"path": str(path), "target": "next"}
    said = "row 1, field item: holds an empty item id; .*row 2, field next: is empty .2 damaged"
    with pytest.raises(InputError, match=said):
        registry.build("sources", "table", options).load()


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
