"""The policies against golden numbers and against Definition 1 in exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import WeightedRanks, exact, first_rank, log_probabilities, paper
from alkd_ray.errors import InputError


def definition_1(mu, counts, g_si, g_in, population):
    """Gamma(k) for every k, as the paper defines it (second sums from k_si + k_in + 1)."""
    k_ef, k_si, k_in = counts
    h, g, gammas = Fraction(0), Fraction(0), []
    for s in range(1, population + 1):
        gain = Fraction(1, s**mu)
        own = g_si if s <= k_si + k_in else Fraction(1)
        h += 1 / (gain * (own + g_in))
        g += own / (own + g_in)
        gammas.append((k_ef + k_si - population + g) / h)
    return gammas


@pytest.mark.parametrize(
    ("mu", "ratio", "of_paper", "of_exact"),
    [(0.5, (3, 3, 4), 0.0563, 0.0811), (1.0, (1, 5, 4), 0.01184, 0.01429)],
)
def test_golden_guarantees(mu, ratio, of_paper, of_exact):
    gains = Gains(mu, ratio)
    digits = len(str(of_paper)) - 2
    assert round(paper(gains, 20).min_gain, digits) == of_paper
    assert round(exact(gains, 20).min_gain, digits) == of_exact


def test_theorem_3_needs_an_assignment():
    """Definition 2's assignment does not keep to the counts, so its upper bound is none."""
    gains = Gains(0.5, (3.0, 3.0, 4.0))
    policy, counts = paper(gains, 20), gains.counts(20)
    assert policy.support == 20  # no rank beyond k* is left to make up the counts
    g_ef = np.arange(15, 21) ** -0.5
    needed = policy.min_gain + 0.5 * g_ef
    assert (needed / (1.5 * g_ef)).sum() == pytest.approx(2.94, abs=0.005)
    assert (needed / (0.5 * g_ef + 0.5 * g_ef)).sum() == pytest.approx(4.41, abs=0.005)
    assert counts.effective == 6


def test_at_mu_10_the_supports_coincide():
    gains = Gains(10.0)
    first, second = paper(gains, 20), exact(gains, 20)
    assert first.support == second.support == 19
    # Not quite the policies: rank 19 lies beyond k_si + k_in = 18, where p* weighs by 2/3.
    assert first.min_gain / second.min_gain == pytest.approx(0.9767, abs=1e-4)
    small = Gains(10.0, (1.0, 8.0, 1.0))
    assert paper(small, 20).support == exact(small, 20).support
    assert paper(small, 20).log_min_gain == exact(small, 20).log_min_gain


@pytest.mark.parametrize("mu", [0, 1, 3, 10, 30])
@pytest.mark.parametrize(
    "ratio", [(1, 5, 4), (3, 3, 4), (1, 1, 1), (1, 9, 2), (4, 0, 1), (1, 0, 9)]
)
@pytest.mark.parametrize(("g_si", "g_in"), [(0.5, 0.5), (0.25, 0.75), (1.0, 0.5), (0.0, 0.25)])
def test_paper_equals_definition_1_in_fractions(mu, ratio, g_si, g_in):
    gains = Gains(float(mu), ratio, g_si, g_in)
    for population in (2, 3, 11, 40, 61):
        counts = gains.counts(population)
        gammas = definition_1(
            mu,
            (counts.effective, counts.similar, counts.incorrect),
            Fraction(g_si),
            Fraction(g_in),
            population,
        )
        policy = paper(gains, population)
        best = max(gammas)
        assert gammas[policy.support - 1] == best
        if mu:
            assert policy.support == gammas.index(best) + 1
        assert policy.min_gain == pytest.approx(float(best), rel=1e-11, abs=0)
        if best > 0:
            assert policy.log_min_gain == pytest.approx(math.log(best), rel=1e-11)
        else:
            assert policy.log_min_gain == -math.inf


@pytest.mark.parametrize("population", [7393, 200_000])
@pytest.mark.parametrize(("mu", "ratio"), [(10.0, (1, 5, 4)), (2.5, (3, 3, 4)), (0.7, (2, 3, 3))])
def test_paper_equals_cumulative_sums(population, mu, ratio):
    gains = Gains(mu, ratio, 0.4, 0.3)
    counts = gains.counts(population)
    ranks = np.arange(1, population + 1, dtype=np.longdouble)
    own = np.where(ranks <= counts.similar + counts.incorrect, np.longdouble(0.4), 1)
    # In units of the last rank's gain, so that nothing underflows.
    h = np.cumsum((ranks / population) ** np.longdouble(mu) / (own + np.longdouble(0.3)))
    g = np.cumsum(own / (own + np.longdouble(0.3)))
    gammas = (g - counts.incorrect) / h
    policy = paper(gains, population)
    assert policy.support == int(np.argmax(gammas)) + 1
    assert policy.log_min_gain == pytest.approx(
        math.log(gammas.max()) - mu * math.log(population), rel=1e-12
    )
    probabilities = np.exp(log_probabilities(gains, policy, np.arange(1, population + 1)))
    weights = (ranks / population) ** np.longdouble(mu) / (own + np.longdouble(0.3))
    weights[policy.support :] = 0
    np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-9, atol=1e-300)


