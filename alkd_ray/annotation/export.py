"""The store's tables as Parquet files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alkd_ray import artifacts
from alkd_ray.annotation.database import Database

ROWS_PER_GROUP = 10_000


@dataclass(frozen=True, slots=True)
class _Export:
    file: str
    query: str
    fields: dict[str, pa.DataType]
    converters: dict[str, Callable[[Any], Any]]


def _readable(raw: bytes) -> str:
    """Text that Parquet can hold: lone surrogates, which UTF-8 has no form for, become ``?``."""
    return raw.decode("utf-8", "surrogatepass").encode("utf-8", "replace").decode("utf-8")


EXPORTS = (
    _Export(
        "requests.parquet",
        "SELECT request_key, endpoint, model, kind, prompt_version, session_id, body, stored_at "
        "FROM requests ORDER BY number",
        {
            "key": pa.string(),
            "endpoint": pa.string(),
            "model": pa.string(),
            "kind": pa.string(),
            "prompt_version": pa.string(),
            "session_id": pa.int64(),
            "body": pa.string(),
            "stored_at": pa.string(),
        },
        {},
    ),
    _Export(
        "answers.parquet",
        "SELECT request_key, attempt, raw, finish_reason, prompt_tokens, completion_tokens, "
        "cached_tokens, cost_microusd, hold_id, received_at FROM answers ORDER BY number",
        {
            "key": pa.string(),
            "attempt": pa.int64(),
            "raw": pa.string(),
            "finish_reason": pa.string(),
            "prompt_tokens": pa.int64(),
            "completion_tokens": pa.int64(),
            "cached_tokens": pa.int64(),
            "cost_microusd": pa.int64(),
            "hold_id": pa.string(),
            "received_at": pa.string(),
        },
        {"raw": _readable},
    ),
    _Export(
        "rankings.parquet",
        "SELECT p.request_key, r.session_id, p.parser_version, p.ranking, p.repairs, p.failure "
        "FROM parsed p LEFT JOIN requests r ON r.request_key = p.request_key ORDER BY p.number",
        {
            "key": pa.string(),
            "session_id": pa.int64(),
            "parser_version": pa.string(),
            "ranking": pa.list_(pa.int64()),
            "repairs": pa.list_(pa.string()),
            "failure": pa.string(),
        },
        {"ranking": json.loads, "repairs": json.loads},
    ),
    _Export(
        "failures.parquet",
        "SELECT f.request_key, r.session_id, f.permanent, f.reason, f.failed_at "
        "FROM failures f LEFT JOIN requests r ON r.request_key = f.request_key ORDER BY f.number",
        {
            "key": pa.string(),
            "session_id": pa.int64(),
            "is_permanent": pa.bool_(),
            "reason": pa.string(),
            "failed_at": pa.string(),
        },
        {"is_permanent": bool},
    ),
)


def write_parquet(database: Database, folder: Path) -> None:
    """Writes the files of :data:`EXPORTS` into ``folder``, group by group of rows.

    The caller holds a transaction, so that the files show one instant.
    """
    for export in EXPORTS:
        artifacts.replace_file(folder / export.file, partial(_write, database, export))


def _write(database: Database, export: _Export, path: Path) -> None:
    schema = pa.schema(list(export.fields.items()))
    with pq.ParquetWriter(path, schema) as writer:
        for group in database.groups(export.query, ROWS_PER_GROUP):
            columns = [
                pa.array(map(export.converters.get(name, _as_is), column), kind)
                for (name, kind), column in zip(
                    export.fields.items(), zip(*group, strict=True), strict=True
                )
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _as_is(value: Any) -> Any:
    return value
