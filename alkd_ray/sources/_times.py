"""Times of a table as microseconds since 1970 (UTC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from alkd_ray.types import BoolArray, IntArray

TimeUnit = Literal["auto", "seconds", "milliseconds", "iso"]

MICROSECONDS = 1_000_000
_MILLISECONDS_FROM = 1e11
"""A number from here on is milliseconds: as seconds it would lie after the year 5138."""
_LATEST = np.datetime64("2200-01-01", "us").astype(np.int64)
_EARLIEST = np.datetime64("1900-01-01", "us").astype(np.int64)
_FIRST_LOGS = np.datetime64("1990-01-01", "us").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Times:
    """A column of times.

    Attributes:
        values: ``[R]`` int64 microseconds; 0 where a value is no time.
        bad: ``[R]`` True there.
        read_as: how the column was understood, in words.
    """

    values: IntArray
    bad: BoolArray
    read_as: str


def can_be_times(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold times."""
    if pa.types.is_dictionary(kind):
        return can_be_times(kind.value_type)
    checks = (
        pa.types.is_timestamp,
        pa.types.is_date,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(check(kind) for check in checks)


def microseconds(values: pa.Array, unit: TimeUnit) -> Times:
    """The times of a column of which :func:`can_be_times` holds; those without a zone are UTC.

    Args:
        values: Arrow timestamps or dates, numbers, or text that holds numbers or ISO 8601.
        unit: what the values are; timestamps and dates know it themselves. ``auto`` decides for the
            whole column: numbers if at least half of its values are, and then milliseconds if their
            median is 1e11 or more; values below are no times then, since they may be seconds.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_temporal(values.type):
        times = values.cast(pa.timestamp("us"), safe=False).to_pandas()
        return _checked(times, f"Parquet's {values.type}")
    if unit == "iso":
        values = values.cast(pa.large_string())
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return _from_numbers(values.to_pandas().to_numpy(np.float64, na_value=np.nan), unit)
    else:
        try:  # all numbers: the usual case, and the fast one
            return _from_numbers(values.cast(pa.float64()).to_numpy(zero_copy_only=False), unit)
        except pa.ArrowException:
            pass
    texts = pd.Series(values.to_numpy(zero_copy_only=False), dtype=object).str.strip()
    if unit != "iso":
        numbers = np.asarray(pd.to_numeric(texts, errors="coerce"), np.float64)
        filled = np.count_nonzero(texts != "")
        if unit != "auto" or 2 * np.count_nonzero(~np.isnan(numbers)) >= filled:
            return _from_numbers(numbers, unit)
    times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    return _checked(times, "ISO 8601")


def are_before_logs(times: IntArray) -> bool:
    """Whether all times (microseconds) lie before 1990, when hardly anybody kept a log.

    Days such as 20240115, years, and counts are that when they are read as seconds.
    """
    return bool(len(times)) and bool(times.max() < _FIRST_LOGS)


def in_words(times: IntArray) -> str:
    """The first and the last of some times (microseconds), to the minute."""
    first, last = (
        str(np.datetime64(int(time), "us").astype("datetime64[m]")).replace("T", " ")
        for time in (times.min(), times.max())
    )
    return f"{first} to {last} (UTC)"


def _from_numbers(numbers: np.ndarray, unit: TimeUnit) -> Times:
    good = np.isfinite(numbers)
    if unit == "auto":
        sizes = np.abs(numbers)
        is_milliseconds = good.any() and np.median(sizes[good]) >= _MILLISECONDS_FROM
        unit = "milliseconds" if is_milliseconds else "seconds"
        if is_milliseconds:
            good &= sizes >= _MILLISECONDS_FROM
    scaled = numbers * (1_000 if unit == "milliseconds" else MICROSECONDS)
    good &= (scaled >= _EARLIEST) & (scaled < _LATEST)
    return Times(np.where(good, scaled, 0).astype(np.int64), ~good, f"{unit} since 1970")


def _checked(times: pd.Series, read_as: str) -> Times:
    bad = times.isna().to_numpy(bool)
    if times.dt.tz is not None:
        times = times.dt.tz_convert(None)
    found = times.to_numpy("datetime64[us]").astype(np.int64)
    bad = bad | (found < _EARLIEST) | (found >= _LATEST)
    return Times(np.where(bad, 0, found), bad, read_as)
