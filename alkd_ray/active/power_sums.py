"""Sums of powers ``S(k) = 1^mu + 2^mu + ... + k^mu`` for any k, in constant time and memory.

Every cumulative sum of the policies is such a sum, because a gain is ``rank^-mu`` and a policy
weighs a rank by one over its gain. With mu = 10 and a million ranks S(k) is about 1e65, with
mu = 50 beyond the largest float; so a sum is given in units of its last term, ``S(k) / k^mu``,
which lies between 1 and k, and its size as a logarithm.
"""

from __future__ import annotations

import functools
import math

# Terms added up one by one. The Euler-Maclaurin series of the rest is then exact to about
# mu^11 / (1e8 * HEAD_TERMS^11), 1e-14 for the largest mu allowed (see alkd_ray.active.gains).
HEAD_TERMS = 256
# B_2j / (2j)! for j = 1..5, B_2j the Bernoulli numbers.
_COEFFICIENTS = (1 / 12, -1 / 720, 1 / 30_240, -1 / 1_209_600, 1 / 47_900_160)


class PowerSums:
    """``S(k)`` for one mu.

    Args:
        mu: the power, at least 0.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu
        # Derivatives of x^mu of order 1, 3, 5, ... in units of x^mu: factor times x^-order.
        falling, factors = 1.0, []
        for order in range(2 * len(_COEFFICIENTS) - 1):
            falling *= mu - order
            if order % 2 == 0:
                factors.append(falling)
        self._series = tuple(c * f for c, f in zip(_COEFFICIENTS, factors, strict=True))
        head = [0.0]
        for k in range(1, HEAD_TERMS + 1):
            head.append(1.0 + head[-1] * ((k - 1) / k) ** mu)
        self._head = tuple(head)
        self._constant = head[HEAD_TERMS] - self._smooth(HEAD_TERMS)

    def in_last_terms(self, k: int) -> float:
        """``S(k) / k^mu``, relative error below 1e-13; 0 for k = 0."""
        if k <= HEAD_TERMS:
            return self._head[k]
        return self._smooth(k) + self._constant * (HEAD_TERMS / k) ** self.mu

    def in_terms_of(self, k: int, rank: int) -> float:
        """``S(k) / rank^mu`` for k <= rank; what underflows is 0."""
        if k == 0:
            return 0.0
        return self.in_last_terms(k) * (k / rank) ** self.mu

    def log(self, k: int) -> float:
        """``log S(k)``; ``-inf`` for k = 0."""
        if k == 0:
            return -math.inf
        return self.mu * math.log(k) + math.log(self.in_last_terms(k))

    def _smooth(self, k: int) -> float:
        """Integral, half of the last term and derivatives at k, in units of k^mu."""
        inverse = 1.0 / k
        square = inverse * inverse
        total = 0.0
        for coefficient in reversed(self._series):
            total = coefficient + square * total
        return k / (self.mu + 1.0) + 0.5 + inverse * total


@functools.lru_cache(maxsize=64)
def power_sums(mu: float) -> PowerSums:
    """The sums for ``mu``, made once."""
    return PowerSums(mu)
