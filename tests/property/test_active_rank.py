"""Ranks: a permutation that follows the difficulty and knows nothing of the order of the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray.active import difficulty
from alkd_ray.errors import InputError

directions = st.sampled_from(["hardest_first", "easiest_first"])
tables = st.dictionaries(
    st.integers(0, 2**62), st.sampled_from([-0.9, -0.5, -0.5 + 1e-12, 0.0]), min_size=1, max_size=60
)


def ranked(ids, values, direction, seed=1):
    return difficulty.rank(
        np.array(ids, np.int64),
        np.array(values, np.float64),
        direction=direction,
        seed=seed,
        kind="consistency",
    )


@given(table=tables, direction=directions, seed=st.integers(0, 99), data=st.data())
@settings(max_examples=150, deadline=None)
def test_ranks(table, direction, seed, data):
    ids = list(table)
    found = ranked(ids, list(table.values()), direction, seed)
    by_rank = np.argsort(found.ranks)
    assert found.ranks[by_rank].tolist() == list(range(1, len(ids) + 1))
    along = found.difficulty[by_rank]
    if direction == "hardest_first":
        along = along[::-1]
    assert (np.diff(along) >= 0).all()

    shuffled = data.draw(st.permutations(ids))
    other = ranked(shuffled, [table[i] for i in shuffled], direction, seed)
    assert dict(zip(ids, found.ranks.tolist(), strict=True)) == dict(
        zip(shuffled, other.ranks.tolist(), strict=True)
    )


def test_ties_are_broken_by_seed_and_by_chance():
    ids = np.arange(4000)
    first = ranked(ids, np.zeros(4000), "hardest_first", seed=1).ranks
    second = ranked(ids, np.zeros(4000), "hardest_first", seed=2).ranks
    # Neither in the order of the rows nor alike: correlations of random orders are below 5 sd.
    for left, right in ((first, ids), (second, ids), (first, second)):
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(4000)


def test_what_cannot_be_ranked():
    with pytest.raises(InputError, match="2 of 3 session ids are distinct"):
        ranked([4, 5, 4], [0.1, 0.2, 0.3], "hardest_first")
    with pytest.raises(InputError, match="session 5"):
        ranked([4, 5], [0.1, np.nan], "hardest_first")
