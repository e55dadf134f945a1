"""Selection at scale: time against the naive way, where the policies pick, what they guarantee.

python benchmarks/selection.py               seconds for 500 picks, by number of sessions
python benchmarks/selection.py --picks       where the picks lie
python benchmarks/selection.py --guarantees  guaranteed gains of both policies
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact, paper
from alkd_ray.active.sampling import pick_ranks
from alkd_ray.types import FloatArray, IntArray, Policy

BUDGET = 500
POPULATIONS = (7_393, 10**6, 10**8)
NAIVE_PICKS = {7_393: BUDGET, 10**6: 20}  # the others are extrapolated
RULES: dict[str, Callable[[Gains, int], Policy]] = {"paper": paper, "exact": exact}


def naive_probabilities(kind: str, gains: Gains, population: int) -> FloatArray:
    """Probabilities of all ranks by cumulative sums over arrays, and a search over every k."""
    counts = gains.counts(population)
    m = counts.similar + counts.incorrect
    # In units of the last rank's gain: r^mu itself overflows for large mu.
    weights = (np.arange(1, population + 1) / population) ** gains.mu
    if kind == "paper":
        weights[m:] *= (gains.g_si + gains.g_in) / (1 + gains.g_in)
    tail = (gains.g_si + gains.g_in) / (1 + gains.g_in) if kind == "paper" else 1.0
    values = np.full(population, tail)
    values[:m] = gains.g_si
    values[: counts.incorrect] = -gains.g_in
    k = int(np.argmax(np.cumsum(values) / np.cumsum(weights))) + 1
    weights[k:] = 0
    return weights / weights.sum()


def naive_picks(
    kind: str, gains: Gains, population: int, budget: int, generator: np.random.Generator
) -> IntArray:
    """Picks one by one: solve on what is left, draw, delete."""
    left = np.arange(1, population + 1)
    picked = np.empty(budget, np.int64)
    for pick, uniform in enumerate(generator.random(budget)):
        cumulative = np.cumsum(naive_probabilities(kind, gains, len(left)))
        place = int(np.searchsorted(cumulative, uniform, side="right"))
        picked[pick] = left[place]
        left = np.delete(left, place)
    return picked


def show_times() -> None:
    """CPU seconds for BUDGET picks of each policy, and the naive way's; the picks must agree."""
    gains = Gains()
    print(f"{BUDGET} picks, mu = 10, 1:5:4; CPU seconds, which other programs do not change")
    print(f"{'policy':8}{'sessions':>12}{'seconds':>10}{'naive':>12}{'ratio':>9}   naive way")
    for kind, rule in RULES.items():
        naive_each, measured = 0.0, 1
        for population in POPULATIONS:
            start = time.process_time()
            ranks = pick_ranks(gains, rule, population, BUDGET, np.random.default_rng(1))
            seconds = time.process_time() - start
            done = NAIVE_PICKS.get(population)
            if done:
                start = time.process_time()
                # The generator gives the same first uniforms whatever the number asked for.
                expected = naive_picks(kind, gains, population, done, np.random.default_rng(1))
                naive_each, measured = (time.process_time() - start) / done, population
                assert (expected == ranks[:done]).all(), "the two ways pick different ranks"
                how = f"{done} picks measured, the same ranks"
            else:
                how = f"extrapolated from {measured:,} sessions"
            naive = naive_each * BUDGET * population / measured
            print(
                f"{kind:8}{population:12,}{seconds:10.3f}{naive:12.2f}"
                f"{naive / seconds:9,.0f}   {how}"
            )


def show_picks() -> None:
    """Quantiles of the picked ranks as shares of the sessions, over 40 selections."""
    gains = Gains()
    print(f"ranks of {BUDGET} picks as shares of the sessions; mu = 10, 1:5:4, 40 seeds")
    header = "".join(f"{name:>8}" for name in ("k*/N", "1%", "10%", "median", "90%", "99%"))
    print(f"{'policy':8}{'sessions':>12}{header}   in .61-.936")
    for kind, rule in RULES.items():
        for population in POPULATIONS:
            ranks = np.concatenate(
                [
                    pick_ranks(gains, rule, population, BUDGET, np.random.default_rng(seed))
                    for seed in range(40)
                ]
            )
            shares = ranks / population
            quantiles = np.quantile(shares, [0.01, 0.1, 0.5, 0.9, 0.99])
            within = float(((shares >= 0.61) & (shares <= 0.936)).mean())
            numbers = [rule(gains, population).support / population, *quantiles]
            print(
                f"{kind:8}{population:12,}"
                + "".join(f"{number:8.3f}" for number in numbers)
                + f"{within:14.1%}"
            )


def show_guarantees() -> None:
    """Guaranteed gain of both policies, and of picking uniformly."""
    print("guaranteed gain of a pick; g_si = g_in = .5 (k: last rank picked)")
    columns = ("paper", "k", "exact", "k", "paper/exact")
    print(f"{'sessions':>9}{'mu':>6}{'ratio':>9}" + "".join(f"{name:>13}" for name in columns))
    for population, mu, ratio in (
        (20, 0.5, (3.0, 3.0, 4.0)),
        (20, 1.0, (1.0, 5.0, 4.0)),
        (20, 10.0, (1.0, 5.0, 4.0)),
        (7_393, 0.5, (1.0, 5.0, 4.0)),
        (7_393, 1.0, (1.0, 5.0, 4.0)),
        (7_393, 10.0, (1.0, 5.0, 4.0)),
        (7_393, 10.0, (3.0, 3.0, 4.0)),
    ):
        gains = Gains(mu, ratio)
        first, second = paper(gains, population), exact(gains, population)
        share = math.exp(first.log_min_gain - second.log_min_gain)
        text = ":".join(f"{part:g}" for part in ratio)
        print(
            f"{population:9,}{mu:6g}{text:>9}{first.min_gain:13.4g}{first.support:13,}"
            f"{second.min_gain:13.4g}{second.support:13,}{share:13.3f}"
        )


def main() -> None:
    """Prints the table that the options ask for."""
    parser = argparse.ArgumentParser(description="Selection: time, picks, guarantees.")
    parser.add_argument("--picks", action="store_true", help="where the picks lie")
    parser.add_argument("--guarantees", action="store_true", help="guaranteed gains")
    options = parser.parse_args()
    if options.picks:
        show_picks()
    if options.guarantees:
        show_guarantees()
    if not (options.picks or options.guarantees):
        show_times()


if __name__ == "__main__":
    main()
