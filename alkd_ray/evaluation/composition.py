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
# The paper's bands of weight (alpha) over positions in the LLM's ranking, and what lies beyond.
_BANDS = ((1, 5), (6, 15), (16, 25))


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
    student_top = student_top[:, :cutoff]
    lengths = np.array([len(ranking) for ranking in rankings], np.int64)
    row = np.repeat(np.arange(len(rankings)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    items = np.concatenate([np.zeros(0, np.int64), *rankings])
    is_target = items == targets[row]
    never = np.iinfo(np.int64).max
    target_place = np.full(len(rankings), never)
    np.minimum.at(target_place, row[is_target], place[is_target])
    llm_hits = target_place <= cutoff
    student_hits = (student_top == targets[:, None]).any(1)
    first = place <= cutoff
    shared = (student_top[row[first]] == items[first, None]).any(1).sum()
    return Composition(
        cutoff=cutoff,
        effective=int((llm_hits & ~student_hits).sum()),
        similar=int((llm_hits & student_hits).sum()),
        incorrect=int((~llm_hits).sum()),
        unanswered=unanswered,
        target_positions=_by_band(target_place[target_place < never], len(rankings)),
        mean_overlap=float(shared / max(student_top.size, 1)),
    )


def _by_band(places: IntArray, answered: int) -> dict[str, int]:
    bands = {
        f"{low}\N{EN DASH}{high}": int(((places >= low) & (places <= high)).sum())
        for low, high in _BANDS
    }
    beyond = int((places > _BANDS[-1][1]).sum())
    bands |= {f"beyond {_BANDS[-1][1]}": beyond} if beyond else {}
    return {**bands, "not ranked": answered - len(places)}
