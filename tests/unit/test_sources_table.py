"""Tables become the sessions that a plain loop over their rows makes."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray import registry
from alkd_ray.errors import InputError
from alkd_ray.types import SPLITS, Dataset

START = int(datetime(2024, 2, 28, 22, tzinfo=UTC).timestamp())
Row = tuple[str, str, int]  # user, item, minutes after START


def load(**options: Any) -> Dataset:
    return registry.build("sources", "table", options).load()


def write_csv(path: Path, header: list[str], rows: list[tuple[Any, ...]], **style: Any) -> str:
    with path.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, **style).writerows([header, *rows])
    return str(path)


def as_lists(dataset: Dataset) -> list[list[str]]:
    """Source ids of each session, target last."""
    sessions, ids = dataset.sessions, dataset.catalogue.source_ids
    return [
        [str(ids[item]) for item in [*sessions.items_of(row), sessions.targets[row]]]
        for row in range(len(sessions))
    ]


def by_loop(rows: list[Row], rule: str, merge: bool, min_length: int) -> list[list[Row]]:
    """One user after the other, one record after the other."""
    of_user: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_user[row[0]].append(row)
    made: list[list[Row]] = []
    for history in of_user.values():
        sessions: list[list[Row]] = []
        for row in sorted(history, key=lambda row: row[2]):
            last = sessions[-1][-1] if sessions else None
            if last is None or _is_apart(last[2], row[2], rule):
                sessions.append([row])
            else:
                sessions[-1].append(row)
        made += sessions
    if merge:
        made = [
            [row for place, row in enumerate(s) if place == 0 or s[place - 1][1] != row[1]]
            for s in made
        ]
    return [session for session in made if len(session) >= min_length]


def _is_apart(earlier: int, later: int, rule: str) -> bool:
    if rule == "gap":
        return later - earlier > 45
    days = [
        (datetime.fromtimestamp(START, UTC) + timedelta(minutes=m)).date() for m in (earlier, later)
    ]
    return days[0] != days[1]


rows_of_a_log = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "7", "ü,4"]),
        st.sampled_from(["a", "b", "10", '"c"', "d e"]),
        st.integers(0, 3_000),
    ),
    min_size=20,
    max_size=120,
)


@settings(max_examples=30, deadline=None)
@given(rows_of_a_log, st.sampled_from(["day", "gap"]), st.booleans(), st.integers(2, 4))
def test_interactions_equal_the_loop(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    rule: str,
    merge: bool,
    min_length: int,
) -> None:
    wanted = by_loop(rows, rule, merge, min_length)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    lines = [(user, START + 60 * minutes, item) for user, item, minutes in rows]
    options = {
        "path": write_csv(path, ["who", "when", "what"], lines),
        "user": "who", "item": "what", "time": "when", "sessions": rule, "gap_minutes": 45,
        "repeats": "merge" if merge else "keep", "min_length": min_length, "split": "time",
    }  # fmt: skip
    if len(wanted) < 3:
        with pytest.raises(InputError, match=f"{len(wanted)} sessions have at least {min_length}"):
            load(**options)
        return
    dataset = load(**options)
    assert as_lists(dataset) == [[row[1] for row in session] for session in wanted]
    # Split by time: sorted by the last record's time, the first 60% train, the last 20% test.
    order = sorted(range(len(wanted)), key=lambda row: wanted[row][-1][2])
    names = {
        row: "train" if place < int(0.6 * len(wanted))
        else "valid" if place < int(0.8 * len(wanted)) else "test"
        for place, row in enumerate(order)
    }  # fmt: skip
    assert [SPLITS[code] for code in dataset.sessions.split] == [
        names[row] for row in range(len(wanted))
    ]


def small_log() -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        (f"u{u}", f"i{i}", int(m))
        for u, i, m in zip(
            rng.integers(0, 30, 600), rng.integers(0, 40, 600), rng.integers(0, 5_000, 600),
            strict=True,
        )
    ]  # fmt: skip


def test_the_paper_drops_fewer_than_five_and_splits_at_random(tmp_path: Path) -> None:
    rows = small_log()
    lines = [(user, item, START + 60 * minutes) for user, item, minutes in rows]
    path = write_csv(tmp_path / "log.csv", ["user", "item", "time"], lines)
    made = [load(path=path, user="user", time="time", seed=seed) for seed in (1, 1, 2)]
    wanted = by_loop(rows, "day", False, 5)
    assert as_lists(made[0]) == [[row[1] for row in session] for session in wanted]
    count = len(wanted)
    for dataset in made:
        sizes = np.bincount(dataset.sessions.split, minlength=3)
        assert sizes.tolist() == [
            int(0.6 * count), int(0.8 * count) - int(0.6 * count), count - int(0.8 * count)
        ]  # fmt: skip
    assert made[0].sessions.fingerprint == made[1].sessions.fingerprint
    assert made[0].sessions.split.tolist() != made[2].sessions.split.tolist()
    assert "seed 1" in made[0].split_rule


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "iso", "iso with zone", "timestamp"])
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_times_and_files_of_every_form_agree(tmp_path: Path, unit: str, form: str) -> None:
    rows = small_log()
    moments = [datetime.fromtimestamp(START + 60 * minutes, UTC) for *_, minutes in rows]
    times: dict[str, list[Any]] = {
        "seconds": [int(moment.timestamp()) for moment in moments],
        "milliseconds": [int(moment.timestamp()) * 1_000 for moment in moments],
        "iso": [moment.strftime("%Y-%m-%d %H:%M:%S") for moment in moments],
        "iso with zone": [  # UTC+2, so that the local day is not the UTC day
            (moment + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00") for moment in moments
        ],
        "timestamp": [moment.replace(tzinfo=None) for moment in moments],
    }
    table = pd.DataFrame(
        {"user": [row[0] for row in rows], "item": [row[1] for row in rows], "time": times[unit]}
    )
    path = tmp_path / f"log.{form}"
    if form == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    dataset = load(path=str(path), user="user", time="time")
    assert as_lists(dataset) == [[row[1] for row in s] for s in by_loop(rows, "day", False, 5)]


def test_ready_sessions_by_row_or_by_time(tmp_path: Path) -> None:
    lines = [
        ("s2", "a", 30), ("s1", "x", 1), ("s2", "b", 10), ("s1", "y", 2), ("s3", "a", 5),
        ("s2", "c", 20), ("s3", "b", 5), ("s4", "z", 9),
    ]  # fmt: skip
    path = write_csv(tmp_path / "s.csv", ["session", "item", "at"], lines)
    by_row = load(path=path, session="session", split="positional")
    assert as_lists(by_row) == [["a", "b", "c"], ["x", "y"], ["a", "b"]]
    assert by_row.sessions.split.tolist() == [0, 1, 2]
    by_time = load(path=path, session="session", time="at", split="time")
    assert as_lists(by_time) == [["b", "c", "a"], ["x", "y"], ["a", "b"]]
    assert by_time.sessions.split.tolist() == [2, 0, 1]  # last records at 30, 2 and 5
    # Items are numbered as the sessions need them; z stands in no kept session.
    assert by_row.catalogue.source_ids.tolist() == ["a", "b", "c", "x", "y"]


@pytest.mark.parametrize("kind", [pa.string(), pa.int32()])
@pytest.mark.parametrize("with_target", [True, False])
def test_lists_in_parquet(tmp_path: Path, kind: pa.DataType, with_target: bool) -> None:
    lists = [["1", "2", "3"], ["3", "4"], ["5"], ["2", "2", "1"]]
    targets = ["9", "1", "1", "4"]
    to_kind = int if pa.types.is_integer(kind) else str
    columns: dict[str, Any] = {
        "clicks": pa.array([[to_kind(i) for i in items] for items in lists], pa.list_(kind)),
        "at": pa.array([4.0, 3.0, 2.0, 1.0]),
    }
    if with_target:
        columns["next"] = pa.array(list(map(to_kind, targets)), kind)
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    dataset = load(
        path=str(tmp_path / "s.parquet"), item="clicks", time="at", split="time",
        **({"target": "next"} if with_target else {}),
    )  # fmt: skip
    if with_target:
        assert as_lists(dataset) == [[*items, t] for items, t in zip(lists, targets, strict=True)]
        assert dataset.sessions.split.tolist() == [2, 1, 0, 0]
    else:
        assert as_lists(dataset) == [lists[0], lists[1], lists[3]]
        assert dataset.sessions.split.tolist() == [2, 1, 0]


def test_titles_in_the_table_or_beside_it(tmp_path: Path) -> None:
    lines = [
        ("s1", "a", " "), ("s1", "b", "Bee, the"), ("s2", "a", "Ay\nand more"),
        ("s2", "b", "B2"), ("s3", "b", ""), ("s3", "a", "Other"),
    ]  # fmt: skip
    path = write_csv(tmp_path / "s.csv", ["session", "item", "name"], lines)
    dataset = load(path=path, session="session", title="name")
    assert dataset.catalogue.source_ids.tolist() == ["a", "b"]
    assert dataset.catalogue.titles.tolist() == ["Ay\nand more", "Bee, the"]
    named = [("b", "Bee"), ("q", "?"), ("a", "Ä"), ("a", "A")]
    titles = write_csv(tmp_path / "titles.tsv", ["id", "title"], named, delimiter="\t")
    dataset = load(path=path, session="session", titles_path=titles, titles_item="id")
    assert dataset.catalogue.titles.tolist() == ["Ä", "Bee"]
    assert load(path=path, session="session").catalogue.titles.tolist() == ["", ""]


def test_lists_of_a_fixed_size(tmp_path: Path) -> None:
    items = pa.array([["a", "b"], ["c", ""], ["c", "a"], ["b", "c"]], pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"item": items}), tmp_path / "s.parquet")
    dataset = load(path=str(tmp_path / "s.parquet"), max_bad=1)
    assert as_lists(dataset) == [["a", "b"], ["c", "a"], ["b", "c"]]
    assert dataset.damaged_lines == 1


@pytest.mark.parametrize("ending", ["csv.gz", "TSV.GZ"])
def test_packed_text(tmp_path: Path, ending: str) -> None:
    path, tab = tmp_path / f"log.{ending}", "\t" if ending == "TSV.GZ" else ","
    lines = [("sid", "item"), *((s, i) for s in "123" for i in ("a", '"b\n')), ("4",)]
    text = "\n".join(tab.join(f'"{f.replace(chr(34), chr(34) * 2)}"' for f in r) for r in lines)
    path.write_bytes(gzip.compress(text.encode()))
    dataset = load(path=str(path), session="sid", max_bad=1)
    assert as_lists(dataset) == [["a", '"b\n']] * 3
    assert (dataset.name, dataset.damaged_lines) == ("log", 1)


def test_text_without_a_header(tmp_path: Path) -> None:
    """The layout of MovieLens-100K's u.data, once with a damaged first and fourth line."""
    rows = [f"{user}\t{item}\t5\t{START + item}" for user in range(4) for item in range(5)]
    path = tmp_path / "u.data"
    options = {"path": str(path), "user": "user", "time": "at", "delimiter": "tab"}
    path.write_text("\n".join(rows))
    with pytest.raises(InputError, match="a table without a header line needs columns="):
        load(**options)
    dataset = load(**options, columns="user, item, rating, at")
    assert as_lists(dataset) == [["0", "1", "2", "3", "4"]] * 4
    path.write_text("\n".join(["0\t1\t5", *rows[:2], "\t1\t5\t9", *rows[2:]]))
    said = r"u.data: line 1: has 3 fields, must have 4; .*u.data: line 4, field user: is empty"
    with pytest.raises(InputError, match=said):
        load(**options, columns="user,item,rating,at")
    with pytest.raises(InputError, match=r"column .item. is not there; the columns are: who;"):
        load(**options, columns="who")
    with pytest.raises(InputError, match="Parquet names its own"):
        load(path="log.parquet", user="user", time="at", columns="user,item,at")


def test_styles_of_text(tmp_path: Path) -> None:
    """The layout of HetRec's own files: tabs, Latin-1, quotes that mean nothing."""
    path = tmp_path / "movies.dat"
    lines = ["sid\titem", *(f'{s}\t"{i}é' for s in "123" for i in "ab")]
    path.write_bytes("\r\n".join(lines).encode("latin-1"))
    dataset = load(path=str(path), session="sid", quote="", encoding="latin-1")
    assert dataset.catalogue.source_ids.tolist() == ['"aé', '"bé']
    semicolons = tmp_path / "s.csv"
    semicolons.write_bytes(b"\xef\xbb\xbfsid;item\n\n" + b"1;a\n1;b\n2;a\n2;b\n\n3;a\n3;b\n")
    dataset = load(path=str(semicolons), session="sid", delimiter=";")
    assert as_lists(dataset) == [["a", "b"]] * 3
