"""Times that would be misread are refused, and what was read is shown."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alkd_ray import datasets, registry
from alkd_ray.errors import InputError
from alkd_ray.types import Dataset

USERS, DAYS, RECORDS = 4, 3, 5
MOMENTS = [
    datetime(2024, 1, 15 + day, 12, record, tzinfo=UTC)
    for _ in range(USERS)
    for day in range(DAYS)
    for record in range(RECORDS)
]
SECONDS = [int(moment.timestamp()) for moment in MOMENTS]


def load(folder: Path, times: list[Any] | pa.Array, form: str = "csv", **options: Any) -> Dataset:
    users = [place // (DAYS * RECORDS) for place in range(len(MOMENTS))]
    items = [place % 7 for place in range(len(MOMENTS))]
    path = folder / f"log.{form}"
    if form == "csv":
        rows = [f"{u},{i},{t}\n" for u, i, t in zip(users, items, times, strict=True)]
        path.write_text("user,item,at\n" + "".join(rows))
    else:
        pq.write_table(pa.table({"user": users, "item": items, "at": times}), path)
    chosen = {"path": str(path), "user": "user", "time": "at", **options}
    return registry.build("sources", "table", chosen).load()


def test_the_first_and_the_last_time_are_shown(tmp_path: Path) -> None:
    said = "times from 2024-01-15 12:00 to 2024-01-17 12:04 (UTC)"
    dataset = load(tmp_path, SECONDS)
    assert dataset.source.endswith(said)
    datasets.write(dataset, tmp_path / "dataset")
    assert said in datasets.describe(datasets.read(tmp_path / "dataset"))["source"]
    # Ready sessions only need an order, so that any times will do; without times there are none.
    assert "1970-01-01 00:00" in load(tmp_path, list(range(60)), user="", session="user").source
    assert "times" not in load(tmp_path, SECONDS, user="", session="user", time="").source


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("pattern", ["%Y%m%d", "%Y"])
def test_days_and_years_are_no_seconds(tmp_path: Path, form: str, pattern: str) -> None:
    numbers = [int(moment.strftime(pattern)) for moment in MOMENTS]
    with pytest.raises(InputError, match=r"log.*: field at: all times lie before 1990, from 1970"):
        load(tmp_path, numbers, form)
    assert "from 1970" in load(tmp_path, numbers, form, time_unit="seconds").source
    dataset = load(tmp_path, numbers, form, time_unit="iso")
    assert "times from 2024-01-" in dataset.source
    assert len(dataset.sessions) == (USERS * DAYS if pattern == "%Y%m%d" else USERS)


def test_seconds_that_were_taken_for_nanoseconds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all times lie before 1990"):
        load(tmp_path, pa.array(SECONDS, pa.timestamp("ns")), "parquet")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_seconds_among_milliseconds_are_damaged(tmp_path: Path, form: str) -> None:
    mixed = [second * (1 if place < 5 else 1_000) for place, second in enumerate(SECONDS)]
    said = r"field at: '1705320000' is not a time .the column is read as milliseconds.*.5 damaged"
    with pytest.raises(InputError, match=said):
        load(tmp_path, mixed, form)
    dataset = load(tmp_path, mixed, form, max_bad=5)
    assert (dataset.damaged_lines, len(dataset.sessions)) == (5, USERS * DAYS - 1)
    # Whoever names the unit means it.
    dataset = load(tmp_path, mixed, form, time_unit="milliseconds")
    assert "times from 1970-01-20" in dataset.source


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True], "bool"),
        ([time(1, 2)], "time64"),
        ([timedelta(1)], "duration"),
        ([b"2024-01-15"], "binary"),
        ([[1]], "list"),
    ],
)
def test_columns_that_hold_no_times(tmp_path: Path, values: list[Any], kind: str) -> None:
    with pytest.raises(InputError, match=rf"the column 'at' is of type {kind}.*, times must be"):
        load(tmp_path, values * len(MOMENTS), "parquet")


@pytest.mark.parametrize(
    "times",
    [
        pa.array([moment.date() for moment in MOMENTS], pa.date32()),
        pa.array([str(moment) for moment in MOMENTS]).dictionary_encode(),
        pa.array(SECONDS).cast(pa.decimal128(20, 0)),
        pa.array([str(second) for second in SECONDS]),
    ],
    ids=["date", "dictionary", "decimal", "text"],
)
def test_columns_that_hold_times(tmp_path: Path, times: pa.Array) -> None:
    dataset = load(tmp_path, times, "parquet")
    assert len(dataset.sessions) == USERS * DAYS
    assert str(date(2024, 1, 17)) in dataset.source
