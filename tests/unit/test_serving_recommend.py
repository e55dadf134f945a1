"""Recommendations and exports against scores computed with plain numpy from the weights file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from alkd_ray import registry
from alkd_ray.errors import InputError
from alkd_ray.seeds import torch_stream
from alkd_ray.serving.export import export, read_export
from alkd_ray.serving.recommend import Student, load_student
from alkd_ray.training import checkpoint
from alkd_ray.types import Catalogue

NUM_ITEMS, DIM, WINDOW = 150, 6, 3


def catalogue_of(count: int) -> Catalogue:
    return Catalogue(
        np.array([f"sku-{7 * item}" for item in range(count)], object),
        np.array([f"Title {item}" if item % 5 else "" for item in range(count)], object),
    )


def save_checkpoint(folder: Path, num_items: int = NUM_ITEMS, seed: int = 3) -> Path:
    backbone = registry.build(
        "recommenders",
        "fpmc",
        {},
        num_items=num_items,
        dim=DIM,
        generator=torch_stream(seed, "test"),
    )
    checkpoint.save(
        folder,
        backbone,
        backbone_name="fpmc",
        options={},
        dim=DIM,
        num_items=num_items,
        metrics={"recall@25": 0.25, "best_step": 40},
        extra={"role": "distilled", "method": "alkdrec"},
    )
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose checkpoint is gone."""
    folder = tmp_path_factory.mktemp("serving")
    saved = save_checkpoint(folder / "checkpoint")
    export(saved, catalogue_of(NUM_ITEMS), WINDOW, folder / "out", test_metrics={"recall@5": 0.125})
    shutil.rmtree(saved)
    return folder / "out"


@pytest.fixture(scope="module")
def student(exported: Path) -> Student:
    return load_student(exported)


def expected(exported: Path, session: list[str], k: int) -> list[tuple[str, float]]:
    """FPMC by hand: mean input embedding of the last known items times the target embeddings."""
    weights = load_file(exported / "weights.safetensors")
    ids = pq.read_table(exported / "items.parquet")["source_id"].to_pylist()
    items = [ids.index(source) for source in session if source in ids]
    query = weights["input_item_embedding"][items[-WINDOW:]].astype(np.float64).mean(0)
    scores = weights["target_item_embedding"].astype(np.float64) @ query
    order = sorted(set(range(len(ids))) - set(items), key=lambda item: (-scores[item], item))
    return [(ids[item], scores[item]) for item in order[:k]]


item_ids = st.one_of(
    st.integers(0, NUM_ITEMS - 1).map(lambda item: f"sku-{7 * item}"),
    st.sampled_from(["", "sku", "sku-1", "SKU-7", "nothing"]),
)


@settings(max_examples=60, deadline=None)
@given(
    sessions=st.lists(st.lists(item_ids, max_size=8), min_size=1, max_size=6),
    k=st.integers(1, NUM_ITEMS),
)
def test_recommends_what_numpy_recommends(
    exported: Path, student: Student, sessions: list[list[str]], k: int
) -> None:
    known = set(student.catalogue.source_ids)
    for session, answer in zip(sessions, student.recommend(sessions, k), strict=True):
        assert answer.unknown == tuple(source for source in session if source not in known)
        if not known & set(session):
            assert answer.items == ()
            assert answer.problem
            continue
        assert answer.problem == ""
        wanted = expected(exported, session, k)
        assert [item.score for item in answer.items] == pytest.approx(
            [score for _, score in wanted], abs=1e-6
        )
        # float32 may swap neighbours whose float64 scores differ by less than it can hold.
        by_id = dict(wanted)
        for item, (source, score) in zip(answer.items, wanted, strict=True):
            assert item.source_id == source or abs(by_id.get(item.source_id, score) - score) < 1e-6
        assert not {item.source_id for item in answer.items} & set(session)


def test_titles_stand_beside_their_items(student: Student) -> None:
    for item in student.recommend([["sku-14"]], NUM_ITEMS)[0].items:
        number = int(item.source_id.removeprefix("sku-")) // 7
        assert item.title == (f"Title {number}" if number % 5 else "")


