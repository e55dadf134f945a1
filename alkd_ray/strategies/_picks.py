"""From picked ranks to a selection, with what its reader should know."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact, paper
from alkd_ray.types import DifficultyScores, IntArray, Selection

Notes = dict[str, float | int | str]


def selection(
    difficulty: DifficultyScores,
    ranks: IntArray,
    strategy: str,
    seed: int,
    notes: Mapping[str, float | int | str],
) -> Selection:
    """The sessions of ``ranks`` (``[B]``, from 1, in the order of picking).

    To ``notes`` it adds the population, the direction, and the least, the median and the largest
    rank that was picked, as shares of the population.
    """
    population = len(difficulty.session_ids)
    id_of_rank = np.empty(population, np.int64)
    id_of_rank[difficulty.ranks - 1] = difficulty.session_ids
    where: Notes = {"population": population, "direction": difficulty.direction}
    if len(ranks):
        where["picked_rank_min"] = float(ranks.min() / population)
        where["picked_rank_median"] = float(np.median(ranks) / population)
        where["picked_rank_max"] = float(ranks.max() / population)
    return Selection(id_of_rank[ranks - 1], strategy, seed, {**notes, **where})


def notes_of_game(gains: Gains, population: int, support: int, guarantee: float) -> Notes:
    """The game, and the gains that are guaranteed for its first pick.

    Args:
        gains: the game.
        population: number of sessions to select from.
        support: k of the strategy's own policy.
        guarantee: the gain that the strategy's own policy guarantees; those of the paper's and of
            the exact policy are added, with their decimal logarithms where they are positive.
    """
    notes: Notes = {
        "mu": gains.mu,
        "ratio": ":".join(f"{share:g}" for share in gains.ratio),
        "g_si": gains.g_si,
        "g_in": gains.g_in,
        "support": support,
        "guaranteed_gain": guarantee,
    }
    for policy in (paper(gains, population), exact(gains, population)):
        notes[f"guaranteed_gain_{policy.kind}"] = policy.min_gain
        if math.isfinite(policy.log_min_gain):
            notes[f"log10_guaranteed_gain_{policy.kind}"] = policy.log_min_gain / math.log(10)
    return notes
