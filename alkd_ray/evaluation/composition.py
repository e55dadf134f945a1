"""What the sessions that were paid for turned out to be: effective, similar or incorrect.

The paper ("Effects of instances in distillation") names three effects: the LLM teacher is right
where conventional recommenders hardly are (effective), the LLM and the student predict alike
(similar), the LLM is wrong (incorrect). It gives no formula. Here they are told apart by hits, a
hit being the session's true next item among the first k:

    effective   the LLM hits, the student before distillation does not
    similar     both hit
    incorrect   the LLM misses, whatever the student does

Every answered session has exactly one of them. That both may predict alike and wrongly is left to
``incorrect``, as it misleads all the same; how alike the lists are is the mean overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alkd_ray.types import IntArray

CUTOFF = 10
EFFECTS = ("effective", "similar", "incorrect")
EFFECTIVE, SIMILAR, INCORRECT = range(3)
# The paper's bands of weight (alpha) over positions in the LLM's ranking, and what lies beyond.
_BANDS = ((1, 5), (6, 15), (16, 25))
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Composition:
    """Counts of the selected sessions by effect.

    Attributes:
        cutoff: k of a hit.
        effective: the LLM hits, the student does not.
        similar: both hit.
        incorrect: the LLM misses.
        unanswered: selected sessions without a ranking.
        target_positions: band of positions in the LLM's ranking -> answered sessions whose true
            next item stands there; ``beyond 25`` and ``not ranked`` for the rest.
        mean_overlap: share of the student's first k that is among the LLM's first k as well.
    """

    cutoff: int
    effective: int
    similar: int
    incorrect: int
    unanswered: int
    target_positions: dict[str, int]
    mean_overlap: float

    @property
    def answered(self) -> int:
        """Selected sessions with a ranking."""
        return self.effective + self.similar + self.incorrect


def compose(
    rankings: Sequence[IntArray],
    student_top: IntArray,
    targets: IntArray,
    unanswered: int,
    cutoff: int = CUTOFF,
) -> Composition:
    """Tells the effects of R answered sessions apart.

    Args:
        rankings: R rankings of the LLM, best first.
        student_top: ``[R, >= cutoff]`` the student's best items, before distillation.
        targets: ``[R]`` the true next items.
        unanswered: selected sessions without a ranking.
        cutoff: k of a hit.
    """
    flat = _flat(rankings)
    places = _target_places(flat, targets)
    effects = _effects(places, student_top, targets, cutoff)
    row, place, items = flat
    first = place <= cutoff
    student_top = student_top[:, :cutoff]
    shared = (student_top[row[first]] == items[first, None]).any(1).sum()
    return Composition(
        cutoff=cutoff,
        effective=int((effects == EFFECTIVE).sum()),
        similar=int((effects == SIMILAR).sum()),
        incorrect=int((effects == INCORRECT).sum()),
        unanswered=unanswered,
        target_positions=_by_band(places[places < _NEVER], len(rankings)),
        mean_overlap=float(shared / max(student_top.size, 1)),
    )


def effects_of(
    rankings: Sequence[IntArray], student_top: IntArray, targets: IntArray, cutoff: int = CUTOFF
) -> IntArray:
    """``[R]`` int64, the effect of each answered session as an index into :data:`EFFECTS`.

    For the arguments see :func:`compose`.
    """
    return _effects(_target_places(_flat(rankings), targets), student_top, targets, cutoff)


def _effects(places: IntArray, student_top: IntArray, targets: IntArray, cutoff: int) -> IntArray:
    """See :func:`effects_of`; ``places`` are those of :func:`_target_places`."""
    student_hits = (student_top[:, :cutoff] == targets[:, None]).any(1)
    return np.where(places <= cutoff, np.where(student_hits, SIMILAR, EFFECTIVE), INCORRECT)


def _target_places(flat: tuple[IntArray, IntArray, IntArray], targets: IntArray) -> IntArray:
    """``[R]``, the place of each target in its ranking, from 1; ``_NEVER`` where absent."""
    row, place, items = flat
    is_target = items == targets[row]
    found = np.full(len(targets), _NEVER)
    np.minimum.at(found, row[is_target], place[is_target])
    return found


def _flat(rankings: Sequence[IntArray]) -> tuple[IntArray, IntArray, IntArray]:
    """Row, place from 1, and item of every entry of the rankings, in order."""
    lengths = np.array([len(ranking) for ranking in rankings], np.int64)
    row = np.repeat(np.arange(len(rankings)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    return row, place, np.concatenate([np.zeros(0, np.int64), *rankings])


def _by_band(places: IntArray, answered: int) -> dict[str, int]:
    bands = {
        f"{low}\N{EN DASH}{high}": int(((places >= low) & (places <= high)).sum())
        for low, high in _BANDS
    }
    beyond = int((places > _BANDS[-1][1]).sum())
    bands |= {f"beyond {_BANDS[-1][1]}": beyond} if beyond else {}
    return {**bands, "not ranked": answered - len(places)}
