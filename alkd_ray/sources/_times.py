"""Times of a table as microseconds since 1970 (UTC)."""

from __future__ import annotations

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


def microseconds(values: pa.Array, unit: TimeUnit) -> tuple[IntArray, BoolArray]:
    """``[R]`` microseconds, and ``[R]`` True where a value is no time (0 stands there then).

    Args:
        values: Arrow timestamps or dates, numbers, or text that holds numbers or ISO 8601. Times
            without a zone are UTC.
        unit: what the values are. ``auto`` decides for the whole column: numbers if at least half
            of its values are, and then milliseconds if their median is 1e11 or more.
    """
    if pa.types.is_temporal(values.type):
        return _checked(values.cast(pa.timestamp("us"), safe=False).to_pandas())
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return _from_numbers(values.to_pandas().to_numpy(np.float64, na_value=np.nan), unit)
    if unit != "iso":
        try:  # all numbers: the usual case, and the fast one
            return _from_numbers(values.cast(pa.float64()).to_numpy(), unit)
        except pa.ArrowException:
            pass
    texts = pd.Series(values.to_numpy(zero_copy_only=False), dtype=object).str.strip()
    if unit != "iso":
        numbers = np.asarray(pd.to_numeric(texts, errors="coerce"), np.float64)
        filled = np.count_nonzero(texts != "")
        if unit != "auto" or 2 * np.count_nonzero(~np.isnan(numbers)) >= filled:
            return _from_numbers(numbers, unit)
    return _checked(pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce"))


def _from_numbers(numbers: np.ndarray, unit: TimeUnit) -> tuple[IntArray, BoolArray]:
    finite = np.isfinite(numbers)
    if unit == "auto":
        median = np.median(np.abs(numbers[finite])) if finite.any() else 0.0
        unit = "milliseconds" if median >= _MILLISECONDS_FROM else "seconds"
    scaled = numbers * (1_000 if unit == "milliseconds" else MICROSECONDS)
    good = finite & (scaled >= _EARLIEST) & (scaled < _LATEST)
    return np.where(good, scaled, 0).astype(np.int64), ~good


def _checked(times: pd.Series) -> tuple[IntArray, BoolArray]:
    bad = times.isna().to_numpy(bool)
    if times.dt.tz is not None:
        times = times.dt.tz_convert(None)
    found = times.to_numpy("datetime64[us]").astype(np.int64)
    bad = bad | (found < _EARLIEST) | (found >= _LATEST)
    return np.where(bad, 0, found), bad
