"""Intervals and tests against scipy, closed forms, a loop, and simulated worlds of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from alkd_ray.evaluation import statistics
from alkd_ray.evaluation.statistics import Bootstrap, bootstrap, holm, paired_t_test
from alkd_ray.seeds import numpy_stream


def hits(rng: np.random.Generator, seeds: int, sessions: int, share: float) -> np.ndarray:
    return (rng.random((seeds, sessions)) < share).astype(np.float64)


def test_one_seed_is_scipys_percentile_bootstrap() -> None:
    values = hits(np.random.default_rng(0), 1, 800, 0.06)
    found = bootstrap([values], 9_999, seed=3).estimate(0)
    theirs = stats.bootstrap(
        (values[0],),
        np.mean,
        n_resamples=9_999,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    # Both ends carry the noise of 9,999 draws, about 0.03 standard errors each.
    allowed = 0.15 * theirs.standard_error
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=allowed)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=allowed)
    assert found.standard_error == pytest.approx(theirs.standard_error, rel=0.03)
    assert found.mean == values.mean()
    assert found.covers == "sessions"


def test_draws_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(5)
    series = [rng.random((3, 40)), rng.random((1, 40)), rng.random((3, 40))]
    found = bootstrap(series, 50, seed=9).draws
    sessions = numpy_stream(9, "bootstrap", "sessions").integers(0, 40, (50, 40))
    seeds = numpy_stream(9, "bootstrap", "seeds").multinomial(2, np.full(3, 1 / 3), 50)
    for resample in range(50):
        drawn_seeds = np.repeat(np.arange(3), seeds[resample])
        for column, values in enumerate(series):
            total, pairs = 0.0, 0
            for seed in drawn_seeds if len(values) > 1 else [0]:
                for session in sessions[resample]:
                    total += values[seed, session]
                    pairs += 1
            assert found[resample, column] == pytest.approx(total / pairs, abs=1e-12)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = hits(np.random.default_rng(2), 2, 97, 0.2)
    whole = bootstrap([values], 60, seed=1).draws
    monkeypatch.setattr(statistics, "_BLOCK_CELLS", 97 * 7)
    np.testing.assert_allclose(bootstrap([values], 60, seed=1).draws, whole, atol=1e-14)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_variance_of_additive_effects(seeds: int) -> None:
    """Seed effect + session effect: the variance is s_A^2 / R + s_B^2 / S, unbiased in R."""
    rng = np.random.default_rng(seeds)
    of_seed, of_session = rng.normal(0, 0.02, (seeds, 1)), rng.normal(0, 0.4, (1, 300))
    found = bootstrap([of_seed + of_session], 20_000, seed=0).estimate(0)
    wanted = of_seed.var(ddof=1) / seeds + of_session.var() / 300
    assert found.standard_error**2 == pytest.approx(wanted, rel=0.04)
    assert found.covers == "seeds and sessions"


def test_intervals_cover_the_truth() -> None:
    """Of 300 worlds whose seeds, sessions and pairs all vary, 95% +- what 300 can tell."""
    rng, seeds, sessions, covered = np.random.default_rng(12), 5, 150, 0
    for world in range(300):
        values = (
            0.5
            + rng.normal(0, 0.1 * (seeds / sessions) ** 0.5, (seeds, 1))
            + rng.normal(0, 0.1, (1, sessions))
            + rng.normal(0, 0.1, (seeds, sessions))
        )
        estimate = bootstrap([values], 300, seed=world).estimate(0)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.91 <= covered / 300 <= 0.99


def test_sessions_alone_would_not_cover() -> None:
    """The same worlds with the seeds' noise left out of the interval: far below 95%."""
    rng, covered = np.random.default_rng(12), 0
    for world in range(200):
        values = 0.5 + rng.normal(0, 0.03, (5, 1)) + rng.normal(0, 0.1, (1, 150))
        estimate = bootstrap([values.mean(0, keepdims=True)], 300, seed=world).estimate(0)
        covered += estimate.low <= 0.5 <= estimate.high
    assert covered / 200 < 0.85


