"""Effects of the selected sessions against a loop over them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray.evaluation.composition import compose

RANKING = st.lists(st.integers(0, 39), max_size=30, unique=True)
ROW = st.tuples(
    RANKING, st.lists(st.integers(0, 39), min_size=12, max_size=12, unique=True), st.integers(0, 39)
)


@settings(deadline=None)
@given(st.lists(ROW, max_size=12), st.integers(0, 5), st.integers(1, 12))
def test_effects_are_those_of_a_loop(rows: list, unanswered: int, cutoff: int) -> None:
    wanted = {"effective": 0, "similar": 0, "incorrect": 0}
    bands = {"1–5": 0, "6–15": 0, "16–25": 0, "beyond 25": 0, "not ranked": 0}
    shared = 0
    for ranking, student, target in rows:
        if target not in ranking[:cutoff]:
            wanted["incorrect"] += 1
        elif target in student[:cutoff]:
            wanted["similar"] += 1
        else:
            wanted["effective"] += 1
        shared += len(set(ranking[:cutoff]) & set(student[:cutoff]))
        place = ranking.index(target) + 1 if target in ranking else 0
        limits = ((25, "beyond 25"), (15, "16–25"), (5, "6–15"), (0, "1–5"))
        bands[next((band for low, band in limits if place > low), "not ranked")] += 1
    found = compose(
        [np.array(ranking, np.int64) for ranking, _, _ in rows],
        np.array([student for _, student, _ in rows], np.int64).reshape(-1, 12),
        np.array([target for _, _, target in rows], np.int64),
        unanswered,
        cutoff,
    )
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert found.target_positions == {
        name: number for name, number in bands.items() if number or name != "beyond 25"
    }
    assert found.answered == len(rows)
    assert found.unanswered == unanswered
    assert found.mean_overlap == (shared / (len(rows) * cutoff) if rows else 0)


def test_a_worked_example() -> None:
    rankings = [np.array([4, 7]), np.array([7, 4]), np.array([5]), np.zeros(0, np.int64)]
    student = np.array([[4, 1], [1, 2], [5, 4], [9, 8]])
    found = compose(rankings, student, np.array([4, 4, 6, 9]), unanswered=1, cutoff=2)
    assert (found.effective, found.similar, found.incorrect) == (1, 1, 2)
    assert found.mean_overlap == 2 / 8
    assert found.target_positions == {"1–5": 2, "6–15": 0, "16–25": 0, "not ranked": 2}
