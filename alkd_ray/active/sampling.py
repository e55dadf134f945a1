"""Picks of ranks one by one, without replacement, in memory that does not grow with the ranks.

"We select instances one by one where each instance is sampled based on the active learning
policy" (Du et al., AAAI 2025). After a pick the population is one smaller: the sessions that are
left are ranked 1, 2, ... anew, the counts of effects are taken from the ratio again, and the policy
is solved again. A pick costs two searches by bisection, O(log N), and the way from the new ranks
to the first ones leads through the sorted list of the picks so far.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import numpy as np

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import WeightedRanks, first_rank
from alkd_ray.errors import InputError
from alkd_ray.types import IntArray, Policy


def check_budget(budget: int, population: int) -> None:
    """Whether ``budget`` sessions can be picked out of ``population``.

    Raises:
        InputError: the budget is below 1 or larger than the population.
    """
    if not 1 <= budget <= population:
        raise InputError(
            f"selection.budget is {budget}, but there are {population} sessions to select from; "
            f"choose 1 to {population}"
        )


def pick_ranks(
    gains: Gains,
    solve: Callable[[Gains, int], Policy],
    population: int,
    budget: int,
    generator: np.random.Generator,
) -> IntArray:
    """``[budget]`` int64 distinct ranks of 1..population, in the order of picking.

    Args:
        gains: the game.
        solve: the policy for a population, :func:`~alkd_ray.active.policy.paper` or
            :func:`~alkd_ray.active.policy.exact`.
        population: number of ranks N.
        budget: ranks to pick, |B|.
        generator: one uniform number a pick is drawn from it.

    Raises:
        InputError: see :func:`check_budget`.
    """
    check_budget(budget, population)
    picked = np.empty(budget, np.int64)
    removed: list[int] = []  # the picks so far, ascending
    for pick, uniform in enumerate(generator.random(budget)):
        policy = solve(gains, population - pick)
        rank = rank_at(gains, policy, float(uniform))
        # The rank among those left -> the rank among all: removed[i] - i ranks below removed[i]
        # are left, so this many removed ranks lie below the one that is meant.
        below = bisect.bisect_right(range(pick), rank, key=lambda i: removed[i] - i)
        removed.insert(below, rank + below)
        picked[pick] = rank + below
    return picked


def rank_at(gains: Gains, policy: Policy, uniform: float) -> int:
    """The smallest rank up to which the policy's probabilities sum to more than ``uniform``.

    Args:
        gains: the game.
        policy: a solution of it.
        uniform: a number of [0, 1).
    """
    first = first_rank(policy)
    if policy.support == 1:
        return first
    ranks = WeightedRanks(gains, policy.population, policy.kind)
    last = policy.support
    wanted = uniform * ranks.denominator(last)

    def reached(rank: int) -> bool:
        return ranks.denominator(rank, last) > wanted

    return 1 + bisect.bisect_left(range(1, last), True, key=reached)
