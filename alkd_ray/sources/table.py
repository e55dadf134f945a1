"""A table of interactions, or of sessions: CSV, TSV or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from alkd_ray.errors import InputError
from alkd_ray.registry import PluginConfig
from alkd_ray.sources._columns import Columns, Tally, read_parquet
from alkd_ray.sources._delimited import read_delimited
from alkd_ray.sources._records import (
    Names,
    TableRecords,
    from_lists,
    from_rows,
    is_list,
    read_titles,
)
from alkd_ray.sources._sessionise import (
    Records,
    SplitKind,
    cut_by_day,
    cut_by_gap,
    drop_short,
    hold_out_last,
    merge_repeats,
    number_items,
)
from alkd_ray.sources._times import TimeUnit, are_before_logs, in_words
from alkd_ray.types import SPLITS, Catalogue, Dataset, IntArray

_PARQUET_ENDINGS = (".parquet", ".pq")
_TAB_ENDINGS = (".tsv", ".tab", ".dat", ".txt")
_MIN_LENGTH = {"interactions": 5, "sessions": 2}
_SHOWN = 3
"""Damaged lines that an error describes."""


class Table:
    """Sessions from a CSV, TSV or Parquet file whose columns the options name.

    Three forms: interactions (``user``, ``item``, ``time``); ready sessions, one row a record
    (``session``, ``item``, ``time`` or the order of rows); ready sessions, one row a session
    (Parquet only: ``item`` is a column of lists, ``target`` one of items where the last of the list
    is not the target).

    Interactions become sessions as in Du et al. (AAAI 2025): those of one user on one UTC day,
    ordered by time (equal times by row), sessions of fewer than 5 records dropped; the last item
    is the target. Departure: ``sessions=gap`` starts one after a pause instead. The split is
    60/20/20: at random as in the paper, by global time, or by position.

    Items are numbered in the order of the kept sessions; items of no kept session are not part of
    the catalogue.

    Attributes:
        problems: after :meth:`load`, the first damaged lines that ``max_bad`` allowed.
    """

    class Config(PluginConfig):
        """Options."""

        path: str = Field(description="the table; .parquet or .pq is Parquet, else text, or .gz")
        name: str = Field("", description="short name for reports; the file's stem when empty")
        user: str = Field("", description="column of users; makes sessions of interactions")
        session: str = Field("", description="column of session ids, for ready sessions")
        item: str = Field("item", description="column of item ids, or of lists of them")
        time: str = Field("", description="column of times: epoch seconds, milliseconds, ISO 8601")
        target: str = Field("", description="column of targets, beside a column of lists")
        title: str = Field("", description="column of titles, in the table or the titles file")
        titles_path: str = Field("", description="a file of titles, one row an item")
        titles_item: str = Field("", description="its column of item ids; as item when empty")
        time_unit: TimeUnit = Field("auto", description="auto, seconds, milliseconds or iso")
        sessions: Literal["day", "gap"] = Field(
            "day", description="one session a user and UTC day, or until a pause"
        )
        gap_minutes: float = Field(30.0, gt=0, description="the longest pause, in minutes")
        min_length: int = Field(
            0,
            ge=0,
            description="records a session needs, target included; 0 = 5 for interactions, 2 for "
            "ready sessions",
        )
        repeats: Literal["keep", "merge"] = Field(
            "keep", description="whether the same item several times in a row becomes one record"
        )
        split: SplitKind = Field("random", description="random, time or positional")
        seed: int = Field(1, ge=0, description="of the random split")
        untitled: Literal["error", "keep"] = Field(
            "error", description="items without a title, where titles are named"
        )
        max_bad: int = Field(0, ge=0, description="damaged lines that are left out, at most")
        delimiter: str = Field("", description="between fields; by the file's ending when empty")
        quote: str = Field('"', max_length=1, description="around fields; empty = none")
        encoding: str = Field("utf-8", description="of text files, e.g. latin-1")
        columns: str = Field(
            "", description="names of all columns of a text file without a header, commas between"
        )

        @field_validator("delimiter")
        @classmethod
        def _one_character(cls, value: str) -> str:
            value = {"tab": "\t", "\\t": "\t"}.get(value, value)
            if len(value) > 1:
                raise ValueError("must be one character, or tab; replace a longer one, by sed say")
            return value

        @field_validator("min_length")
        @classmethod
        def _input_and_target(cls, value: int) -> int:
            if value == 1:
                raise ValueError("a session needs an input and a target: 2 or more, or 0")
            return value

        @model_validator(mode="after")
        def _columns_fit(self) -> Table.Config:
            if self.user and self.session:
                raise ValueError("name user (interactions) or session (ready sessions), not both")
            if self.user and not self.time:
                raise ValueError("interactions of users need the column of their times: time=")
            if not (self.user or self.session or _is_parquet(self.path)):
                raise ValueError("name the column of users (user=) or of session ids (session=)")
            if self.columns and _is_parquet(self.path):
                raise ValueError("columns is for text without a header; Parquet names its own")
            if self.split == "time" and not self.time:
                raise ValueError("split by time needs the column of times: time=")
            return self

    def __init__(
        self,
        *,
        path: str,
        name: str = "",
        user: str = "",
        session: str = "",
        item: str = "item",
        time: str = "",
        target: str = "",
        title: str = "",
        titles_path: str = "",
        titles_item: str = "",
        time_unit: TimeUnit = "auto",
        sessions: Literal["day", "gap"] = "day",
        gap_minutes: float = 30.0,
        min_length: int = 0,
        repeats: Literal["keep", "merge"] = "keep",
        split: SplitKind = "random",
        seed: int = 1,
        untitled: Literal["error", "keep"] = "error",
        max_bad: int = 0,
        delimiter: str = "",
        quote: str = '"',
        encoding: str = "utf-8",
        columns: str = "",
    ) -> None:
        self.path = Path(path)
        self.name = name or _unpacked(self.path).stem
        self.user, self.session, self.item, self.time = user, session, item, time
        self.target = target
        self.titles_path = Path(titles_path) if titles_path else None
        self.title = title or ("title" if titles_path else "")
        self.titles_item = titles_item or item
        self.time_unit: TimeUnit = time_unit
        self.sessions, self.gap_minutes = sessions, gap_minutes
        self.min_length = min_length or _MIN_LENGTH["interactions" if user else "sessions"]
        self.repeats, self.untitled, self.max_bad = repeats, untitled, max_bad
        self.split: SplitKind = split
        self.seed = seed
        self.delimiter, self.quote, self.encoding = delimiter, quote, encoding
        self.columns = tuple(name.strip() for name in columns.split(",")) if columns else ()
        self.problems: tuple[str, ...] = ()
        self._damaged = 0

    def load(self) -> Dataset:
        """The whole dataset.

        Raises:
            InputError: names the file, the line (or row), the field, and what to do.
        """
        read, titles = self._read()
        records = read.records
        times = records.times
        if self.user:
            self._check_times(times)
            by_gap = self.sessions == "gap"
            records = cut_by_gap(records, self.gap_minutes) if by_gap else cut_by_day(records)
        if self.repeats == "merge":
            records = merge_repeats(records)
        before = len(records.lengths())
        records = self._long_enough(records)
        records, kept = number_items(records)
        item_ids = read.item_ids[kept]  # [N]
        return Dataset(
            name=self.name,
            catalogue=Catalogue(item_ids, self._titles(item_ids, titles)),
            sessions=hold_out_last(records, self.split, self.seed),
            split_rule=self._split_rule(),
            source=f"{self.path}: {self._session_rule()}; {len(records.lengths())} of {before} "
            f"sessions have at least {self.min_length} records"
            + (f"; times from {in_words(times)}" if self.time else ""),
            damaged_lines=self._damaged,
        )

    def _read(self) -> tuple[TableRecords, pd.Series | None]:
        """The undamaged records, and item id -> title where titles are named."""
        names = Names(
            item=self.item,
            owner=self.user or self.session,
            time=self.time,
            title="" if self.titles_path else self.title,
            target=self.target,
        )
        columns = self._read_file(self.path, names.given(), self.columns)
        if is_list(columns.values[self.item]):
            self._check_lists(names)
            read = from_lists(columns, names, self.time_unit)
        else:
            self._check_rows(names)
            read = from_rows(columns, names, self.time_unit)
        titles, tallies = None, [read.tally]
        if self.titles_path:
            named = self._read_file(self.titles_path, [self.titles_item, self.title])
            titles, found = read_titles(named, self.titles_item, self.title)
            tallies.append(found)
        elif read.titles is not None:
            titles = pd.Series(read.titles, index=read.item_ids, dtype=object)
        self._check_damage(tallies)
        return read, titles

    def _read_file(self, path: Path, names: Sequence[str], columns: Sequence[str] = ()) -> Columns:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; a path must name a table")
        if _is_parquet(path):
            return read_parquet(path, names)
        is_tabs = _unpacked(path).suffix.lower() in _TAB_ENDINGS
        return read_delimited(
            path,
            names,
            delimiter=self.delimiter or ("\t" if is_tabs else ","),
            quote=self.quote,
            encoding=self.encoding,
            columns=columns,
        )

    def _check_lists(self, names: Names) -> None:
        if names.owner:
            raise InputError(
                f"{self.path}: the column {self.item!r} holds lists, so that each row is a session "
                f"already; leave out {'user' if self.user else 'session'}"
            )
        if names.title:
            raise InputError(
                f"{self.path}: a table with one row a session has no place for titles; name a file "
                "of titles with titles_path"
            )

    def _check_rows(self, names: Names) -> None:
        if not names.owner:
            raise InputError(
                f"{self.path}: the column {self.item!r} holds no lists; name the column of users "
                "(user=) or of session ids (session=)"
            )
        if names.target:
            raise InputError(
                f"{self.path}: target is only for tables with lists of items; leave it out, the "
                "last record of a session is its target"
            )

    def _check_damage(self, tallies: Sequence[Tally]) -> None:
        self._damaged = sum(found.damaged for found in tallies)
        self.problems = tuple(problem for found in tallies for problem in found.problems)
        if self._damaged > self.max_bad:
            more = "; ..." if self._damaged > _SHOWN else ""
            raise InputError(
                f"{'; '.join(self.problems[:_SHOWN])}{more} ({self._damaged} damaged in all, "
                f"max_bad is {self.max_bad}); correct them, or raise max_bad to leave them out"
            )

    def _check_times(self, times: IntArray) -> None:
        """Sessions are cut by these times, so that misread ones would make senseless sessions."""
        if self.time_unit == "auto" and are_before_logs(times):
            raise InputError(
                f"{self.path}: field {self.time}: all times lie before 1990, from "
                f"{in_words(times)}; is it the right column? Days such as 20240115, and years, are "
                "read with time_unit=iso; if it is right as it is, name its time_unit"
            )

    def _long_enough(self, records: Records) -> Records:
        longest = int(records.lengths().max(initial=0))
        kept = drop_short(records, self.min_length)
        if len(kept.lengths()) < len(SPLITS):
            raise InputError(
                f"{self.path}: {len(kept.lengths())} sessions have at least {self.min_length} "
                f"records (the longest has {longest}), and {len(SPLITS)} are needed, one for each "
                "split; lower min_length, or see whether the columns are the right ones"
            )
        return kept

    def _titles(self, item_ids: np.ndarray, titles: pd.Series | None) -> np.ndarray:
        """``[N]`` the title of each item, "" where there is none."""
        if titles is None:
            return np.full(len(item_ids), "", dtype=object)
        found = titles.reindex(item_ids).fillna("").to_numpy(object)
        missing = np.flatnonzero(found == "")
        if len(missing) and self.untitled == "error":
            some = ", ".join(repr(text) for text in item_ids[missing[:3]])
            raise InputError(
                f"{self.titles_path or self.path}: field {self.title}: {len(missing)} of "
                f"{len(item_ids)} items have no title, e.g. {some}; add them, or set untitled=keep"
            )
        return found

    def _session_rule(self) -> str:
        if not self.user:
            return "ready sessions"
        if self.sessions == "day":
            return "one session a user and UTC day"
        return f"a user's session ends after {self.gap_minutes:g} minutes without a record"

    def _split_rule(self) -> str:
        how = {
            "random": f"at random with seed {self.seed}",
            "time": "by the time of each session's last record",
            "positional": "by position",
        }
        return f"{how[self.split]}: 60% train, 20% valid, 20% test"


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _is_parquet(path: str | Path) -> bool:
    return Path(path).suffix.lower() in _PARQUET_ENDINGS
