"""The synthetic world: the same from its seed, of a known shape, and readable from its titles."""

from __future__ import annotations

import itertools
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray import registry
from alkd_ray import sessions as windows_of
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers._title_reader import rank, read_title
from alkd_ray.sources import _world_titles
from alkd_ray.sources._world_items import WorldItems
from alkd_ray.types import Dataset, IntArray


@cache
def loaded(size: str | int, seed: int = 1) -> tuple[Dataset, WorldItems]:
    source = registry.build("sources", "synthetic", {"size": size, "seed": seed})
    return source.load(), source.world()


def training_counts(data: Dataset) -> IntArray:
    train = windows_of.of_split(data.sessions, "train")
    read = np.concatenate([train.flat_items, train.targets])
    return np.bincount(read, minlength=len(data.catalogue))


def check_is_valid(data: Dataset) -> None:
    sessions, num_items = data.sessions, len(data.catalogue)
    assert sessions.lengths.min() >= 4
    assert len(set(sessions.ids.tolist())) == len(sessions)
    assert sessions.flat_items.min() >= 0
    assert sessions.flat_items.max() < num_items
    for row in range(len(sessions)):
        read = [*sessions.items_of(row).tolist(), int(sessions.targets[row])]
        assert len(set(read)) == len(read)
    assert len(set(data.catalogue.titles.tolist())) == num_items
    shares = np.bincount(sessions.split, minlength=3) / len(sessions)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=1.5 / len(sessions))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_sizes_are_valid(size: str) -> None:
    data, _ = loaded(size)
    check_is_valid(data)
    assert (len(data.sessions), len(data.catalogue)) == {
        "tiny": (1_000, 400),
        "small": (7_500, 4_500),
    }[size]
    assert 6 <= data.sessions.lengths.mean() <= 8


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(20, 400),
    seed=st.integers(0, 10**9),
    items=st.none() | st.integers(60, 300),
    shape=st.fixed_dictionaries(
        {},
        optional={
            "single_share": st.floats(0, 1),
            "longest_series": st.integers(2, 24),
            "mean_length": st.floats(5, 20),
            "noise": st.floats(0, 1),
            "focus": st.floats(0, 1),
            "creator_weight": st.floats(0, 10),
            "popularity_exponent": st.floats(0, 3),
        },
    ),
)
def test_every_shape_is_valid(size: int, seed: int, items: int | None, shape: dict) -> None:
    given = {"size": size, "seed": seed, "items": items, **shape}
    check_is_valid(registry.build("sources", "synthetic", given).load())


def test_a_seed_means_one_world() -> None:
    first, _ = loaded("tiny")
    again = registry.build("sources", "synthetic", {"size": "tiny", "seed": 1}).load()
    other, _ = loaded("tiny", seed=2)
    assert again.sessions.fingerprint == first.sessions.fingerprint
    assert again.catalogue.titles.tolist() == first.catalogue.titles.tolist()
    assert other.sessions.fingerprint != first.sessions.fingerprint
    assert set(other.catalogue.titles) != set(first.catalogue.titles)


def test_drawing_in_chunks_gives_as_many_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alkd_ray.sources.synthetic._CHUNK", 300)
    data = registry.build("sources", "synthetic", {"size": 1_000}).load()
    check_is_valid(data)
    assert len(data.sessions) == 1_000
    # The chunks differ from each other.
    firsts = data.sessions.flat_items[data.sessions.offsets[:-1]]
    assert not np.array_equal(firsts[:300], firsts[300:600])


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_titles_read_back_as_what_they_were_written_from(size: str) -> None:
    data, world = loaded(size)
    read = [read_title(title) for title in data.catalogue.titles]
    series_of_work: dict[int, set[str]] = {}
    volumes_of_work = np.bincount(world.work)
    omitted = 0
    for item, title in enumerate(read):
        series_of_work.setdefault(int(world.work[item]), set()).add(title.series)
        is_series = volumes_of_work[world.work[item]] > 1
        assert title.volume == (world.volume[item] if is_series else None), title
        assert title.genres == {_world_titles.GENRES[world.genre[item]]}
        omitted += not title.creators
    assert all(len(names) == 1 for names in series_of_work.values())
    assert len(set.union(*series_of_work.values())) == len(series_of_work)
    creators = {}
    for item, title in enumerate(read):
        if title.creators:
            creators.setdefault(int(world.creator[item]), set()).update(title.creators)
    assert all(len(names) == 1 for names in creators.values())
    assert 0.1 < omitted / len(read) < 0.3


