"""What holds of every game: probabilities, order of guarantees, distinct picks."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact, log_probabilities, paper
from alkd_ray.active.sampling import pick_ranks

shares = st.one_of(st.integers(0, 20).map(float), st.floats(0, 10, allow_subnormal=False))
parts = st.floats(0, 1, allow_subnormal=False)


@st.composite
def games(draw):
    ratio = draw(st.tuples(shares, shares, shares).filter(lambda found: sum(found) > 1e-3))
    g_si, g_in = draw(st.tuples(parts, parts).filter(lambda found: sum(found) > 1e-3))
    return Gains(draw(st.floats(0, 50, allow_subnormal=False)), ratio, g_si, g_in)


@given(gains=games(), population=st.integers(1, 3000), reference=st.booleans())
@settings(max_examples=100, deadline=None)
def test_probabilities_sum_to_one(gains, population, reference):
    ranks = np.arange(1, population + 1)
    for policy in (paper(gains, population, reference_support=reference), exact(gains, population)):
        p = np.exp(log_probabilities(gains, policy, ranks))
        assert math.isclose(p.sum(), 1, rel_tol=1e-9)
        assert policy.population == population
        assert 1 <= policy.support <= population


@given(gains=games(), population=st.integers(1, 10**9))
@settings(max_examples=100, deadline=None)
def test_exact_guarantees_at_least_what_paper_does(gains, population):
    best, other = exact(gains, population), paper(gains, population)
    assert best.log_min_gain >= other.log_min_gain - 1e-9 * abs(other.log_min_gain)
    assert best.min_gain >= other.min_gain - 1e-9 * abs(other.min_gain)
    truncated = paper(gains, population, reference_support=True)
    assert other.min_gain >= truncated.min_gain - 1e-9 * abs(truncated.min_gain)


@given(
    gains=games(),
    population=st.integers(1, 10**9),
    budget=st.integers(1, 25),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_picks_are_distinct_ranks(gains, population, budget, seed):
    budget = min(budget, population)
    for rule in (paper, exact):
        found = pick_ranks(gains, rule, population, budget, np.random.default_rng(seed))
        assert len(set(found.tolist())) == budget
        assert 1 <= found.min() <= found.max() <= population
