"""Sums of powers against whole-number arithmetic, closed forms and plain sums."""

import math
from fractions import Fraction

import numpy as np
import pytest

from alkd_ray.active.power_sums import HEAD_TERMS, power_sums

BILLION = 10**9


@pytest.mark.parametrize("mu", [0, 1, 2, 3, 10, 25, 50])
def test_equals_whole_number_sums(mu):
    sums, total = power_sums(float(mu)), 0
    for k in range(1, 3 * HEAD_TERMS):
        total += k**mu
        assert sums.in_last_terms(k) == pytest.approx(float(Fraction(total, k**mu)), rel=1e-13)
        assert sums.log(k) == pytest.approx(math.log(total), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("mu", [1e-9, 0.3, 0.5, 1.7, 9.99, 33.3, 49.9])
@pytest.mark.parametrize("k", [1, 2, HEAD_TERMS, HEAD_TERMS + 1, 1000, 100_000])
def test_equals_plain_sums(mu, k):
    plain = math.fsum((np.arange(1, k + 1) / k) ** mu)
    assert power_sums(mu).in_last_terms(k) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("k", [10**6, BILLION])
def test_equals_closed_forms(k):
    for mu, total in (
        (1, k * (k + 1) // 2),
        (2, k * (k + 1) * (2 * k + 1) // 6),
        (3, (k * (k + 1) // 2) ** 2),
    ):
        found = power_sums(float(mu)).in_last_terms(k)
        assert found == pytest.approx(float(Fraction(total, k**mu)), rel=1e-14)


def test_units():
    sums = power_sums(10.0)
    expected = sum(Fraction(s, 900) ** 10 for s in range(1, 601))
    assert sums.in_terms_of(600, 900) == pytest.approx(float(expected), rel=1e-12)
    assert sums.in_terms_of(0, 900) == 0
    assert sums.log(0) == -math.inf
    assert power_sums(50.0).in_terms_of(3, BILLION) == 0  # underflows in silence
    assert power_sums(50.0).log(BILLION) == pytest.approx(
        51 * math.log(BILLION) - math.log(51), rel=1e-9
    )
