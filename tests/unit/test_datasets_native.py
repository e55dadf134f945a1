"""The native form: what is written is read, and damage is named by file, row and field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray import datasets
from alkd_ray.errors import InputError
from alkd_ray.sessions import from_lists
from alkd_ray.types import SPLITS, Catalogue, Dataset


def made(
    lists: list[list[int]], split: list[str], titles: list[str], name: str = "made"
) -> Dataset:
    """Sessions whose last item is the target; ids with gaps, not in order."""
    ids = [7 * (len(lists) - row) for row in range(len(lists))]
    return Dataset(
        name=name,
        catalogue=Catalogue(
            np.array([f"id {n}" for n in range(len(titles))], object), np.array(titles, object)
        ),
        sessions=from_lists(ids, [row[:-1] for row in lists], [row[-1] for row in lists], split),
        split_rule="as given",
        source="a test",
        damaged_lines=3,
    )


def example() -> Dataset:
    lists = [[0, 1, 2], [3, 3], [1, 0, 4, 2], [2, 1], [4, 0], [0, 4]]
    split = ["train", "train", "train", "valid", "test", "test"]
    return made(lists, split, ["A", "", 'C, "c"', "\n", "é\x00"])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=n, max_size=n),
            st.lists(st.lists(st.integers(0, n - 1), min_size=2, max_size=5), max_size=9),
            st.randoms(use_true_random=False),
        )
    )
)
def test_read_gives_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple
) -> None:
    titles, lists, random = drawn
    dataset = made(lists, [random.choice(SPLITS) for _ in lists], titles)
    folder = tmp_path_factory.mktemp("native") / "dataset"
    datasets.write(dataset, folder)
    assert sorted(file.name for file in folder.parent.iterdir()) == ["dataset"]
    again = datasets.read(folder)
    for array in ("ids", "flat_items", "offsets", "targets", "split"):
        before, after = getattr(dataset.sessions, array), getattr(again.sessions, array)
        assert before.tolist() == after.tolist()
        assert before.dtype == after.dtype
    assert again.sessions.fingerprint == dataset.sessions.fingerprint
    assert again.catalogue.titles.tolist() == titles
    assert again.catalogue.source_ids.tolist() == dataset.catalogue.source_ids.tolist()
    assert datasets.describe(again) == datasets.describe(dataset)
    assert again.damaged_lines == 3
    assert datasets.validate(folder) == []


def test_the_hash_is_of_the_content_alone() -> None:
    dataset = example()
    same = replace(dataset, name="other", source="elsewhere")
    assert datasets.content_hash(same) == datasets.content_hash(dataset)
    moved = replace(dataset.catalogue, titles=np.array(["A", "", "C", ', "c"\n', "é\x00"], object))
    titled = replace(
        dataset.catalogue, titles=np.array(["A", "x", 'C, "c"', "\n", "é\x00"], object)
    )
    split = dataset.sessions.split.copy()
    split[0] = 1
    others = [
        replace(dataset, catalogue=moved),
        replace(dataset, catalogue=titled),
        replace(dataset, sessions=replace(dataset.sessions, split=split)),
    ]
    assert len({datasets.content_hash(other) for other in [dataset, *others]}) == 4


def test_describe_counts_as_plain_sets_do() -> None:
    facts = datasets.describe(example())
    assert facts["counts"] == {
        "sessions": 6, "items": 5, "interactions": 15, "train": 3, "valid": 1, "test": 2
    }  # fmt: skip
    assert facts["session_length"] == {"min": 2, "median": 2.0, "mean": 2.5, "max": 4}
    assert facts["untitled_items"] == 1
    assert facts["unseen_test_targets"] == 0.0
    alone = made([[0, 1], [2, 0, 2], [1, 2], [0, 3]], ["train", "test", "test", "test"], ["t"] * 4)
    facts = datasets.describe(alone)
    assert facts["unseen_test_targets"] == round(3 / 3, 4)
    assert facts["repeated_test_targets"] == round(1 / 3, 4)
    occurrences = Counter([0, 1, 2, 0, 2, 1, 2, 0, 3])
    ordered = sorted(occurrences[item] for item in range(4))
    gini = sum(abs(a - b) for a in ordered for b in ordered) / (2 * 4 * sum(ordered))
    assert facts["popularity"]["gini"] == pytest.approx(gini, abs=1e-4)
    assert facts["popularity"]["top_10_percent_share"] == round(3 / 9, 4)


def edit(folder: Path, file: str, change: Callable[[pd.DataFrame], object]) -> None:
    table = pd.read_parquet(folder / file)
    change(table)
    table.to_parquet(folder / file)


def set_cell(row: int, field: str, value: object) -> Callable[[pd.DataFrame], object]:
    def change(table: pd.DataFrame) -> None:
        column = table[field].astype(object).tolist()
        column[row] = value
        table[field] = pd.Series(column)

    return change


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("sessions", set_cell(2, "session_id", 42), "row 2, field session_id: 42 was there before"),
        ("sessions", set_cell(2, "items", [1, 5]), "row 2, field items: item 5 is not in 0..4"),
        ("sessions", set_cell(2, "items", [-1]), "row 2, field items: item -1 is not in 0..4"),
        ("sessions", set_cell(1, "items", []), "row 1, field items: holds no item"),
        ("sessions", set_cell(3, "items", None), "row 3, field items: is, or holds, an empty"),
        ("sessions", set_cell(3, "items", [1, None]), "row 3, field items: is, or holds, an empty"),
        ("sessions", set_cell(1, "target", 9), "row 1, field target: item 9 is not in 0..4"),
        ("sessions", set_cell(1, "target", None), "row 1, field target: is, or holds, an empty"),
        ("sessions", set_cell(4, "split", "dev"), "row 4, field split: 'dev' is none of train"),
        ("items", set_cell(1, "item_id", 2), "row 1, field item_id: is 2, must be 1"),
        ("items", set_cell(3, "source_id", "id 0"), "row 3, field source_id: 'id 0' was there"),
        ("items", set_cell(3, "source_id", ""), "row 3, field source_id: is empty"),
        ("items", set_cell(0, "title", None), "row 0, field title: is, or holds, an empty"),
        ("items", lambda t: t.pop("title"), "field title: there is no such"),
        ("items", lambda t: t.__setitem__("item_id", list("abcde")), "field item_id: is of type"),
        ("sessions", lambda t: t.__setitem__("items", 1), "field items: is of type int64, must be"),
    ],
)  # fmt: skip
def test_damage_is_named(
    tmp_path: Path, file: str, change: Callable[[pd.DataFrame], object], said: str
) -> None:
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)
    edit(folder, f"{file}.parquet", change)
    with pytest.raises(InputError) as raised:
        datasets.read(folder)
    assert f"{folder / file}.parquet: {said}" in str(raised.value)
    assert "import the data again" in str(raised.value)
    assert any(said in problem for problem in datasets.validate(folder))


def test_a_change_that_is_valid_in_itself_is_found_by_the_hash(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)
    edit(folder, "items.parquet", set_cell(0, "title", "B"))
    with pytest.raises(InputError, match=r"dataset.json: field hash: says '.{16}', but the files"):
        datasets.read(folder)
    edit(folder, "items.parquet", set_cell(0, "title", "A"))
    datasets.read(folder)
    edit(folder, "sessions.parquet", set_cell(0, "split", "test"))
    with pytest.raises(InputError, match=r"dataset.json: field counts"):
        datasets.read(folder)


def test_several_problems_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)
    edit(folder, "sessions.parquet", set_cell(4, "split", "dev"))
    edit(folder, "sessions.parquet", set_cell(1, "target", 9))
    edit(folder, "sessions.parquet", set_cell(5, "target", 8))
    problems = datasets.validate(folder)
    assert [problem.split(": ")[1] for problem in problems] == [
        "row 1, field target", "row 4, field split"
    ]  # fmt: skip
    with pytest.raises(InputError, match="and 1 more: alkd data validate"):
        datasets.read(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("hash"), "dataset.json: field hash: is missing"),
        (
            lambda d: d.update(damaged_lines="none"),
            "field damaged_lines: is missing or not of type",
        ),
        (lambda d: d.update(version=99), "field version: is 99, this program reads 1"),
    ],
)
def test_a_damaged_description(tmp_path: Path, change: Callable[[dict], object], said: str) -> None:
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)
    described = json.loads((folder / "dataset.json").read_text("utf-8"))
    change(described)
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        datasets.read(folder)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset.json: is not there, so this is not a dataset"):
        datasets.read(tmp_path / "none")
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)
    (folder / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        datasets.read(folder)
    datasets.write(example(), tmp_path / "cut")
    file = tmp_path / "cut" / "sessions.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"sessions.parquet: cannot be read as Parquet"):
        datasets.read(tmp_path / "cut")


def test_reads_what_other_programs_write(tmp_path: Path) -> None:
    """int32, plain lists, dictionary text, several row groups."""
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)
    wanted = datasets.read(folder)
    table = pq.read_table(folder / "sessions.parquet")
    table = table.cast(
        pa.schema(
            [
                ("session_id", pa.int32()),
                ("items", pa.list_(pa.int16())),
                ("target", pa.uint8()),
                ("split", pa.dictionary(pa.int8(), pa.string())),
            ]
        )
    )
    pq.write_table(table, folder / "sessions.parquet", row_group_size=2)
    again = datasets.read(folder)
    assert again.sessions.fingerprint == wanted.sessions.fingerprint


def test_write_never_takes_what_is_there(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for replace_it in (False, True):
        with pytest.raises(InputError, match=r"holds 'thesis.txt', which is no part of a dataset"):
            datasets.write(example(), mine, replace=replace_it)
    assert (mine / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="is a file"):
        datasets.write(example(), mine / "thesis.txt", replace=True)
    for below in ("below", "far/below"):
        with pytest.raises(InputError, match=r"thesis.txt is a file, and no folder can be made in"):
            datasets.write(example(), mine / "thesis.txt" / below)
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)
    with pytest.raises(InputError, match="--force replaces it"):
        datasets.write(example(), folder)
    datasets.write(replace(example(), name="second"), folder, replace=True)
    assert datasets.read(folder).name == "second"
    (tmp_path / "empty").mkdir()
    datasets.write(example(), tmp_path / "empty")
    assert {file.name for file in tmp_path.iterdir()} == {"mine", "dataset", "empty"}


def test_a_write_that_fails_leaves_the_old_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dataset"
    datasets.write(example(), folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alkd_ray.artifacts.write_json", full)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="No space"):
            datasets.write(replace(example(), name="second"), target, replace=True)
    assert datasets.read(folder).name == "made"
    assert [file.name for file in tmp_path.iterdir()] == ["dataset"]


def test_an_invalid_dataset_is_not_written(tmp_path: Path) -> None:
    bad = replace(example(), sessions=from_lists([1, 1], [[0], [1]], [2, 2], ["train", "test"]))
    with pytest.raises(InputError, match=r"a test: not a valid dataset: .*1 was there before"):
        datasets.write(bad, tmp_path / "dataset")
    assert not any(tmp_path.iterdir())
