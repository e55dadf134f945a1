"""Candidates: their order, how many there are, and what is refused before a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from alkd_ray import config, datasets, pipeline, selecting
from alkd_ray.errors import InputError
from alkd_ray.selecting import _shuffled
from alkd_ray.sessions import from_lists
from alkd_ray.stages import Silent
from alkd_ray.types import Catalogue, Dataset

SIZE = 20


def test_a_sessions_candidates_have_one_order_whatever_else_was_selected() -> None:
    top = np.random.default_rng(0).permuted(np.tile(np.arange(SIZE), (500, 1)), axis=1)
    ids = np.arange(1_000, 1_500)
    whole = _shuffled(top, ids, seed=3)
    some = np.array([7, 499, 0, 250])
    assert np.array_equal(_shuffled(top[some], ids[some], seed=3), whole[some])
    assert np.array_equal(np.sort(whole, axis=1), np.sort(top, axis=1))
    assert not np.array_equal(_shuffled(top, ids, seed=4), whole)


def test_every_place_of_the_teachers_list_is_as_likely_anywhere() -> None:
    sessions = 4_000
    places = _shuffled(np.tile(np.arange(SIZE), (sessions, 1)), np.arange(sessions), seed=1)
    counts = np.stack([np.bincount(places[:, column], minlength=SIZE) for column in range(SIZE)])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4
    last = np.argmax(places == SIZE - 1, axis=1)  # where a forced target stood
    assert abs(last.mean() - (SIZE - 1) / 2) < 4 * SIZE / np.sqrt(12 * sessions)


def world(
    folder: Path, lists: Sequence[Sequence[int]], targets: Sequence[int], titled: bool
) -> str:
    """A dataset of 12 items; all sessions but the last two train."""
    splits = ["train"] * (len(lists) - 2) + ["valid", "test"]
    ids = np.array([f"i{number}" for number in range(12)], object)
    titles = np.array([f"Title {number}" if titled else "" for number in range(12)], object)
    sessions = from_lists(range(len(lists)), lists, targets, splits)
    datasets.write(Dataset("small", Catalogue(ids, titles), sessions, "test", "by hand"), folder)
    return str(folder)


def settings(path: str, **selection: object) -> config.RunConfig:
    return config.make(
        {
            "seeds": [1],
            "data": {"source": "native", "options": {"path": path}},
            "teacher": {"dim": 4, "training": {"max_steps": 2}},
            "student": {"dim": 2, "training": {"max_steps": 2}},
            "difficulty": {"engine": "local"},
            "selection": {"strategy": "random", "budget": 4, **selection},
            "annotation": {"wanted": 5},
        }
    )


LISTS = [[0, 1], [2, 3, 4], [5], [0, 1, 2, 3, 4, 5, 6] * 3, [1, 2], [3]]
TARGETS = [2, 5, 6, 7, 3, 4]


@pytest.mark.parametrize("order", ["shuffled", "teacher"])
def test_a_long_session_does_not_shorten_the_others_candidates(tmp_path: Path, order: str) -> None:
    settled = settings(world(tmp_path / "data", LISTS, TARGETS, titled=True))
    settled = settled.model_copy(
        update={"candidates": settled.candidates.model_copy(update={"order": order})}
    )
    result = pipeline.run(settled, tmp_path / "home", Silent(), until="candidates")
    ids, found = selecting.load_candidates(result.by_seed["candidates"][1])
    assert sorted(ids) == [0, 1, 2, 3]
    for session, row in zip(ids, found, strict=True):
        assert sorted(row) == sorted(set(range(12)) - set(LISTS[session]))
        assert TARGETS[session] in row


def test_a_session_that_leaves_nothing_to_rank_is_named(tmp_path: Path) -> None:
    lists = [*LISTS[:3], list(range(11)), *LISTS[4:]]
    settled = settings(world(tmp_path / "data", lists, [*TARGETS[:3], 11, 3, 4], titled=True))
    with pytest.raises(InputError, match="session 3 leaves 1 of the 12 items to recommend"):
        pipeline.run(settled, tmp_path / "home", Silent(), until="candidates")


def test_what_could_not_be_asked_is_refused_before_training(tmp_path: Path) -> None:
    untitled = settings(world(tmp_path / "untitled", LISTS, TARGETS, titled=False))
    titled = settings(world(tmp_path / "titled", LISTS, TARGETS, titled=True), budget=5)
    for settled, said in ((untitled, "none of the 12 items has a title"), (titled, "only 4")):
        with pytest.raises(InputError, match=said):
            pipeline.run(settled, tmp_path / "home", Silent())
    assert not (tmp_path / "home" / "pretrain").exists()
