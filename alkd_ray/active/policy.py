"""Which ranks to pick with which probability, so that the worst case gains most.

The game: the policy chooses probabilities p over ranks; then an opponent who knows them chooses
which sessions are effective, similar and incorrect, keeping to the three counts; the gain is the
expected gain of the picked session (equation 3 of Du et al., AAAI 2025). Both policies here weigh
rank r by ``r^mu``, one over its gain, up to a last rank k:

- :func:`paper`: Definition 1. Ranks beyond ``m = k_si + k_in`` get the lower weight
  ``tau * r^mu`` with ``tau = (g_si + g_in) / (1 + g_in)``.
- :func:`exact`: the max-min solution. Every rank has the same weight, so ``tau = 1``.

For such a policy the opponent makes the first k_in ranks incorrect, the next k_si similar, and the
rest effective, because p(r) times the gain never rises with r. The guaranteed gain is ``A / B``:

    A = -g_in min(k, k_in) + g_si (min(k, m) - k_in)+ + tau (k - m)+
    B = S(min(k, m)) + tau (S(k) - S(m))+          S(k) = 1^mu + ... + k^mu

which for k >= k_in is Gamma(k) of Theorem 1, numerator and denominator both times g_si + g_in.
See ``docs/selection.md`` for the proof that ``exact`` is exact, and where Theorem 3 fails.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alkd_ray.active.gains import Gains
from alkd_ray.active.power_sums import power_sums
from alkd_ray.types import FloatArray, IntArray, Policy

Kind = Literal["paper", "exact"]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The expected gain of one pick in the worst case.

    Attributes:
        gain: the gain; negative for a loss; 0 also where it underflows.
        log_gain: its logarithm, ``-inf`` where it is not positive.
    """

    gain: float
    log_gain: float


def paper(gains: Gains, population: int, *, reference_support: bool = False) -> Policy:
    """p* of Definition 1 with k* of Theorem 2 (read with G_s where the text has g_s).

    Where several k reach the largest Gamma, k* is the smallest. Where no Gamma(k) is positive, k*
    is the population.

    Args:
        gains: the game.
        population: number of ranks N, at least 1.
        reference_support: leave out rank k* itself, as the published code does (k* = 1 stays).

    Returns:
        The policy with the gain that it guarantees.
    """
    game = WeightedRanks(gains, population, "paper")
    k = game.best_support()
    if reference_support:
        k = max(k - 1, 1)
    guarantee = game.guarantee(k)
    return Policy("paper", population, k, guarantee.log_gain, guarantee.gain)


def exact(gains: Gains, population: int) -> Policy:
    """The policy whose guaranteed gain is the largest that any policy has.

    Where a positive gain can be guaranteed, this is ``p(r)`` proportional to ``r^mu`` on the
    ranks 1..k with the best k (the smallest, where several are). Where none can, the best is the
    smaller loss of two: all ranks (``support`` is the population), or the last rank alone
    (``support`` is 1), whose gain and loss are the smallest. ``log_min_gain`` is then ``-inf``.

    Args:
        gains: the game.
        population: number of ranks N, at least 1.
    """
    game = WeightedRanks(gains, population, "exact")
    of_all = game.guarantee(population)
    if of_all.log_gain > -math.inf:
        k = game.best_support()
        guarantee = game.guarantee(k)
        return Policy("exact", population, k, guarantee.log_gain, guarantee.gain)
    # Losses in units of the gain of the last rank, N^-mu, where neither underflows.
    loss_of_last = gains.g_in if game.k_in else 0.0
    if -game.numerator(population) / game.denominator(population) <= loss_of_last:
        return Policy("exact", population, population, -math.inf, of_all.gain)
    loss = loss_of_last * math.exp(-gains.mu * math.log(population))
    return Policy("exact", population, 1, -math.inf, -loss)


def first_rank(policy: Policy) -> int:
    """The first rank of positive probability; ``support`` ranks from it on have one.

    It is 1, except where :func:`exact` picks the last rank alone.
    """
    last_alone = policy.kind == "exact" and policy.support == 1 and policy.log_min_gain == -math.inf
    return policy.population if last_alone else 1


