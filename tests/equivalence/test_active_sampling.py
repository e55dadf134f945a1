"""Picks in rank space against the policy solved anew, as arrays, on the sessions that are left."""

import functools

import numpy as np
import pytest
from scipy import stats

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact, first_rank, log_probabilities, paper
from alkd_ray.active.sampling import pick_ranks, rank_at
from alkd_ray.errors import InputError

RULES = {
    "paper": paper,
    "exact": exact,
    "reference": functools.partial(paper, reference_support=True),
}


def probabilities_from_scratch(rule, gains, population):
    """p over ranks 1..population from the definitions, with full arrays and a full search."""
    counts = gains.counts(population)
    m = counts.similar + counts.incorrect
    ranks = np.arange(1, population + 1)
    g_ef = ranks**-gains.mu
    own = np.where(ranks <= m, gains.g_si, 1.0) * g_ef
    if rule == "exact":
        values = np.repeat(
            [-gains.g_in, gains.g_si, 1.0], [counts.incorrect, counts.similar, counts.effective]
        )
        weights = 1 / g_ef
        ratio = np.cumsum(values) / np.cumsum(weights)
    else:
        weights = 1 / (own + gains.g_in * g_ef)
        ratio = (np.cumsum(own * weights) - counts.incorrect) / np.cumsum(weights)
    k = int(np.argmax(ratio)) + 1
    if rule == "reference":
        k = max(k - 1, 1)
    weights[k:] = 0
    return weights / weights.sum()


def probabilities_of_sequences(rule, gains, population, picks):
    """Every sequence of picks with its probability, by walking the tree."""
    found = {(): (1.0, tuple(range(1, population + 1)))}
    for _ in range(picks):
        longer = {}
        for sequence, (chance, left) in found.items():
            p = probabilities_from_scratch(rule, gains, len(left))
            for place, rank in enumerate(left):
                if p[place] > 0:
                    rest = left[:place] + left[place + 1 :]
                    longer[(*sequence, rank)] = (chance * p[place], rest)
        found = longer
    return {sequence: chance for sequence, (chance, _) in found.items()}


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize(
    ("gains", "population"),
    [
        (Gains(1.0, (3.0, 3.0, 4.0)), 7),
        (Gains(0.5, (3.0, 3.0, 4.0), 0.2, 0.3), 8),
        (Gains(2.0, (1.0, 5.0, 4.0)), 9),
    ],
)
def test_sequences_of_picks_by_chi_square(rule, gains, population):
    draws, picks = 4000, 3
    expected = probabilities_of_sequences(rule, gains, population, picks)
    assert sum(expected.values()) == pytest.approx(1)
    generator = np.random.default_rng(11)
    counted = dict.fromkeys(expected, 0)
    for _ in range(draws):
        sequence = pick_ranks(gains, RULES[rule], population, picks, generator)
        counted[tuple(sequence.tolist())] += 1  # a KeyError is a pick of probability 0
    observed, wanted = [], []
    rare_observed = rare_wanted = 0.0
    for sequence, chance in expected.items():
        if chance * draws < 5:
            rare_observed += counted[sequence]
            rare_wanted += chance * draws
        else:
            observed.append(counted[sequence])
            wanted.append(chance * draws)
    if rare_wanted:
        observed.append(rare_observed)
        wanted.append(rare_wanted)
    assert len(observed) > 20
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("rule", list(RULES))
def test_the_same_uniforms_pick_the_same_ranks(rule):
    """Inverse distribution functions on arrays, on the sessions left, with the same draws."""
    gains, population, budget = Gains(), 3000, 120
    left = list(range(1, population + 1))
    expected = []
    for uniform in np.random.default_rng(5).random(budget):
        cumulative = np.cumsum(probabilities_from_scratch(rule, gains, len(left)))
        expected.append(left.pop(int(np.searchsorted(cumulative, uniform, side="right"))))
    found = pick_ranks(gains, RULES[rule], population, budget, np.random.default_rng(5))
    assert found.tolist() == expected


@pytest.mark.parametrize("mu", [0.0, 0.5, 10.0, 50.0])
@pytest.mark.parametrize("population", [2, 3, 40, 1000, 10**9])
def test_rank_at_inverts_the_cumulative_probabilities(mu, population):
    gains = Gains(mu, (3.0, 3.0, 4.0))
    for rule in (paper, exact):
        policy = rule(gains, population)
        last = first_rank(policy) + policy.support - 1
        assert rank_at(gains, policy, 0.0) >= 1
        assert rank_at(gains, policy, np.nextafter(1.0, 0.0)) == last
        if population <= 1000:
            p = np.exp(log_probabilities(gains, policy, np.arange(1, population + 1)))
            middle = np.cumsum(p) - p / 2
            for rank in np.flatnonzero(p > 1e-12) + 1:
                assert rank_at(gains, policy, middle[rank - 1]) == rank


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("ratio", [(1.0, 5.0, 4.0), (0.0, 1.0, 9.0), (1.0, 0.0, 0.0)])
def test_every_session_can_be_picked(rule, ratio):
    generator = np.random.default_rng(0)
    found = pick_ranks(Gains(3.0, ratio), RULES[rule], 60, 60, generator)
    assert sorted(found.tolist()) == list(range(1, 61))


def test_nothing_is_guaranteed_so_the_easiest_ranks_come_first():
    gains = Gains(3.0, (0.0, 1.0, 9.0), 0.1, 0.5)
    found = pick_ranks(gains, exact, 60, 5, np.random.default_rng(0))
    assert found.tolist() == [60, 59, 58, 57, 56]


@pytest.mark.parametrize("budget", [-1, 0, 11])
def test_budgets_that_cannot_be_met(budget):
    with pytest.raises(InputError, match=f"budget is {budget}"):
        pick_ranks(Gains(), paper, 10, budget, np.random.default_rng(0))