def test_least_detectable_difference_is_seen_four_times_of_five() -> None:
    rng, seen = np.random.default_rng(4), 0
    true = 0.1 * (1.959964 + 0.841621)  # the standard error of 100 sessions with sd 1 is 0.1
    for world in range(400):
        second = rng.normal(0, 3, (1, 100))
        first = second + rng.normal(true, 1, (1, 100))
        seen += not bootstrap([first, second], 300, seed=world).difference(0, 1).covers_zero
    assert seen / 400 == pytest.approx(0.8, abs=0.06)
    difference = Bootstrap(
        (np.zeros((1, 2)), np.zeros((1, 2))),
        np.stack([np.random.default_rng(0).normal(0, 0.1, 40_000), np.zeros(40_000)], axis=1),
    ).difference(0, 1)
    assert difference.least_detectable == pytest.approx(true, rel=0.02)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(6)
    base = hits(rng, 3, 500, 0.3)
    shifted, other = base + 0.01, hits(rng, 3, 500, 0.3)
    resampled = bootstrap([shifted, base, other], 500, seed=0)
    same = resampled.difference(0, 1)
    assert same.low == pytest.approx(0.01)
    assert same.high == pytest.approx(0.01)
    assert same.standard_error < 1e-9
    assert not same.covers_zero
    unpaired = resampled.difference(0, 2).standard_error
    alone = [resampled.estimate(i).standard_error for i in (0, 2)]
    assert unpaired == pytest.approx(np.hypot(*alone), rel=0.25)


def test_no_difference_at_all() -> None:
    values = hits(np.random.default_rng(0), 2, 100, 0.1)
    difference = bootstrap([values, values.copy()], 200, seed=0).difference(0, 1)
    assert (difference.low, difference.high, difference.p_value) == (0.0, 0.0, 1.0)
    assert difference.covers_zero
    assert difference.least_detectable is None
    always = bootstrap([values, 0.25 + values], 200, seed=0).difference(0, 1)
    assert (always.standard_error, always.least_detectable) == (0, None)


def test_p_value_and_interval_agree() -> None:
    rng = np.random.default_rng(8)
    for world in range(60):
        first, second = hits(rng, 2, 200, 0.2), hits(rng, 2, 200, 0.25)
        difference = bootstrap([first, second], 999, seed=world).difference(0, 1)
        if difference.p_value < 0.048:
            assert not difference.covers_zero
        if difference.p_value > 0.052:
            assert difference.covers_zero


@pytest.mark.parametrize("sessions", [1, 30, 2465])
def test_no_hit_still_has_an_upper_end(sessions: int) -> None:
    estimate = bootstrap([np.zeros((2, sessions))], 100, seed=0).estimate(0)
    exact = stats.binomtest(0, sessions).proportion_ci(0.95, method="exact")
    assert (estimate.mean, estimate.low) == (0, 0)
    assert estimate.high == pytest.approx(exact.high)


def test_t_test_is_scipys() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random((1, 80)), rng.random((1, 80))
    theirs = stats.ttest_rel(first[0], second[0])
    found = paired_t_test(first, second)
    assert found.statistic == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue)
    many, baseline = rng.random((4, 80)), rng.random((1, 80))
    theirs = stats.ttest_rel(many.mean(0), baseline[0])
    assert paired_t_test(many, baseline).p_value == pytest.approx(theirs.pvalue)


def test_t_test_without_spread() -> None:
    values = np.random.default_rng(0).random((1, 8))
    assert paired_t_test(values, values).p_value == 1
    assert paired_t_test(np.ones((1, 8)), np.zeros((1, 8))).p_value == 0


def test_holm_by_hand() -> None:
    # .005 x 4 = .02; .01 x 3 = .03; .03 x 2 = .06; .04 x 1 = .04, kept up at .06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1.0, 1.0])
    assert len(holm([])) == 0


def test_series_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        bootstrap([np.zeros((2, 5)), np.zeros((3, 5))], 100, seed=0)
    with pytest.raises(ValueError, match="do not pair"):
        bootstrap([np.zeros((2, 5)), np.zeros((2, 6))], 100, seed=0)