def test_the_papers_setting():
    for population in (7393, 10**6, 10**8):
        assert paper(Gains(), population).support / population == pytest.approx(0.9374, abs=1e-4)


def test_reference_support_drops_rank_k():
    gains = Gains()
    assert paper(gains, 7393, reference_support=True).support == paper(gains, 7393).support - 1
    assert paper(gains, 7393, reference_support=True).min_gain < paper(gains, 7393).min_gain
    alone = Gains(50.0, (1.0, 0.0, 0.0))  # k* = 1 cannot be dropped
    assert paper(alone, 9).support == paper(alone, 9, reference_support=True).support == 1


def test_two_effects_are_the_game_of_baykal():
    gains = Gains(2.0, (1.0, 5.0, 4.0), 0.3, 0.6).two_effects()
    # Their definition: p proportional to 1/(g + l), k* = argmax (k_correct - N + G_k) / H_k.
    population, k_correct = 50, 30
    total, best = Fraction(0), []
    for k in range(1, population + 1):
        total += Fraction(k**2) / Fraction(8, 5)
        best.append((k_correct - population + k / Fraction(8, 5)) / total)
    for policy in (paper(gains, population), exact(gains, population)):
        assert policy.support == best.index(max(best)) + 1
        assert policy.min_gain == pytest.approx(float(max(best)), rel=1e-9)


def test_the_last_rank_alone_where_nothing_can_be_guaranteed():
    gains = Gains(3.0, (0.0, 1.0, 9.0), 0.1, 0.5)
    policy = exact(gains, 10)
    assert (policy.support, policy.log_min_gain) == (1, -math.inf)
    assert first_rank(policy) == 10
    assert policy.min_gain == pytest.approx(-0.5 * 10**-3.0)
    found = log_probabilities(gains, policy, np.arange(1, 11))
    assert found.tolist() == [-math.inf] * 9 + [0.0]
    assert paper(gains, 10).support == 10
    assert first_rank(paper(gains, 10)) == 1
    assert first_rank(exact(Gains(), 1)) == 1


def test_counts_are_rounded_and_sum_to_the_population():
    gains = Gains(ratio=(1, 5, 4))
    assert gains.counts(20) == type(gains.counts(20))(2, 10, 8)
    assert gains.counts(1) == type(gains.counts(1))(0, 1, 0)
    floats = Gains(ratio=(0.1, 0.5, 0.4))
    for population in range(1, 500):
        counts = gains.counts(population)
        assert counts.effective + counts.similar + counts.incorrect == population
        assert min(counts.effective, counts.similar, counts.incorrect) >= 0
        assert abs(counts.incorrect - 0.4 * population) <= 0.5 + 1e-9
        assert abs(counts.effective - 0.1 * population) <= 0.5 + 1e-9
        assert floats.counts(population) == counts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mu", -0.1),
        ("mu", 50.5),
        ("mu", math.nan),
        ("ratio", (0.0, 0.0, 0.0)),
        ("ratio", (1.0, -1.0, 2.0)),
        ("ratio", (1.0, 2.0)),
        ("ratio", (1.0, math.inf, 2.0)),
        ("g_si", 1.5),
        ("g_in", -0.5),
    ],
)
def test_values_outside_the_limits(field, value):
    with pytest.raises(InputError, match=field):
        Gains(**{field: value})
    with pytest.raises(InputError, match="both 0"):
        Gains(g_si=0, g_in=0)


@pytest.mark.parametrize("mu", [0.0, 1e-6, 1.0, 10.0, 50.0])
@pytest.mark.parametrize("population", [2, 3, 300, 10**6, 10**9])
def test_the_whole_range(mu, population):
    gains = Gains(mu)
    for policy in (paper(gains, population), exact(gains, population)):
        assert 1 <= policy.support <= population
        game = WeightedRanks(gains, population, policy.kind)
        around = [k for k in (policy.support - 1, policy.support + 1) if 1 <= k <= population]
        if policy.log_min_gain > -math.inf:
            assert math.isfinite(policy.log_min_gain)
            for k in around:  # no neighbour is better
                assert game.guarantee(k).log_gain <= policy.log_min_gain + 1e-13 * abs(
                    policy.log_min_gain
                )
