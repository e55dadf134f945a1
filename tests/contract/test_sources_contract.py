"""What every source of the room keeps: documented, strict, repeatable, yields a dataset."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from alkd_ray import datasets, registry
from alkd_ray.errors import InputError
from alkd_ray.registry import PluginConfig
from alkd_ray.seeds import numpy_stream
from alkd_ray.sessions import from_lists
from alkd_ray.types import SPLITS, Catalogue, Dataset

NAMES = registry.names("sources")
ITEMS = [f"i{n}" for n in range(12)]


def random_sessions() -> list[list[str]]:
    rng = numpy_stream(0, "sources contract")
    return [[ITEMS[n] for n in rng.integers(0, 12, rng.integers(2, 7))] for _ in range(25)]


def alkdrec_files(folder: Path) -> dict[str, Any]:
    sessions = random_sessions()
    frame = pd.DataFrame(
        {"session": [s[:-1] for s in sessions], "label": [s[-1] for s in sessions]}, dtype=object
    )
    frame.columns = pd.Index(["session", "label"], dtype=object)
    (folder / "Made.pkl").write_bytes(pickle.dumps(frame))
    titles = "".join(f"{item},Title of {item}\n" for item in ITEMS)
    (folder / "Made_title.csv").write_text(f"itemID,title\n{titles}")
    return {"path": str(folder)}


def native_folder(folder: Path) -> dict[str, Any]:
    sessions = [[ITEMS.index(item) for item in session] for session in random_sessions()]
    made = from_lists(
        range(25), [s[:-1] for s in sessions], [s[-1] for s in sessions],
        ["train"] * 15 + ["valid"] * 5 + ["test"] * 5,
    )  # fmt: skip
    catalogue = Catalogue(np.array(ITEMS, object), np.array([f"T {i}" for i in ITEMS], object))
    datasets.write(Dataset("made", catalogue, made, "by row", "made here"), folder / "native")
    return {"path": str(folder / "native")}


def table_file(folder: Path) -> dict[str, Any]:
    lines = [
        f"{number},{item},Title of {item}\n"
        for number, session in enumerate(random_sessions())
        for item in session
    ]
    (folder / "log.csv").write_text("".join(["session,item,title\n", *lines]))
    return {"path": str(folder / "log.csv"), "session": "session", "title": "title"}


INPUTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "alkdrec": alkdrec_files,
    "native": native_folder,
    "synthetic": lambda _: {"size": "tiny"},
    "table": table_file,
}


def test_every_source_has_an_input_here() -> None:
    assert set(INPUTS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_yields_a_valid_dataset_again_and_again(name: str, tmp_path: Path) -> None:
    options = INPUTS[name](tmp_path)
    first, second = (registry.build("sources", name, options).load() for _ in range(2))
    for dataset in (first, second):
        datasets.write(dataset, tmp_path / "written", replace=True)
        assert datasets.validate(tmp_path / "written") == []
    assert datasets.content_hash(first) == datasets.content_hash(second)
    again = datasets.read(tmp_path / "written")
    assert again.sessions.fingerprint == first.sessions.fingerprint != ""
    assert (first.name, first.source, first.split_rule) == (
        again.name, again.source, again.split_rule
    )  # fmt: skip
    assert all((first.name, first.source, first.split_rule))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_types(name: str, tmp_path: Path) -> None:
    dataset = registry.build("sources", name, INPUTS[name](tmp_path)).load()
    sessions = dataset.sessions
    assert len(np.unique(sessions.ids)) == len(sessions) >= 20
    for array in (sessions.ids, sessions.flat_items, sessions.offsets, sessions.targets):
        assert array.dtype == np.int64
    assert sessions.split.dtype == np.int8
    assert set(sessions.split.tolist()) == set(range(len(SPLITS)))
    assert sessions.offsets[-1] == len(sessions.flat_items)
    assert all(isinstance(title, str) and title for title in dataset.catalogue.titles)
    assert all(isinstance(text, str) and text for text in dataset.catalogue.source_ids)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_documented_and_strict(name: str) -> None:
    source = registry.find("sources", name)
    assert issubclass(source.Config, PluginConfig)
    for field, described in source.Config.model_fields.items():
        assert described.description, f"{name}: the field {field} has no description"
    assert len((source.__doc__ or "").strip()) > 40
    with pytest.raises(InputError, match="no such field; known: "):
        registry.options("sources", name, {"no_such_option": 1})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "synthetic"])
def test_a_path_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    options = {**INPUTS[name](tmp_path), "path": str(tmp_path / "nowhere.csv")}
    with pytest.raises(InputError, match=r"nowhere.csv"):
        registry.build("sources", name, options).load()


def test_the_three_forms_of_the_same_sessions_agree(tmp_path: Path) -> None:
    """As source ids, whatever the numbering."""
    found = []
    for name in ("alkdrec", "native", "table"):
        (tmp_path / name).mkdir()
        dataset = registry.build("sources", name, INPUTS[name](tmp_path / name)).load()
        sessions, ids = dataset.sessions, dataset.catalogue.source_ids
        found.append(
            [
                [*ids[sessions.items_of(row)], ids[sessions.targets[row]]]
                for row in range(len(sessions))
            ]
        )
    assert found[0] == found[1] == found[2] == random_sessions()