def test_next_volumes_are_next_volumes() -> None:
    _, world = loaded("small")
    items = np.flatnonzero(world.next_volume >= 0)
    following = world.next_volume[items]
    assert np.array_equal(world.work[following], world.work[items])
    assert np.array_equal(world.volume[following], world.volume[items] + 1)
    last = np.flatnonzero(world.next_volume < 0)
    assert len(last) == len(np.unique(world.work))


def test_item_numbers_say_nothing() -> None:
    _, world = loaded("small")
    numbers = np.arange(len(world.work))
    for truth in (world.work, world.volume, world.popularity, world.genre):
        assert abs(np.corrcoef(numbers, truth)[0, 1]) < 0.06  # 3.5 standard errors


def test_popularity_has_a_heavy_tail_and_many_items_are_rare() -> None:
    data, _ = loaded("small")
    counts = np.sort(training_counts(data))[::-1]
    median = counts[len(counts) // 2]
    assert counts[0] > 10 * median
    assert counts[: len(counts) // 10].sum() > 0.33 * counts.sum()
    assert counts.var() > 7 * counts.mean()  # equal popularity: Poisson, 1
    assert (counts <= 5).mean() > 0.45
    assert (counts == 0).any()


def test_the_successor_of_a_rare_item_is_known_from_titles_and_not_from_counts() -> None:
    """Test sessions that go on with a volume which never followed the last one in training."""
    data, _ = loaded("small")
    counts = training_counts(data)
    train, test = (windows_of.of_split(data.sessions, split) for split in ("train", "test"))
    seen = set()
    for row in range(len(train)):
        read = [*train.items_of(row).tolist(), int(train.targets[row])]
        seen.update(itertools.pairwise(read))
    titles = data.catalogue.titles
    unseen, first = 0, 0
    rng = np.random.default_rng(1)
    for row in range(len(test)):
        history, target = test.items_of(row), int(test.targets[row])
        before, after = read_title(titles[history[-1]]), read_title(titles[target])
        is_next = before.series == after.series and after.volume == (before.volume or 0) + 1
        if not is_next or (int(history[-1]), target) in seen or counts[target] > 5:
            continue
        unseen += 1
        others = rng.choice(np.setdiff1d(np.arange(len(titles)), [*history, target]), 49, False)
        candidates = [*titles[others], titles[target]]
        order = rank(list(titles[history]), candidates, noise=0.5, seed=1)
        first += 49 in order[:3]
    assert unseen >= 20
    assert first >= 0.9 * unseen


def test_sessions_follow_their_intents() -> None:
    def share_of_next_volumes(**weights: float) -> float:
        source = registry.build("sources", "synthetic", {"size": 2_000, "focus": 1.0, **weights})
        sessions, world = source.load().sessions, source.world()
        last = sessions.flat_items[sessions.offsets[1:] - 1]
        return float((world.next_volume[last] == sessions.targets).mean())

    only = {"genre_weight": 0.0, "creator_weight": 0.0, "popular_weight": 1e-9}
    assert share_of_next_volumes(**only) > 0.5
    assert share_of_next_volumes(continue_weight=0.0, **{**only, "popular_weight": 1.0}) < 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "huge"}, "size"),
        ({"size": 3}, "size"),
        ({"items": 5}, "items"),
        ({"longest_series": 99}, "longest_series"),
        ({"mean_length": 2}, "mean_length"),
        ({"colour": 1}, "known"),
    ],
)
def test_a_bad_option_is_named(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        registry.build("sources", "synthetic", options)


def test_names_do_not_run_out() -> None:
    rng = np.random.default_rng(1)
    works = _world_titles.work_names(100_000, rng)
    creators = _world_titles.creator_names(50_000, rng)
    assert len(set(works)) == 100_000
    assert len(set(creators)) == 50_000
