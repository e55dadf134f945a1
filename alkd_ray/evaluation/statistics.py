"""Intervals, paired differences and their tests, over seeds and sessions.

A metric of one system is a table, row = seed (a training run), column = test session; all seeds
are tested on the same sessions. Its mean is uncertain for two reasons, and an interval has to cover
both: another draw of sessions, and another training run. Both are resampled, independently, and
each drawn seed is paired with each drawn session: the pigeonhole bootstrap (Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1(2), 2007), the hierarchical bootstrap for rows and
columns that are crossed. With one seed it is the ordinary bootstrap of sessions.

Of R seeds, R - 1 are drawn: with n draws out of n the variance between few seeds would come out
too small by (n - 1)/n, a third for three seeds (McCarthy and Snowden 1985, the bootstrap with
replacement with n - 1 draws). The noise of single (seed, session) pairs is counted up to three
times (Owen 2007, theorem 2), so the intervals err on the wide side.

All series share the draws, so the difference of two series is paired by seed and session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from alkd_ray.seeds import numpy_stream
from alkd_ray.types import FloatArray

LEVEL = 0.95
POWER = 0.8
RESAMPLES_PER_DIFFERENCE = 200
"""Of so many, the least corrected p-value is .01, however many differences there are."""

_BLOCK_CELLS = 4_000_000  # resampled sessions counted at a time: 32 MB of counts
_ROUNDING = 1e-12  # a resampled difference, or its spread, below it is an exact zero's error


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: over seeds and sessions.
        low: lower end of the 95% percentile interval.
        high: upper end.
        standard_error: standard deviation of the resampled means.
        seeds: R.
        sessions: S.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    seeds: int
    sessions: int

    @property
    def covers(self) -> str:
        """What the interval covers: ``seeds and sessions``, or ``sessions`` with one seed."""
        return "seeds and sessions" if self.seeds > 1 else "sessions"


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two means, first - second.

    Attributes:
        mean: the difference.
        low: lower end of its 95% percentile interval.
        high: upper end.
        standard_error: standard deviation of the resampled differences; 0 where all are equal.
        p_value: two-sided, of the paired bootstrap: the smallest level at which the percentile
            interval leaves out 0. Not corrected for other comparisons.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    p_value: float

    @property
    def covers_zero(self) -> bool:
        """Whether the interval covers 0, so that no difference is shown."""
        return self.low <= 0 <= self.high

    @property
    def least_detectable(self) -> float | None:
        """The least true difference that would have been seen with 80% power.

        At this standard error, by a two-sided test at 5% without correction. None where resampling
        shows no spread, which says nothing of what would have been seen.
        """
        if self.standard_error == 0:
            return None
        return self.standard_error * float(stats.norm.ppf(0.5 + LEVEL / 2) + stats.norm.ppf(POWER))


@dataclass(frozen=True, slots=True)
class PairedTTest:
    """The paired t-test over sessions.

    Attributes:
        statistic: t; 0 where all differences are 0.
        p_value: two-sided, not corrected for other comparisons.
    """

    statistic: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Resampled means of several series, from the same draws.

    Attributes:
        series: the C series, ``[R or 1, S]`` float64 each, values in [0, 1].
        draws: ``[B, C]`` float64, the mean of each series in each resample.
    """

    series: tuple[FloatArray, ...]
    draws: FloatArray

    def estimate(self, index: int) -> Estimate:
        """Mean and interval of one series.

        Resampling says nothing where every value is 0; the upper end is then that of Clopper and
        Pearson for no hit in S sessions, which holds for all metrics, as none exceeds the hit.
        """
        values, draws = self.series[index], self.draws[:, index]
        seeds, sessions = values.shape
        low, high = _percentiles(draws)
        if not values.any():
            high = 1 - ((1 - LEVEL) / 2) ** (1 / sessions)
        return Estimate(float(values.mean()), low, high, float(draws.std(ddof=1)), seeds, sessions)

    def difference(self, first: int, second: int) -> Difference:
        """The paired difference of two series, first - second."""
        draws = self.draws[:, first] - self.draws[:, second]
        draws[np.abs(draws) < _ROUNDING] = 0.0
        low, high = _percentiles(draws)
        rarer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
        error = float(draws.std(ddof=1))
        return Difference(
            float(self.series[first].mean() - self.series[second].mean()),
            low,
            high,
            error if error >= _ROUNDING else 0.0,
            min(1.0, 2 * (1 + rarer) / (1 + len(draws))),
        )