def log_probabilities(gains: Gains, policy: Policy, ranks: IntArray) -> FloatArray:
    """``[R]`` float64, the log of the probability of each of ``ranks`` (``[R]`` from 1).

    It is ``-inf`` for a rank that is never picked.
    """
    first = first_rank(policy)
    inside = (ranks >= first) & (ranks < first + policy.support)
    if first > 1:
        return np.where(inside, 0.0, -np.inf)
    game = WeightedRanks(gains, policy.population, policy.kind)
    log_total = math.log(game.denominator(policy.support)) + gains.mu * math.log(policy.support)
    log_weights = gains.mu * np.log(ranks) + np.where(ranks > game.m, math.log(game.tail), 0.0)
    return np.where(inside, log_weights - log_total, -np.inf)


class WeightedRanks:
    """Ranks 1..N weighted as the module's text says: what every policy of a kind has in common.

    Attributes:
        k_in: number of incorrect sessions.
        m: number of sessions that are not effective, k_si + k_in.
        tail: tau, the weight of ranks beyond m as a part of that of the others.
        sums: the sums of powers S.
    """

    def __init__(self, gains: Gains, population: int, kind: Kind) -> None:
        counts = gains.counts(population)
        self.gains = gains
        self.population = population
        self.k_in = counts.incorrect
        self.m = counts.incorrect + counts.similar
        self.tail = (gains.g_si + gains.g_in) / (1 + gains.g_in) if kind == "paper" else 1.0
        self.sums = power_sums(gains.mu)

    def numerator(self, k: int) -> float:
        """A of the module's text, for support k."""
        incorrect = min(k, self.k_in)
        similar = min(k, self.m) - incorrect
        effective = k - incorrect - similar
        g = self.gains
        return -g.g_in * incorrect + g.g_si * similar + self.tail * effective

    def denominator(self, k: int, rank: int = 0) -> float:
        """B of the module's text, for support k, in units of ``rank^mu`` (default: of ``k^mu``)."""
        rank = rank or k
        if k <= self.m:
            return self.sums.in_terms_of(k, rank)
        head = self.sums.in_terms_of(self.m, rank)
        return head + self.tail * (self.sums.in_terms_of(k, rank) - head)

    def guarantee(self, k: int) -> Guarantee:
        """The expected gain of one pick in the worst case, for support k."""
        numerator = self.numerator(k)
        if numerator == 0:
            return Guarantee(0.0, -math.inf)
        log_size = (
            math.log(abs(numerator)) - math.log(self.denominator(k)) - self.gains.mu * math.log(k)
        )
        if numerator < 0:
            return Guarantee(-math.exp(log_size), -math.inf)
        return Guarantee(math.exp(log_size), log_size)

    def best_support(self) -> int:
        """The smallest k >= k_in with the largest A / B.

        On either side of m, A is a concave function of B, so that A / B rises up to one k and
        falls from it on; the two best are then compared. (Below k_in A / B is never positive, and
        Gamma never largest.)
        """
        start = max(self.k_in, 1)
        if start >= self.m:
            return self._climb(start, self.population, 1.0)
        similar = self._climb(start, self.m, self.gains.g_si)
        effective = self._climb(self.m, self.population, 1.0)
        return effective if self._higher(effective, similar) else similar

    def _climb(self, low: int, high: int, gain: float) -> int:
        """The best k of low..high, where the ranks low + 1..high add the same gain each.

        Rank k + 1 raises A / B when what it adds to A over what it adds to B is above A / B.
        """

        def falls(k: int) -> bool:
            return gain * self.denominator(k, k + 1) <= self.numerator(k)

        return low + bisect.bisect_left(range(low, high), True, key=falls)

    def _higher(self, k: int, than: int) -> bool:
        """Whether A / B is larger for support ``k`` than for the smaller support ``than``."""
        left = self.numerator(k) * self.denominator(than, k)
        return left > self.numerator(than) * self.denominator(k)
