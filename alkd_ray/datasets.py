"""The native form of a dataset on disk: a folder that is checked whenever it is read.

    sessions.parquet   session_id int64, items list<int64> (the input, oldest first), target int64,
                       split (train, valid or test)
    items.parquet      item_id int64 (0..N-1, in order), source_id text, title text
    dataset.json       name, split_rule, source, damaged_lines, counts, hash, version

Rows in messages count from 0. ``hash`` is the content's: it does not depend on how the Parquet
files were written, and a folder whose content differs from it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from alkd_ray import artifacts
from alkd_ray.errors import InputError
from alkd_ray.sessions import with_fingerprint
from alkd_ray.types import SPLITS, Catalogue, Dataset, SessionSet

VERSION = 1  # of the folder's layout
SESSIONS, ITEMS, DESCRIPTION = "sessions.parquet", "items.parquet", "dataset.json"

_OWN_FIELDS = {"name": str, "split_rule": str, "source": str, "damaged_lines": int}
_FIELDS = {**_OWN_FIELDS, "counts": dict, "hash": str, "version": int}
_IMPORT_AGAIN = "import the data again (alkd data import)"


def write(dataset: Dataset, folder: Path, *, replace: bool = False) -> None:
    """Writes ``dataset`` to ``folder``, under a temporary name that is then renamed.

    Args:
        dataset: what to write.
        folder: a folder that does not exist, or is empty.
        replace: whether a dataset that is there already may be replaced.

    Raises:
        InputError: the folder is taken, or the dataset is not one (an item out of range, a session
            id twice, ...); nothing is written then.
    """
    folder = folder.resolve()
    check_free(folder, replace)
    problems = _problems_of(dataset)
    if problems:
        raise InputError(f"{dataset.source}: not a valid dataset: {problems[0]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    temporary.mkdir()
    try:
        _write_files(dataset, temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def read(folder: Path) -> Dataset:
    """The dataset of ``folder``.

    Raises:
        InputError: the folder is no dataset, or a damaged one; names the file, row and field.
    """
    dataset, problems = _examine(folder)
    if dataset is None or problems:
        more = f"; and {len(problems) - 1} more: alkd data validate" if problems[1:] else ""
        raise InputError(f"{folder / problems[0]}; {_IMPORT_AGAIN}{more}")
    return dataset


def validate(folder: Path) -> list[str]:
    """The first problem of each kind in ``folder``, with file, row and field; [] when valid."""
    return [f"{folder / problem}; {_IMPORT_AGAIN}" for problem in _examine(folder)[1]]


def check_free(folder: Path, replace: bool) -> None:
    """Raises an InputError unless a dataset may be written to ``folder`` (see :func:`write`)."""
    if not folder.exists():
        above = next(parent for parent in folder.resolve().parents if parent.exists())
        if not above.is_dir():
            raise InputError(f"{folder}: {above} is a file, and no folder can be made in it")
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder that does not exist yet")
    others = sorted({file.name for file in folder.iterdir()} - {SESSIONS, ITEMS, DESCRIPTION})
    if others:
        raise InputError(
            f"{folder}: is there already and holds {others[0]!r}, which is no part of a dataset; "
            "nothing is overwritten, name another folder"
        )
    if any(folder.iterdir()) and not replace:
        raise InputError(
            f"{folder}: holds a dataset already; --force replaces it, or name another folder"
        )


def content_hash(dataset: Dataset) -> str:
    """SHA-256 (first 16 hex digits) of sessions, splits, item ids and titles."""
    digest = hashlib.sha256(with_fingerprint(dataset.sessions).fingerprint.encode())
    for texts in (dataset.catalogue.source_ids, dataset.catalogue.titles):
        digest.update(np.array([len(text) for text in texts.tolist()], np.int64).tobytes())
        digest.update("".join(texts.tolist()).encode())
    return digest.hexdigest()[:16]


def counts(dataset: Dataset) -> dict[str, int]:
    """Sessions, items and interactions (inputs and targets), and the sessions of each split."""
    sessions = dataset.sessions
    by_split = np.bincount(sessions.split, minlength=len(SPLITS))
    return {
        "sessions": len(sessions),
        "items": len(dataset.catalogue),
        "interactions": len(sessions.flat_items) + len(sessions),
        **{name: int(by_split[code]) for code, name in enumerate(SPLITS)},
    }


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a reader wants to know of a dataset, JSON-able.

    Returns:
        ``name``, ``source``, ``split_rule``, ``damaged_lines``, ``hash``, ``counts`` (see
        :func:`counts`), ``session_length`` (input and target: min, median, mean, max),
        ``popularity`` (the shares of all interactions that the most popular 1% and 10% of the items
        have, and the Gini coefficient over items), ``untitled_items``, ``unseen_test_targets`` (the
        share of test targets that occur in no training session) and ``repeated_test_targets`` (the
        share that stand in their own session's input). A share of nothing is 0.
    """
    sessions = dataset.sessions
    lengths = sessions.lengths + 1
    return {
        "name": dataset.name,
        "source": dataset.source,
        "split_rule": dataset.split_rule,
        "damaged_lines": dataset.damaged_lines,
        "hash": content_hash(dataset),
        "counts": counts(dataset),
        "session_length": {
            "min": int(lengths.min()) if len(lengths) else 0,
            "median": float(np.median(lengths)) if len(lengths) else 0.0,
            "mean": round(_mean(lengths), 3),
            "max": int(lengths.max(initial=0)),
        },
        "popularity": _popularity(dataset),
        "untitled_items": int(np.sum(dataset.catalogue.titles == "")),
        **_test_targets(sessions, len(dataset.catalogue)),
    }


