"""Rankings that were recorded earlier, such as the published GPT-4 answers; nothing is paid."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from alkd_ray.errors import InputError
from alkd_ray.registry import PluginConfig
from alkd_ray.types import IntArray

_INT64 = np.iinfo(np.int64)


class Replay:
    """Serves recorded rankings by session id.

    Source: ALKDRec (AAAI 2025) publishes GPT-4's answers for 4,992 (HetRec) and 5,359 (Games)
    training sessions. They are kept as they are: some are empty, too long, name an item twice or
    one outside the catalogue. Repairing them is the business of
    :func:`alkd_ray.annotation.parse.parse_recorded`.

    Two forms are read, told apart by content:

    - a parquet table with the columns ``session_id`` (integers) and ``ranking`` (lists of item
      indices, best first); other columns, such as ``hit_position``, are not looked at;
    - the published text: a line a session, ``session id <tab> [item, item, ...] <tab> position``;
      the last field, the target's position in the ranking, is not looked at and may be missing.

    The whole recording is read when the object is made; it does not change afterwards.

    Attributes:
        fingerprint: SHA-256 (first 16 hex digits) of ids and rankings, in the order of the ids;
            the same recording has one fingerprint in both forms.
    """

    class Config(PluginConfig):
        """Options."""

        path: str = Field(
            min_length=1,
            description="llm_rankings.parquet, or the published X_LLM_Database.data; a relative "
            "path starts at the working directory",
        )

    def __init__(self, path: str) -> None:
        recording = _read(Path(path).expanduser())
        self._items = recording.items
        self._offsets = recording.offsets
        self._ids = recording.ids
        self._rows = {int(session_id): row for row, session_id in enumerate(recording.ids)}
        self.fingerprint = _fingerprint(recording)

    def recorded_ids(self) -> IntArray:
        """``[R]`` int64, the sessions with a recorded ranking (it may be empty), ascending."""
        return self._ids.copy()

    def ranking(self, session_id: int) -> IntArray | None:
        """The ranking of one session as it was recorded, unrepaired; None if there is none."""
        row = self._rows.get(int(session_id))
        if row is None:
            return None
        return self._items[self._offsets[row] : self._offsets[row + 1]].copy()


@dataclass(frozen=True, slots=True)
class _Recording:
    """Rankings in compressed-row form, by ascending session id."""

    ids: IntArray
    offsets: IntArray
    items: IntArray


def _read(path: Path) -> _Recording:
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        ids, lengths, items = _read_parquet(path) if is_parquet else _read_text(path)
    except OSError as error:
        raise InputError(
            f"{path}: the recorded rankings cannot be read ({error.strerror or error}); "
            "set llm.options.path to llm_rankings.parquet or a X_LLM_Database.data"
        ) from error
    return _by_id(path, ids, lengths, items)


def _read_parquet(path: Path) -> tuple[IntArray, IntArray, IntArray]:
    try:
        file = pq.ParquetFile(path)
        present = file.schema_arrow.names
        for column in ("session_id", "ranking"):
            if column not in present:
                raise InputError(
                    f"{path}: there is no column {column!r} (columns: {', '.join(present)}); "
                    "a recording has session_id and ranking"
                )
        table = file.read(columns=["session_id", "ranking"]).combine_chunks()
    except pa.ArrowException as error:
        raise InputError(f"{path}: the parquet table is damaged: {error}") from error
    ids, rankings = table["session_id"], table["ranking"]
    _check_type(path, "session_id", "integers", ids.type, pa.types.is_integer(ids.type))
    is_list = pa.types.is_list(rankings.type) or pa.types.is_large_list(rankings.type)
    _check_type(
        path,
        "ranking",
        "lists of integers",
        rankings.type,
        is_list and pa.types.is_integer(rankings.type.value_type),
    )
    lists = rankings.combine_chunks()
    flat = lists.flatten()
    for column, values in (("session_id", ids), ("ranking", rankings)):
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy())[0])
            raise InputError(f"{path}, row {row}, {column}: there is no value; give one or drop it")
    if flat.null_count:
        raise InputError(f"{path}, ranking: a list holds an item that is null; drop that item")
    return (
        ids.to_numpy().astype(np.int64),
        np.asarray(lists.value_lengths(), np.int64),
        np.asarray(flat, np.int64),
    )


def _check_type(path: Path, column: str, wanted: str, found: pa.DataType, good: bool) -> None:
    if not good:
        raise InputError(f"{path}, column {column}: must hold {wanted}, it holds {found}")


def _read_text(path: Path) -> tuple[IntArray, IntArray, IntArray]:
    ids: list[int] = []
    lengths: list[int] = []
    items: list[int] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: neither a parquet table nor text in UTF-8 ({error.reason} at byte "
            f"{error.start}); give llm_rankings.parquet or a X_LLM_Database.data"
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) not in (2, 3):
            raise InputError(
                f"{path}, line {number}: {len(fields)} fields between tabs, wanted 2 or 3: session "
                "id, [items], position of the target"
            )
        ids.append(_number(path, number, fields[0]))
        ranking = _numbers(path, number, fields[1])
        lengths.append(len(ranking))
        items.extend(ranking)
    return np.array(ids, np.int64), np.array(lengths, np.int64), np.array(items, np.int64)


def _number(path: Path, line: int, text: str) -> int:
    value = _json(text)
    if not _is_index(value):
        raise InputError(
            f"{path}, line {line}, session id: {text[:40]!r} is not a whole number; the line must "
            "be: session id, tab, [items], tab, position"
        )
    return value


def _numbers(path: Path, line: int, text: str) -> list[int]:
    value = _json(text)
    if not isinstance(value, list) or not all(_is_index(item) for item in value):
        raise InputError(
            f"{path}, line {line}, ranking: {text[:40]!r} is not a list of whole numbers such as "
            "[12, 5, 7]"
        )
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_index(value: Any) -> bool:
    return type(value) is int and _INT64.min <= value <= _INT64.max


def _by_id(path: Path, ids: IntArray, lengths: IntArray, items: IntArray) -> _Recording:
    if not len(ids):
        raise InputError(f"{path}: there are no recorded rankings in it")
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise InputError(
            f"{path}, session id: {twice[0]} is recorded more than once "
            f"({len(twice)} such rows); keep one ranking a session"
        )
    starts = np.cumsum(lengths) - lengths
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[order])])
    within = np.arange(len(items)) - np.repeat(offsets[:-1], lengths[order])
    return _Recording(ids, offsets, items[np.repeat(starts[order], lengths[order]) + within])


def _fingerprint(recording: _Recording) -> str:
    digest = hashlib.sha256()
    for array in (recording.ids, recording.offsets, recording.items):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
