"""A student as a folder that stands by itself: weights, items, facts and a model card."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alkd_ray import __version__, artifacts
from alkd_ray.errors import InputError
from alkd_ray.training import checkpoint
from alkd_ray.types import Catalogue

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
ITEMS_FILE = "items.parquet"
CARD_FILE = "README.md"
FORMAT = "alkd-student-1"


def export(
    checkpoint_folder: Path,
    catalogue: Catalogue,
    window: int,
    out: Path,
    *,
    test_metrics: Mapping[str, float] | None = None,
) -> None:
    """Writes a student that recommends without the dataset, the run or the run root.

    ``out`` holds ``weights.safetensors``; ``config.json`` (the checkpoint's facts, the window, the
    number of parameters, the size of the weights in bytes); ``items.parquet`` (``source_id`` and
    ``title``, row = item); and ``README.md``, the model card. It is written under a temporary name
    and renamed; an earlier export there is replaced.

    Args:
        checkpoint_folder: what :func:`alkd_ray.training.checkpoint.save` wrote.
        catalogue: the N items of the student.
        window: input items that the student sees, the last ones.
        out: the folder to write.
        test_metrics: metrics on the test sessions, for the card.

    Raises:
        InputError: the checkpoint is damaged or has another number of items, or ``out`` is there
            and is not an export.
    """
    facts = checkpoint.read_config(checkpoint_folder)
    if facts["num_items"] != len(catalogue):
        raise InputError(
            f"{checkpoint_folder}: the student scores {facts['num_items']} items, but the "
            f"catalogue has {len(catalogue)}; take both from the same run"
        )
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        weights = temporary / WEIGHTS_FILE
        try:
            shutil.copyfile(checkpoint_folder / WEIGHTS_FILE, weights)
            parameters = _count_parameters(weights)
        except OSError as error:
            raise InputError(
                f"{checkpoint_folder / WEIGHTS_FILE}: cannot be read ({error}); train the model "
                "again"
            ) from error
        pq.write_table(_items(catalogue), temporary / ITEMS_FILE, compression="zstd")
        facts = {
            **facts,
            "format": FORMAT,
            "window": window,
            "parameters": parameters,
            "weights_bytes": weights.stat().st_size,
            "test_metrics": dict(test_metrics or {}),
        }
        artifacts.write_json(temporary / CONFIG_FILE, facts)
        artifacts.write_text(temporary / CARD_FILE, _card(facts))
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_export(folder: Path) -> dict[str, Any]:
    """The facts of an exported folder, its ``config.json``.

    Raises:
        InputError: the folder is not an export of this version.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: is not an exported student; make one with `alkd export`")
    facts = checkpoint.read_config(folder)
    if facts.get("format") != FORMAT or not isinstance(facts.get("window"), int):
        raise InputError(
            f"{folder}: is not an exported student of format {FORMAT} (its config.json says "
            f"{facts.get('format')!r}); make one with `alkd export`"
        )
    return facts


def _check_replaceable(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        try:
            read_export(out)
        except InputError as error:
            raise InputError(
                f"{out}: is there already and is not an exported student; give a folder that "
                "is not there"
            ) from error


def _put_in_place(temporary: Path, out: Path) -> None:
    """A folder cannot be renamed onto a full one: the earlier one steps aside first."""
    aside = out.with_name(f".{out.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if out.exists():
        out.rename(aside)
    temporary.rename(out)
    shutil.rmtree(aside, ignore_errors=True)


def _items(catalogue: Catalogue) -> pa.Table:
    return pa.table(
        {
            "source_id": pa.array([str(source) for source in catalogue.source_ids], pa.string()),
            "title": pa.array([str(title) for title in catalogue.titles], pa.string()),
        }
    )


def _count_parameters(weights: Path) -> int:
    """Reads the header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as opened:
            names = opened.keys()
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _card(facts: Mapping[str, Any]) -> str:
    told = facts.get("extra", {})
    made_by = str(told.get("role", "student"))
    if told.get("method"):
        made_by += f", method `{told['method']}`"
    validation = {name: value for name, value in facts.get("metrics", {}).items() if "@" in name}
    return f"""# A session-based recommender

Given the items of a session, oldest first, it scores all items of its catalogue as the next one.
Made by alkd_ray {__version__}.

| | |
|---|---|
| role | {made_by} |
| backbone | `{facts["backbone"]}`, dimension {facts["dim"]} |
| items it sees of a session | the last {facts["window"]} |
| items it can recommend | {facts["num_items"]:,} |
| parameters | {facts["parameters"]:,} |
| size of the weights | {facts["weights_bytes"]:,} bytes |

{_metrics_table(validation, facts["test_metrics"])}

Items of the session itself are never recommended. Ids that are not in `items.parquet` are ignored
and reported; a session with no known id has no recommendations.

## Use

    alkd recommend THIS_FOLDER --session ID,ID,ID --top 10

```python
from alkd_ray.serving.recommend import load_student

for item in load_student("THIS_FOLDER").recommend([["ID", "ID"]], k=10)[0].items:
    print(item.source_id, item.score, item.title)
```

## Files

| file | what |
|---|---|
| `weights.safetensors` | the parameters, float32 |
| `config.json` | backbone, options, window, metrics |
| `items.parquet` | `source_id`, `title`; row = item |
"""


def _metrics_table(validation: Mapping[str, float], test: Mapping[str, float]) -> str:
    lines = [f"| {name} | validation | {value:.4f} |" for name, value in validation.items()]
    lines += [f"| {name} | test | {value:.4f} |" for name, value in test.items()]
    if not lines:
        return "No metrics were handed over with this student."
    return "\n".join(["| metric | sessions | mean |", "|---|---|---|", *lines])
