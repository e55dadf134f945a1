"""The embedded default: a synthetic world of books and their readers, made from a seed."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from alkd_ray import sessions as windows_of
from alkd_ray.registry import PluginConfig
from alkd_ray.seeds import numpy_stream
from alkd_ray.sources._world_items import WorldItems, make_items
from alkd_ray.sources._world_sessions import LONGEST, SHORTEST, Intents, read
from alkd_ray.sources._world_titles import MOST_VOLUMES
from alkd_ray.types import SPLITS, Dataset, SessionSet

_SIZES = {"tiny": (1_000, 400), "small": (7_500, 4_500)}  # sessions, items
_MOST_ITEMS = 100_000
_SHARES = (0.6, 0.2, 0.2)
_CHUNK = 200_000  # sessions drawn at a time


class Synthetic:
    """A synthetic world of books: titles say more than the interactions of rare items show.

    Books belong to works (series of volumes, or single books), works to creators, creators to a
    genre; the title says all of it, in the ways catalogues do. Sessions begin at a popular book
    (Zipf-Mandelbrot over works, falling from volume to volume) and then follow one intent: the
    next volume of the series at hand, the same genre, the same creator, or what is popular; with
    some steps of another intent and some of noise. The counts of ``small`` are shaped like those
    of HetRec2011-ML: over half of the books are read at most 5 times in training, a few never,
    and the ten most popular ones are about 1% of the targets.

    Why a reader of titles is of use here, by construction and without any hidden knowledge: most
    books are read a few times only. The paper's training sees each session's last book alone as a
    target, about one target a book, so that a small student has seen few of the pairs that belong
    together. Titles tell them apart at once: which of the conventional teacher's candidates
    continues the series, which shares the creator. Each ranked session gives the student 25 such
    pairs in place of one. It is the reading that helps: the same candidates in the conventional
    teacher's own order gain nothing, and shuffled they do harm. Co-occurrence counts
    still beat both recommenders here, as they do on the published data; the report shows that.

    Nothing but titles and sessions leaves the generator; item numbers are a random permutation.
    """

    class Config(PluginConfig):
        """Options; those below ``seed`` are the world's shape."""

        size: Literal["tiny", "small"] | Annotated[int, Field(ge=20)] = Field(
            "small", description="tiny (1,000 sessions), small (7,500), or a number of sessions"
        )
        seed: int = Field(1, ge=0, description="of the whole world, its split included")
        items: int | None = Field(
            None,
            ge=60,
            le=_MOST_ITEMS,
            description="books; none = 400 (tiny), 4,500 (small), or by the number S of sessions: "
            "0.6 S, at most 52 sqrt(S)",
        )
        single_share: float = Field(0.3, ge=0, le=1, description="works that are single books")
        longest_series: int = Field(
            12, ge=2, le=MOST_VOLUMES, description="most volumes; series have 2 to so many"
        )
        works_per_creator: float = Field(5.0, ge=2, description="mean")
        popularity_exponent: float = Field(
            1.5,
            ge=0,
            description="the work of popularity rank r, of W, has the weight "
            "(r + popularity_offset W) ** -this",
        )
        popularity_offset: float = Field(0.1, ge=0, description="the larger, the flatter the head")
        volume_exponent: float = Field(
            0.6, ge=0, description="its volume v has the share v ** -this of that"
        )
        mean_length: float = Field(
            8.0, ge=SHORTEST, le=LONGEST, description="books of a session, with the target"
        )
        continue_weight: float = Field(0.45, ge=0, description="sessions that follow series")
        genre_weight: float = Field(0.25, ge=0, description="sessions that stay in a genre")
        creator_weight: float = Field(0.2, ge=0, description="sessions that follow a creator")
        popular_weight: float = Field(0.1, gt=0, description="sessions of what is popular")
        focus: float = Field(0.7, ge=0, le=1, description="steps that follow the session's intent")
        noise: float = Field(0.05, ge=0, le=1, description="steps to any book whatever")

    def __init__(
        self,
        *,
        size: str | int,
        seed: int,
        items: int | None,
        continue_weight: float,
        genre_weight: float,
        creator_weight: float,
        popular_weight: float,
        focus: float,
        noise: float,
        mean_length: float,
        **catalogue: Any,
    ) -> None:
        self.size = size
        self.seed = seed
        self.sessions, by_rule = _sizes(size)
        self.items = items or by_rule
        self.intents = Intents(continue_weight, genre_weight, creator_weight, popular_weight)
        self.focus = focus
        self.noise = noise
        self.mean_length = mean_length
        self.catalogue = catalogue

    def load(self) -> Dataset:
        """See :class:`alkd_ray.sources.Source`. Sessions are drawn in chunks; 1M take seconds."""
        world = self.world()
        flat, lengths, targets = [], [], []
        for start in range(0, self.sessions, _CHUNK):
            count = min(_CHUNK, self.sessions - start)
            rng = numpy_stream(self.seed, "world", "sessions", start)
            readings = read(
                world,
                count,
                rng,
                intents=self.intents,
                focus=self.focus,
                noise=self.noise,
                mean_length=self.mean_length,
            )
            inputs = readings.lengths - 1
            flat.append(readings.items[np.arange(LONGEST) < inputs[:, None]])
            targets.append(readings.items[np.arange(count), inputs])
            lengths.append(inputs)
        offsets = np.zeros(self.sessions + 1, np.int64)
        np.cumsum(np.concatenate(lengths), out=offsets[1:])
        names = windows_of.random_split(
            self.sessions, numpy_stream(self.seed, "world", "split"), _SHARES
        )
        split = np.zeros(self.sessions, np.int8)
        for code, name in enumerate(SPLITS):
            split[names == name] = code
        return Dataset(
            name="synthetic-books",
            catalogue=world.catalogue,
            sessions=windows_of.with_fingerprint(
                SessionSet(
                    ids=np.arange(self.sessions),
                    flat_items=np.concatenate(flat),
                    offsets=offsets,
                    targets=np.concatenate(targets),
                    split=split,
                )
            ),
            split_rule="random, 60/20/20 for training, validation and test, drawn with the seed",
            source=f"synthetic world of size {self.size}, seed {self.seed}",
        )

    def world(self) -> WorldItems:
        """The catalogue with what is true of its items, for tests and for looking inside."""
        return make_items(self.items, self.seed, **self.catalogue)


def _sizes(size: str | int) -> tuple[int, int]:
    """Number of sessions and of items."""
    if isinstance(size, str):
        return _SIZES[size]
    items = round(min(0.6 * size, 52 * math.sqrt(size)))
    return size, min(max(items, 60), _MOST_ITEMS)
