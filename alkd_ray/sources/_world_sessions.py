"""The synthetic world's readers: what they read next, for all sessions at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alkd_ray.sources._world_items import WorldItems
from alkd_ray.types import FloatArray, IntArray

SHORTEST = 5
LONGEST = 20
_TRIES = 3  # draws of an intent before any item will do

# What a step does; the first four are the intents, in the order of Intents.
_CONTINUE, _GENRE, _CREATOR, _POPULAR, _ANY = range(5)


@dataclass(frozen=True, slots=True)
class Intents:
    """Weights of the sessions' intents, any positive numbers: see :func:`read`."""

    next_volume: float
    genre: float
    creator: float
    popular: float

    def draw(self, count: int, rng: np.random.Generator) -> IntArray:
        """``[count]`` int64 codes of intents."""
        weights = np.array([self.next_volume, self.genre, self.creator, self.popular])
        return rng.choice(len(weights), count, p=weights / weights.sum())


@dataclass(frozen=True, slots=True)
class Readings:
    """What was read.

    Attributes:
        items: ``[S, LONGEST]`` int64, left-aligned, no item twice in a row; -1 after the end.
        lengths: ``[S]`` int64, at least ``SHORTEST``.
    """

    items: IntArray
    lengths: IntArray


def read(
    world: WorldItems,
    count: int,
    rng: np.random.Generator,
    *,
    intents: Intents,
    focus: float,
    noise: float,
    mean_length: float,
) -> Readings:
    """Draws ``count`` sessions.

    A session begins at an item drawn by popularity and has one intent: the next volume of the
    series at hand, the same genre, the same creator, or what is popular. Each step follows it with
    probability ``focus``, else an intent drawn anew; with probability ``noise`` the step is any
    item instead, and the reader goes on from where they were. Where an intent has nothing new to
    offer (the series is at its end, the creator has no other book), the step stays in the genre.

    Args:
        world: the items, many more than ``LONGEST``.
        count: S.
        rng: draws everything.
        intents: weights of the intents.
        focus: probability that a step follows the session's intent.
        noise: probability that a step is any item.
        mean_length: mean number of items of a session, the target included.
    """
    steps = _Steps(world, rng)
    further = rng.geometric(1 / (mean_length - SHORTEST + 1), size=count) - 1
    lengths = np.minimum(SHORTEST + further, LONGEST)
    intent = intents.draw(count, rng)
    items = np.full((count, LONGEST), -1, np.int64)
    items[:, 0] = at = steps.popular(count)
    for step in range(1, LONGEST):
        rows = np.flatnonzero(lengths > step)
        is_focused = rng.random(len(rows)) < focus
        kind = np.where(is_focused, intent[rows], intents.draw(len(rows), rng))
        kind[rng.random(len(rows)) < noise] = _ANY
        items[rows, step], kind = steps.take(kind, at[rows], items[rows, :step])
        at[rows] = np.where(kind == _ANY, at[rows], items[rows, step])
    return Readings(items, lengths)


class _Steps:
    """Draws where readers go next."""

    def __init__(self, world: WorldItems, rng: np.random.Generator) -> None:
        self.world = world
        self.rng = rng
        self.by_genre = _Draw(world.genre, world.popularity)
        self.by_creator = _Draw(world.creator, world.popularity)
        self.everywhere = _Draw(np.zeros_like(world.genre), world.popularity)

    def popular(self, count: int) -> IntArray:
        """``[count]`` items, by popularity."""
        return self.everywhere(np.zeros(count, np.int64), self.rng)

    def take(self, kind: IntArray, at: IntArray, earlier: IntArray) -> tuple[IntArray, IntArray]:
        """One step of each of R readers, to an item that is new to the session.

        Args:
            kind: ``[R]`` what the step does.
            at: ``[R]`` the item that they are at.
            earlier: ``[R, n]`` what they have read.

        Returns:
            ``[R]`` the items, and ``[R]`` what the step did in the end.
        """
        found = np.empty(len(kind), np.int64)
        kind = kind.copy()
        waiting = np.arange(len(kind))
        tries = 0
        while len(waiting):
            if tries == 1:  # there is at most one next volume, and few books of a creator
                is_stuck = (kind[waiting] == _CONTINUE) | (kind[waiting] == _CREATOR)
                kind[waiting[is_stuck]] = _GENRE
            elif tries > _TRIES:
                kind[waiting] = _ANY
            proposal = self._propose(kind[waiting], at[waiting])
            read_before = (earlier[waiting] == proposal[:, None]).any(1)
            is_new = (proposal >= 0) & ~read_before
            found[waiting[is_new]] = proposal[is_new]
            waiting = waiting[~is_new]
            tries += 1
        return found, kind

    def _propose(self, kind: IntArray, at: IntArray) -> IntArray:
        proposal = self.rng.integers(len(self.world.genre), size=len(at))
        rows = [np.flatnonzero(kind == code) for code in (_CONTINUE, _GENRE, _CREATOR, _POPULAR)]
        proposal[rows[0]] = self.world.next_volume[at[rows[0]]]
        proposal[rows[1]] = self.by_genre(self.world.genre[at[rows[1]]], self.rng)
        proposal[rows[2]] = self.by_creator(self.world.creator[at[rows[2]]], self.rng)
        proposal[rows[3]] = self.popular(len(rows[3]))
        return proposal


class _Draw:
    """Draws items of a group by popularity, for many groups at once."""

    def __init__(self, group: IntArray, popularity: FloatArray) -> None:
        self.order = np.argsort(group, kind="stable")
        self.below: FloatArray = np.concatenate([[0.0], np.cumsum(popularity[self.order])])
        sizes = np.bincount(group)
        self.end = np.cumsum(sizes)
        self.start = self.end - sizes

    def __call__(self, groups: IntArray, rng: np.random.Generator) -> IntArray:
        low, high = self.below[self.start[groups]], self.below[self.end[groups]]
        point = low + rng.random(len(groups)) * (high - low)
        place = np.searchsorted(self.below, point, side="right") - 1
        return self.order[np.clip(place, self.start[groups], self.end[groups] - 1)]
