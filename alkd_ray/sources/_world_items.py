"""The synthetic world's catalogue: works, volumes, genres, creators, and how popular each is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alkd_ray.seeds import numpy_stream
from alkd_ray.sources import _world_titles
from alkd_ray.types import Catalogue, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class WorldItems:
    """What is true of the items. Only the titles of ``catalogue`` leave the generator.

    Attributes:
        catalogue: the N items with their titles.
        work: ``[N]`` int64, the series or single book that an item belongs to.
        volume: ``[N]`` int64, its volume, counted from 1.
        genre: ``[N]`` int64, index into the genres.
        creator: ``[N]`` int64.
        next_volume: ``[N]`` int64, the item that follows in its series; -1 for the last one.
        popularity: ``[N]`` float64, sums to 1.
    """

    catalogue: Catalogue
    work: IntArray
    volume: IntArray
    genre: IntArray
    creator: IntArray
    next_volume: IntArray
    popularity: FloatArray


def make_items(
    count: int,
    seed: int,
    *,
    single_share: float,
    longest_series: int,
    popularity_exponent: float,
    popularity_offset: float,
    volume_exponent: float,
    works_per_creator: float,
) -> WorldItems:
    """Draws a catalogue.

    The popularity of the work of rank r, of W works, is ``(r + popularity_offset * W) **
    -popularity_exponent`` (Zipf-Mandelbrot), and its volume v has the share ``v **
    -volume_exponent`` of that: later volumes are read by those who have read the earlier ones.
    Item numbers are a random permutation: they say nothing.

    Args:
        count: N.
        seed: the world's seed.
        single_share: share of works that are single books.
        longest_series: most volumes of a series.
        popularity_exponent: how fast popularity falls with rank; 0 = all works alike.
        popularity_offset: how flat the head is; 0 = Zipf's law.
        volume_exponent: how fast popularity falls from volume to volume.
        works_per_creator: mean number of works of a creator.
    """
    rng = numpy_stream(seed, "world", "items")
    volumes_of_work = _volumes_of_works(count, single_share, longest_series, rng)
    works = len(volumes_of_work)
    genre_weights = np.arange(1, len(_world_titles.GENRES) + 1) ** -0.5
    creators = max(1, round(works / works_per_creator))
    genre_of_creator = rng.choice(
        len(_world_titles.GENRES), creators, p=genre_weights / genre_weights.sum()
    )
    creator_of_work = rng.integers(creators, size=works)
    work = np.repeat(np.arange(works), volumes_of_work)
    first = np.cumsum(volumes_of_work) - volumes_of_work
    volume = np.arange(count) - first[work] + 1
    rank = 1.0 + rng.permutation(works)
    popularity = (rank + popularity_offset * works) ** -popularity_exponent
    popularity = popularity[work] * volume.astype(np.float64) ** -volume_exponent
    follows = np.where(volume < volumes_of_work[work], np.arange(count) + 1, -1)

    place = rng.permutation(count)  # the number that each item gets
    creator = creator_of_work[work]
    names = _world_titles.work_names(works, rng)
    creator_names = _world_titles.creator_names(creators, rng)
    titles = _world_titles.titles(
        [names[w] for w in work],
        [creator_names[c] for c in creator],
        genre_of_creator[creator],
        volume,
        volumes_of_work[work],
        work,
        rng,
    )
    next_volume = np.where(follows >= 0, place[follows], -1)
    source_ids = np.array([f"book-{number}" for number in range(count)], dtype=object)
    return WorldItems(
        Catalogue(source_ids, _placed(titles, place)),
        _placed(work, place),
        _placed(volume, place),
        _placed(genre_of_creator[creator], place),
        _placed(creator, place),
        _placed(next_volume, place),
        _placed(popularity / popularity.sum(), place),
    )


def _volumes_of_works(
    count: int, single_share: float, longest: int, rng: np.random.Generator
) -> IntArray:
    """Volumes of each work, summing to ``count``; the last work may be cut short."""
    drawn = np.where(
        rng.random(count) < single_share, 1, rng.integers(2, longest + 1, size=count)
    ).astype(np.int64)
    total = np.cumsum(drawn)
    works = int(np.searchsorted(total, count)) + 1
    volumes = drawn[:works]
    volumes[-1] -= total[works - 1] - count
    return volumes


def _placed(values: np.ndarray, place: IntArray) -> np.ndarray:
    moved = np.empty_like(values)
    moved[place] = values
    return moved