def bootstrap(series: Sequence[FloatArray], resamples: int, seed: int) -> Bootstrap:
    """Resamples seeds and sessions of all series at once.

    Time is one matrix product of ``resamples x S`` by ``S x rows``; memory beside the values is
    ``resamples x rows`` and a block of bounded size.

    Args:
        series: C tables ``[R, S]``, or ``[1, S]`` for a system without seeds; same S and R.
        resamples: B.
        seed: of the draws; equal seeds draw equal seeds and sessions.

    Raises:
        ValueError: the tables do not fit each other.
    """
    seeds = {len(values) for values in series} - {1}
    sessions = {values.shape[1] for values in series}
    if len(seeds) > 1 or len(sessions) != 1 or 0 in sessions:
        raise ValueError(
            f"series of {sorted(seeds | {1})} seeds and {sorted(sessions)} sessions do not pair"
        )
    rows = _resampled_rows(np.concatenate(series), resamples, seed)  # [B, sum of R]
    weights = _seed_weights(seeds.pop() if seeds else 1, resamples, seed)  # [B, R]
    draws = np.empty((resamples, len(series)))
    start = 0
    for column, values in enumerate(series):
        of_series = rows[:, start : start + len(values)]
        start += len(values)
        draws[:, column] = of_series[:, 0] if len(values) == 1 else (of_series * weights).sum(1)
    return Bootstrap(tuple(series), draws)


def paired_t_test(first: FloatArray, second: FloatArray) -> PairedTTest:
    """The paper's paired t-test, over sessions.

    The seeds of a session are averaged first: pairs of several seeds on one session are not
    independent, and counting each would make any difference look sure.

    Args:
        first: ``[R or 1, S]``.
        second: ``[R or 1, S]``, of the same sessions.
    """
    difference = first.mean(0) - second.mean(0)  # [S]
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:
        # No spread: nothing to test where all are 0; one that is always the same is sure.
        return PairedTTest(0.0, 1.0 if not difference.any() else 0.0)
    statistic = float(difference.mean()) / (spread / len(difference) ** 0.5)
    return PairedTTest(statistic, float(2 * stats.t.sf(abs(statistic), len(difference) - 1)))


def holm(p_values: Sequence[float]) -> FloatArray:
    """P-values corrected for being M together (Holm 1979), ``[M]``, in the given order.

    The i-th smallest is multiplied by M - i + 1, kept from falling below a smaller one's, and
    capped at 1. It bounds the chance of any false finding, whatever the dependence.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _percentiles(draws: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled_rows(rows: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Mean of every row over S sessions drawn with replacement, ``[B, rows]``."""
    sessions = rows.shape[1]
    rng = numpy_stream(seed, "bootstrap", "sessions")
    transposed = np.ascontiguousarray(rows.T)  # [S, rows]
    means = np.empty((resamples, len(rows)))
    block = max(1, _BLOCK_CELLS // sessions)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, sessions, (size, sessions), dtype=np.int64)
        drawn += np.arange(size)[:, None] * sessions
        counts = np.bincount(drawn.ravel(), minlength=size * sessions)
        means[start : start + size] = (
            counts.reshape(size, sessions).astype(np.float64) @ transposed / sessions
        )
    return means


def _seed_weights(seeds: int, resamples: int, seed: int) -> FloatArray:
    """Share of each seed among R - 1 seeds drawn with replacement, ``[B, R]``."""
    if seeds == 1:
        return np.ones((resamples, 1))
    rng = numpy_stream(seed, "bootstrap", "seeds")
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), resamples) / (seeds - 1)
