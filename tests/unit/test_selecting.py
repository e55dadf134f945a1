"""Candidates' order: the same whatever selected a session, and no trace of the teacher's."""

from __future__ import annotations

import numpy as np
from scipy import stats

from alkd_ray.selecting import _shuffled

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