def test_more_sessions_than_a_block_are_answered_as_one_by_one(student: Student) -> None:
    sessions = [[f"sku-{7 * (row % NUM_ITEMS)}", "sku-70"] for row in range(200)]
    sessions[77] = []
    together = student.recommend(sessions, 4)
    for session, answer in zip(sessions, together, strict=True):
        alone = student.recommend([session], 4)[0]
        assert [i.source_id for i in answer.items] == [i.source_id for i in alone.items]
        assert [i.score for i in answer.items] == pytest.approx([i.score for i in alone.items])
    assert together[77].problem.startswith("the session is empty")


@pytest.mark.parametrize("k", [0, -1, NUM_ITEMS + 1])
def test_k_out_of_bounds(student: Student, k: int) -> None:
    with pytest.raises(InputError, match=f"is {k}, but must be 1 to {NUM_ITEMS}"):
        student.recommend([["sku-0"]], k)


def test_a_text_is_not_a_session(student: Student) -> None:
    with pytest.raises(InputError, match="give a list of item ids"):
        student.recommend(["sku-0"], 1)


def test_the_export_says_what_it_holds(exported: Path) -> None:
    facts = read_export(exported)
    assert facts["parameters"] == 2 * NUM_ITEMS * DIM
    assert facts["weights_bytes"] == (exported / "weights.safetensors").stat().st_size
    assert facts["weights_bytes"] >= 4 * facts["parameters"]
    card = (exported / "README.md").read_text()
    for said in (
        "1,800",
        f"{facts['weights_bytes']:,} bytes",
        "| recall@25 | validation | 0.2500 |",
        "| recall@5 | test | 0.1250 |",
        "`alkdrec`",
    ):
        assert said in card
    assert "best_step" not in card


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path / "first", 20)
    second = save_checkpoint(tmp_path / "second", 30)
    out = tmp_path / "out"
    export(first, catalogue_of(20), 2, out)
    export(second, catalogue_of(30), 5, out)
    assert (read_export(out)["num_items"], read_export(out)["window"]) == (30, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out", "second"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is there already and is not an exported student"):
        export(first, catalogue_of(20), 2, mine)
    assert (mine / "thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="is there already"):
        export(first, catalogue_of(20), 2, first)  # a checkpoint is no export


def test_a_failing_export_leaves_the_earlier_one(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path / "good", 20)
    export(good, catalogue_of(20), 2, tmp_path / "out")
    bad = save_checkpoint(tmp_path / "bad", 20)
    (bad / "weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="train the model again"):
        export(bad, catalogue_of(20), 2, tmp_path / "out")
    with pytest.raises(InputError, match="scores 20 items, but the catalogue has 19"):
        export(good, catalogue_of(19), 2, tmp_path / "out")
    assert load_student(tmp_path / "out").recommend([["sku-7"]], 3)[0].items
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good", "out"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: (out / "config.json").unlink(), "is not an exported student"),
        (lambda out: (out / "config.json").write_text("{"), "is not a checkpoint"),
        (lambda out: (out / "items.parquet").write_bytes(b"PAR1"), "items.parquet: cannot be read"),
        (lambda out: (out / "items.parquet").unlink(), "items.parquet: cannot be read"),
        (lambda out: (out / "weights.safetensors").write_bytes(b""), "weights.safetensors"),
        (lambda out: _shorten_items(out), "the catalogue has 19 items, but the student scores 20"),
        (lambda out: _edit(out, format="alkd-student-9"), "not an exported student of format"),
    ],
)
def test_a_damaged_export_is_one_sentence(tmp_path: Path, damage: object, said: str) -> None:
    export(save_checkpoint(tmp_path / "c", 20), catalogue_of(20), 2, tmp_path / "out")
    damage(tmp_path / "out")  # type: ignore[operator]
    with pytest.raises(InputError, match=said) as raised:
        load_student(tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_source_ids_must_be_distinct(tmp_path: Path) -> None:
    doubled = Catalogue(np.array(["a", "b", "a"], object), np.array(["", "", ""], object))
    backbone = checkpoint.load(save_checkpoint(tmp_path / "c", 3))
    with pytest.raises(InputError, match="3 items but only 2 distinct source ids"):
        Student(backbone, doubled, 2)


def _shorten_items(out: Path) -> None:
    pq.write_table(pq.read_table(out / "items.parquet").slice(0, 19), out / "items.parquet")


def _edit(out: Path, **changes: object) -> None:
    facts = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**facts, **changes}))