def _popularity(dataset: Dataset) -> dict[str, float]:
    sessions, size = dataset.sessions, len(dataset.catalogue)
    occurrences = np.bincount(sessions.flat_items, minlength=size)
    occurrences = np.sort(occurrences + np.bincount(sessions.targets, minlength=size))[::-1]  # [N]
    total = max(int(occurrences.sum()), 1)
    # Gini = (N + 1 - 2 sum_i (cumulative share up to i, rarest first)) / N.
    cumulative = np.cumsum(occurrences[::-1]) / total
    return {
        "top_1_percent_share": round(float(occurrences[: -(-size // 100)].sum() / total), 4),
        "top_10_percent_share": round(float(occurrences[: -(-size // 10)].sum() / total), 4),
        "gini": round(float((size + 1 - 2 * cumulative.sum()) / max(size, 1)), 4),
    }


def _test_targets(sessions: SessionSet, num_items: int) -> dict[str, float]:
    is_train, is_test = (sessions.split == SPLITS.index(name) for name in ("train", "test"))
    session_of = np.repeat(np.arange(len(sessions)), sessions.lengths)
    seen = np.zeros(num_items, bool)
    seen[sessions.flat_items[is_train[session_of]]] = True
    seen[sessions.targets[is_train]] = True
    repeated = np.zeros(len(sessions), bool)
    repeated[session_of[sessions.flat_items == sessions.targets[session_of]]] = True
    return {
        "unseen_test_targets": round(_mean(~seen[sessions.targets[is_test]]), 4),
        "repeated_test_targets": round(_mean(repeated[is_test]), 4),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _write_files(dataset: Dataset, folder: Path) -> None:
    sessions = dataset.sessions
    names = pa.DictionaryArray.from_arrays(pa.array(sessions.split), pa.array(list(SPLITS)))
    table = pa.table(
        {
            "session_id": sessions.ids,
            "items": pa.LargeListArray.from_arrays(sessions.offsets, sessions.flat_items),
            "target": sessions.targets,
            "split": names.cast(pa.string()),
        }
    )
    pq.write_table(table, folder / SESSIONS)
    catalogue = dataset.catalogue
    table = pa.table(
        {
            "item_id": np.arange(len(catalogue)),
            "source_id": pa.array(catalogue.source_ids.tolist(), pa.large_string()),
            "title": pa.array(catalogue.titles.tolist(), pa.large_string()),
        }
    )
    pq.write_table(table, folder / ITEMS)
    described = {
        **{name: getattr(dataset, name) for name in _OWN_FIELDS},
        "counts": counts(dataset),
        "hash": content_hash(dataset),
        "version": VERSION,
    }
    artifacts.write_json(folder / DESCRIPTION, described)


def _examine(folder: Path) -> tuple[Dataset | None, list[str]]:
    """The dataset (None when it cannot be built) and its problems, each opening with a file."""
    try:
        described = _read_description(folder)
        sessions, splits = _read_sessions(folder)
        catalogue = _read_items(folder)
    except InputError as error:
        return None, [str(error)]
    own = {name: described[name] for name in _OWN_FIELDS}
    dataset = Dataset(catalogue=catalogue, sessions=sessions, **own)
    problems = _problems_of(dataset)
    if np.any(sessions.split < 0):
        row = int(np.argmax(sessions.split < 0))
        known = ", ".join(SPLITS)
        problems.append(f"{_at(row, 'split')}: {splits[row]!r} is none of {known}")
    if not problems:
        problems = _differences(dataset, described)
    return dataset, problems


def _differences(dataset: Dataset, described: dict[str, Any]) -> list[str]:
    """Where the files, valid in themselves, are not those that dataset.json describes."""
    for field, found in (("counts", counts(dataset)), ("hash", content_hash(dataset))):
        if described[field] != found:
            return [
                f"{DESCRIPTION}: field {field}: says {described[field]!r}, but the files give "
                f"{found!r}: they were changed after the import"
            ]
    return []


def _read_description(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION).is_file():
        raise InputError(
            f"{DESCRIPTION}: is not there, so this is not a dataset in native form; "
            "make one with alkd data import"
        )
    try:
        described = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{DESCRIPTION}: cannot be read as JSON ({error})") from error
    for field, kind in _FIELDS.items():
        if not isinstance(described, dict) or not isinstance(described.get(field), kind):
            raise InputError(
                f"{DESCRIPTION}: field {field}: is missing or not of type {kind.__name__}"
            )
    if described["version"] != VERSION:
        raise InputError(
            f"{DESCRIPTION}: field version: is {described['version']}, this program reads {VERSION}"
        )
    return described


def _read_sessions(folder: Path) -> tuple[SessionSet, np.ndarray]:
    """The sessions, and the split names as found; a name that is not known has code -1."""
    columns = _read_columns(folder, SESSIONS, ("session_id", "items", "target", "split"))
    lists = columns["items"]
    offsets = lists.offsets.to_numpy().astype(np.int64)
    splits = columns["split"].to_numpy(zero_copy_only=False)
    sessions = SessionSet(
        ids=columns["session_id"].to_numpy(),
        flat_items=lists.values.to_numpy()[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        targets=columns["target"].to_numpy(),
        split=pd.Index(list(SPLITS)).get_indexer(splits).astype(np.int8),
    )
    return with_fingerprint(sessions), splits


def _read_items(folder: Path) -> Catalogue:
    columns = _read_columns(folder, ITEMS, ("item_id", "source_id", "title"))
    ids = columns["item_id"].to_numpy()
    wrong = np.flatnonzero(ids != np.arange(len(ids)))
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"{ITEMS}: row {row}, field item_id: is {ids[row]}, must be {row} (0..N-1, in order)"
        )
    return Catalogue(
        columns["source_id"].to_numpy(zero_copy_only=False),
        columns["title"].to_numpy(zero_copy_only=False),
    )


_TYPES: dict[str, pa.DataType] = {
    "session_id": pa.int64(),
    "items": pa.large_list(pa.int64()),
    "target": pa.int64(),
    "split": pa.large_string(),
    "item_id": pa.int64(),
    "source_id": pa.large_string(),
    "title": pa.large_string(),
}


def _read_columns(folder: Path, file: str, names: Sequence[str]) -> dict[str, Any]:
    """The named columns, each one Arrow array of its type and without nulls."""
    try:
        table = pq.read_table(folder / file)
    except (OSError, pa.ArrowException) as error:
        first = str(error).split("\n")[0]
        raise InputError(f"{file}: cannot be read as Parquet ({first})") from error
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(
            f"{file}: field {missing[0]}: there is no such column, there are "
            f"{', '.join(table.column_names)}"
        )
    columns = {}
    for name in names:
        column, wanted = table[name].combine_chunks(), _TYPES[name]
        try:
            columns[name] = column.cast(wanted)
        except pa.ArrowException as error:
            raise InputError(
                f"{file}: field {name}: is of type {column.type}, must be {wanted}"
            ) from error
        row = _row_of_null(columns[name])
        if row >= 0:
            raise InputError(f"{_at(row, name, file)}: is, or holds, an empty value")
    return columns


def _row_of_null(column: pa.Array) -> int:
    """The first row that is null, or a list that holds a null; -1 when there is none."""
    if column.null_count:
        return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
    if pa.types.is_large_list(column.type) and column.values.null_count:
        place = int(np.argmax(column.values.is_null().to_numpy(zero_copy_only=False)))
        return int(np.searchsorted(column.offsets.to_numpy(), place, side="right")) - 1
    return -1


def _problems_of(dataset: Dataset) -> list[str]:
    """The first row of each kind of fault in a dataset's values."""
    sessions, catalogue = dataset.sessions, dataset.catalogue
    last = len(catalogue) - 1
    row_of = np.repeat(np.arange(len(sessions)), sessions.lengths)
    flat, targets, texts = sessions.flat_items, sessions.targets, catalogue.source_ids
    repeated_ids = pd.Index(sessions.ids).duplicated()
    repeated_texts = pd.Index(texts).duplicated()
    faults: list[tuple[Any, Callable[[int], str]]] = [
        (
            repeated_ids,
            lambda row: f"{_at(row, 'session_id')}: {sessions.ids[row]} was there before",
        ),
        (sessions.lengths < 1, lambda row: f"{_at(row, 'items')}: holds no item"),
        (
            (flat < 0) | (flat > last),
            lambda place: f"{_at(row_of[place], 'items')}: item {flat[place]} is not in 0..{last}",
        ),
        (
            (targets < 0) | (targets > last),
            lambda row: f"{_at(row, 'target')}: item {targets[row]} is not in 0..{last}",
        ),
        (texts == "", lambda row: f"{_at(row, 'source_id', ITEMS)}: is empty"),
        (
            repeated_texts,
            lambda row: f"{_at(row, 'source_id', ITEMS)}: {texts[row]!r} was there before",
        ),
    ]
    return [say(int(np.argmax(fault))) for fault, say in faults if np.any(fault)]


def _at(row: int, field: str, file: str = SESSIONS) -> str:
    return f"{file}: row {row}, field {field}"
