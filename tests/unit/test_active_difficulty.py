"""Difficulty equals a plain loop over the sessions, and does not depend on the other rows."""

import math

import numpy as np
import pytest

from alkd_ray.active import difficulty
from alkd_ray.errors import InputError

SESSIONS, ITEMS, WINDOW = 1300, 90, 10  # more rows than one block


def world(dim, seed=0):
    rng = np.random.default_rng(seed)
    encoded = rng.normal(size=(SESSIONS, dim)).astype(np.float32)
    table = rng.normal(size=(ITEMS, dim)).astype(np.float32)
    lengths = rng.integers(1, WINDOW + 1, SESSIONS)
    mask = np.arange(WINDOW)[None, :] >= WINDOW - lengths[:, None]
    return encoded, table, rng.integers(0, ITEMS, (SESSIONS, WINDOW)), mask


@pytest.mark.parametrize("dim", [1, 10, 100])
def test_consistency_equals_a_loop(dim):
    encoded, table, items, mask = world(dim)
    expected = []
    for row in range(SESSIONS):
        sigmoids = []
        for column in range(WINDOW):
            if mask[row, column]:
                vector = table[items[row, column]]
                logit = sum(float(a) * float(b) for a, b in zip(encoded[row], vector, strict=True))
                sigmoids.append(1 / (1 + math.exp(-logit)))
        expected.append(-sum(sigmoids) / len(sigmoids))
    found = difficulty.consistency(encoded, table, items, mask)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_consistency_of_a_row_is_its_own():
    encoded, table, items, mask = world(10)
    whole = difficulty.consistency(encoded, table, items, mask)
    some = np.random.default_rng(1).permutation(SESSIONS)[:700]
    part = difficulty.consistency(encoded[some], table, items[some], mask[some])
    np.testing.assert_array_equal(part, whole[some])
    junk = np.where(mask, items, ITEMS + 5)  # a masked position is never looked up
    np.testing.assert_array_equal(difficulty.consistency(encoded, table, junk, mask), whole)


def test_consistency_of_extreme_logits():
    encoded = np.array([[300.0], [-300.0], [0.0]], np.float32)
    items, mask = np.zeros((3, 1), np.int64), np.ones((3, 1), bool)
    found = difficulty.consistency(encoded, np.full((1, 1), 10, np.float32), items, mask)
    np.testing.assert_allclose(found, [-1, 0, -0.5], atol=1e-12)


def test_a_session_without_items_is_an_error():
    encoded, table, items, mask = world(4)
    mask[7] = False
    with pytest.raises(InputError, match="first in row 7"):
        difficulty.consistency(encoded, table, items, mask)


def loop_of_overlaps(teacher, student, width):
    expected = []
    for mine, other in zip(teacher, student, strict=True):
        shares = []
        for k in (1, 5, 10, 20):
            common = set(mine[:k].tolist()) & set(other[:k].tolist()) - {-1}
            shares.append(len(common) / min(k, width))
        expected.append(1 - sum(shares) / 4)
    return expected


@pytest.mark.parametrize("width", [20, 13, 3])
def test_overlap_equals_sets(width):
    rng = np.random.default_rng(2)
    teacher = np.argsort(rng.random((SESSIONS, 40)), axis=1)[:, :width]
    student = np.argsort(rng.random((SESSIONS, 40)), axis=1)[:, :width]
    student[::7] = teacher[::7]
    teacher[5, 2:] = student[6, 2:] = student[5, 1:] = -1
    found = difficulty.overlap(teacher, student)
    np.testing.assert_allclose(found, loop_of_overlaps(teacher, student, width), atol=1e-9)
    assert (found[::7] == 0).all()


def test_overlap_is_hard_where_nothing_is_shared():
    teacher, student = np.arange(20)[None, :], np.arange(20, 40)[None, :]
    assert difficulty.overlap(teacher, student).tolist() == [1]
    # The first item alone is shared: 1/1, 1/5, 1/10 and 1/20 of the four lists.
    student[0, 0] = 0
    expected = 1 - (1 + 0.2 + 0.1 + 0.05) / 4
    np.testing.assert_allclose(difficulty.overlap(teacher, student), [expected])


def test_overlap_has_few_distinct_values():
    rng = np.random.default_rng(3)
    teacher = np.argsort(rng.random((SESSIONS, 60)), axis=1)[:, :20]
    student = np.argsort(rng.random((SESSIONS, 60)), axis=1)[:, :20]
    found = difficulty.overlap(teacher, student)
    in_hundredths = np.round(found * 80)  # every value is a multiple of 1/80
    np.testing.assert_allclose(found * 80, in_hundredths, atol=1e-9)
    assert len(np.unique(found)) == len(np.unique(in_hundredths))
