"""The policies against linear programs of hundreds of random small games.

The max-min value by duality: the opponent's problem is a transport problem (sessions to effects,
with the counts as capacities), whose dual is put into the policy's maximisation.
"""

import math

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import WeightedRanks, exact, log_probabilities, paper

GAMES = 400


def random_games(seed, games=GAMES):
    rng = np.random.default_rng(seed)
    for _ in range(games):
        population = int(rng.integers(2, 26))
        shares = rng.integers(0, 10, 3) if rng.random() < 0.5 else rng.random(3)
        if shares.sum() == 0:
            shares = np.ones(3)
        factors = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], 2) if rng.random() < 0.5 else rng.random(2)
        if factors.sum() == 0:
            factors[0] = 0.5
        mu = float(rng.choice([0.0, 0.5, 1.0, 2.0]) if rng.random() < 0.5 else rng.random() * 4)
        yield Gains(mu, tuple(map(float, shares)), *map(float, factors)), population


def values_of(gains, population):
    """``[N, 3]`` gain of each rank under each effect, in units of the last rank's; counts."""
    counts = gains.counts(population)
    of_rank = (np.arange(1, population + 1) / population) ** -gains.mu
    table = of_rank[:, None] * np.array([1.0, gains.g_si, -gains.g_in])[None, :]
    return table, np.array([counts.effective, counts.similar, counts.incorrect])


def max_min_value(gains, population):
    """In units of the last rank's gain."""
    table, counts = values_of(gains, population)
    # Variables p [N], a [N], b [3]; maximise sum a + counts . b with a_s + b_t <= p_s table_st.
    rows, right = [], []
    for s in range(population):
        for t in range(3):
            row = np.zeros(2 * population + 3)
            # Each inequality is scaled to coefficients of at most 1.
            row[s], row[population + s], row[2 * population + t] = -table[s, t], 1, 1
            rows.append(row / max(1.0, abs(table[s, t])))
            right.append(0.0)
    equal = np.zeros((1, 2 * population + 3))
    equal[0, :population] = 1
    objective = -np.concatenate([np.zeros(population), np.ones(population), counts])
    bounds = [(0, None)] * population + [(None, None)] * (population + 3)
    solved = linprog(
        objective, A_ub=np.array(rows), b_ub=right, A_eq=equal, b_eq=[1], bounds=bounds
    )
    assert solved.success, solved.message
    return -solved.fun


def worst_case(probabilities, gains, population):
    """The opponent's best answer by an assignment, in units of the last rank's gain."""
    table, counts = values_of(gains, population)
    per_session = np.repeat(probabilities[:, None] * table, counts, axis=1)  # [N, N]
    return per_session[linear_sum_assignment(per_session)].sum()


def probabilities_of(gains, policy):
    return np.exp(log_probabilities(gains, policy, np.arange(1, policy.population + 1)))


def in_last_gains(policy, gains):
    return policy.min_gain * policy.population**gains.mu


def test_exact_has_the_max_min_value():
    signs = set()
    for gains, population in random_games(1):
        policy = exact(gains, population)
        value = max_min_value(gains, population)
        found = in_last_gains(policy, gains)
        assert found == pytest.approx(value, rel=1e-6, abs=1e-7), (gains, population)
        probabilities = probabilities_of(gains, policy)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        worst = worst_case(probabilities, gains, population)
        assert found == pytest.approx(worst, rel=1e-9, abs=1e-12), (gains, population)
        signs.add(0 if abs(value) < 1e-9 else math.copysign(1, value))
        if abs(value) > 1e-9:
            assert (policy.log_min_gain > -math.inf) == (value > 0)
    assert signs == {-1, 0, 1}  # games of every kind were played


def gamma_of_definition_1(gains, population):
    """The largest Gamma(k), in units of the last rank's gain, by plain loops."""
    counts = gains.counts(population)
    m = counts.similar + counts.incorrect
    best = -math.inf
    for k in range(1, population + 1):
        h = g = 0.0
        for s in range(1, k + 1):
            g_ef = (s / population) ** -gains.mu
            own = gains.g_si * g_ef if s <= m else g_ef
            h += 1 / (own + gains.g_in * g_ef)
            g += own / (own + gains.g_in * g_ef)
        best = max(best, (counts.effective + counts.similar - population + g) / h)
    return best


def test_paper_guarantees_gamma_and_no_more():
    below = 0
    for gains, population in random_games(2):
        policy = paper(gains, population)
        found = in_last_gains(policy, gains)
        gamma = gamma_of_definition_1(gains, population)
        assert found == pytest.approx(gamma, rel=1e-9, abs=1e-12), (gains, population)
        worst = worst_case(probabilities_of(gains, policy), gains, population)
        assert found == pytest.approx(worst, rel=1e-9, abs=1e-12), (gains, population)
        best = in_last_gains(exact(gains, population), gains)
        assert found <= best + 1e-9
        below += found < best * (1 - 1e-6)
    assert below > GAMES / 10  # Theorem 3 does not hold


def test_the_guarantee_of_any_support():
    for gains, population in random_games(3, 150):
        for kind in ("paper", "exact"):
            game = WeightedRanks(gains, population, kind)
            for k in range(1, population + 1):
                weights = np.arange(1, population + 1) ** gains.mu
                weights[game.m :] *= game.tail
                weights[k:] = 0
                worst = worst_case(weights / weights.sum(), gains, population)
                found = game.guarantee(k).gain * population**gains.mu
                assert found == pytest.approx(worst, rel=1e-9, abs=1e-12), (gains, population, k)
