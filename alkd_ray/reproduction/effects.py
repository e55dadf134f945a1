"""Selection as seen afterwards: what the picked sessions turned out to be, and to be worth.

A strategy picks before anybody knows what the LLM will make of a session. With the rankings at
hand, each picked session has an effect (see :mod:`alkd_ray.evaluation.composition`) and, by the
game that the strategies play (:mod:`alkd_ray.active.gains`), a gain: the session of difficulty
rank r gains ``r^-mu`` if it is effective, ``g_si r^-mu`` if similar, and loses ``g_in r^-mu`` if
incorrect. The mean over the picks is the realised gain; beside it stands what the policies of the
paper and of the exact solution guarantee for one pick, whatever the effects.

With the paper's mu of 10 the gain of rank 7,000 is 10^-38 of that of rank 1: the realised gain of
a selection that reaches the first ranks is that of a few sessions, often of one. How much of it the
first hundredth of the ranks carries, and how much its largest pick, is part of every row; so is the
mean worth of the picks with all ranks counted alike, which no single session decides.

Everything before :func:`collect` computes on arrays alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from alkd_ray import buying, pipeline, registry, selecting, stages
from alkd_ray import sessions as windows_of
from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact, paper
from alkd_ray.annotation.planning import Plan
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.evaluation.composition import CUTOFF, EFFECTS, compose, effects_of
from alkd_ray.evaluation.ranks import top_items
from alkd_ray.evaluation.statistics import LEVEL
from alkd_ray.pipeline import Engines
from alkd_ray.results import RunResult
from alkd_ray.stages import Silent
from alkd_ray.training import checkpoint
from alkd_ray.types import IntArray

HEAD = 0.01  # share of the ranks that are called the first ones
KINDS = (*EFFECTS, "unanswered")


@dataclass(frozen=True, slots=True)
class Scaled:
    """A number whose size may lie far outside that of floats.

    Attributes:
        sign: -1, 0 or 1.
        log10: of its size; ``-inf`` for 0.
    """

    sign: int
    log10: float

    @property
    def value(self) -> float:
        """As a float; 0 where it underflows."""
        return self.sign * 10.0**self.log10 if self.sign else 0.0

    @property
    def text(self) -> str:
        """Three digits and a power of ten: ``-3.14e-42``."""
        if not self.sign:
            return "0"
        power = math.floor(self.log10)
        digits = f"{10.0 ** (self.log10 - power):.2f}"
        if digits == "10.00":  # 9.997 rounds to the next power
            digits, power = "1.00", power + 1
        return f"{'-' if self.sign < 0 else ''}{digits}e{power:+03d}"


@dataclass(frozen=True, slots=True)
class Gained:
    """What picked sessions gained.

    Attributes:
        mean: gain of a picked and answered session, losses counted negative.
        head_share: part of all gains and losses, by size, that the first hundredth of the ranks
            carries; 0 where nothing was gained or lost.
        largest_share: part of the largest of them.
        worth: mean gain with all ranks counted alike (mu = 0).
    """

    mean: Scaled
    head_share: float
    largest_share: float
    worth: float


@dataclass(frozen=True, slots=True)
class SeedEffects:
    """One seed's selection.

    Attributes:
        seed: the seed.
        counts: kind (see :data:`KINDS`) -> selected sessions of that kind.
        mean_overlap: share of the student's first 10 items that is among the LLM's first 10.
        population: sessions to select from, N.
        gained: what the answered ones gained.
        guaranteed_paper: gain of one pick that the paper's policy guarantees.
        guaranteed_exact: the same of the exact policy.
        guaranteed_own: the same of the strategy's own policy by its own game, as the selection
            notes it; None for strategies without one.
    """

    seed: int
    counts: dict[str, int]
    mean_overlap: float
    population: int
    gained: Gained
    guaranteed_paper: Scaled
    guaranteed_exact: Scaled
    guaranteed_own: Scaled | None = None

    def share(self, kind: str) -> float:
        """Of the selected sessions, those of one kind."""
        return self.counts[kind] / max(sum(self.counts.values()), 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: the mean.
        half_width: of its 95% t-interval, which covers another training and another draw of the
            picks; None with one seed.
    """

    mean: float
    half_width: float | None

    @property
    def text(self) -> str:
        """``.123 ± .004``."""
        width = "" if self.half_width is None else f" ± {self.half_width:.3f}"
        return f"{self.mean:.3f}{width}"


@dataclass(frozen=True, slots=True)
class EffectsRow:
    """One setting over all its seeds.

    Attributes:
        name: of the setting.
        strategy: what picked.
        gains: the game by which gains are counted.
        by_seed: one for each seed.
    """

    name: str
    strategy: str
    gains: Gains
    by_seed: tuple[SeedEffects, ...]

    def share(self, kind: str) -> Spread:
        """Of the selected sessions, those of one kind."""
        return self.over_seeds(lambda one: one.share(kind))

    @property
    def realised(self) -> Scaled:
        """Mean over the seeds of the gain of a pick. The seed with the easiest catch decides it."""
        return mean_of([one.gained.mean for one in self.by_seed])

    @property
    def winning_seeds(self) -> int:
        """Seeds whose gain is above 0."""
        return sum(one.gained.mean.sign > 0 for one in self.by_seed)

    def over_seeds(self, value: Callable[[SeedEffects], float]) -> Spread:
        """Mean and interval of a number that each seed has."""
        return spread([value(one) for one in self.by_seed])


def spread(values: Sequence[float]) -> Spread:
    """Mean of R >= 1 values with the half width of its t-interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Spread(mean, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Spread(mean, error * float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)))


def mean_of(numbers: Sequence[Scaled]) -> Scaled:
    """The mean of R >= 1 numbers, added up in units of the largest, so that none underflows."""
    largest = max(number.log10 for number in numbers)
    if largest == -math.inf:
        return Scaled(0, -math.inf)
    total = math.fsum(n.sign * 10.0 ** (n.log10 - largest) for n in numbers if n.sign)
    return _scaled(total / len(numbers), largest)


def gained(ranks: IntArray, effects: IntArray, population: int, gains: Gains) -> Gained:
    """What R picked and answered sessions gained by the game of ``gains``.

    Args:
        ranks: ``[R]`` difficulty rank of each, 1..N.
        effects: ``[R]`` index into :data:`~alkd_ray.evaluation.composition.EFFECTS`.
        population: N.
        gains: mu, g_si and g_in.
    """
    worth = np.array([1.0, gains.g_si, -gains.g_in])[effects]  # [R]
    counts = worth != 0
    if not counts.any():
        return Gained(Scaled(0, -math.inf), 0.0, 0.0, 0.0)
    logs = -gains.mu * np.log10(ranks)  # [R]
    unit = float(logs[counts].max())
    parts = np.where(counts, worth * 10.0 ** np.minimum(logs - unit, 0.0), 0.0)  # [R]
    sizes = np.abs(parts)
    all_sizes = math.fsum(sizes)
    head = ranks <= math.ceil(HEAD * population)
    return Gained(
        mean=_scaled(math.fsum(parts) / len(ranks), unit),
        head_share=math.fsum(sizes[head]) / all_sizes,
        largest_share=float(sizes.max()) / all_sizes,
        worth=float(worth.mean()),
    )


def ranks_in_pool(pool_ranks: IntArray, ranks: IntArray) -> IntArray:
    """``[R]``, the place from 1 of each of ``ranks`` (``[R]``) among ``pool_ranks`` (``[N]``).

    A selection may be restricted to some sessions, which are then ranked anew from 1.
    """
    return np.searchsorted(np.sort(pool_ranks), ranks) + 1


def _scaled(value: float, log10_of_unit: float = 0.0) -> Scaled:
    """``value`` in units of a power of ten."""
    if not value:
        return Scaled(0, -math.inf)
    return Scaled(int(math.copysign(1, value)), math.log10(abs(value)) + log10_of_unit)


# From here on stages are walked and their outputs are read.


def collect(
    configs: Mapping[str, RunConfig], root: Path, gains: Gains | None = None
) -> list[EffectsRow]:
    """A row for each config whose method reads rankings; the others select nothing.

    Each run is walked up to its annotation. What a sweep or a run below ``root`` has made is found
    there, recordings are replayed, and nothing is ever sent.

    Args:
        configs: name of the setting -> its config.
        root: the run root.
        gains: the game by which all are judged; default: that of each strategy's own options,
            and the paper's for strategies without.

    Raises:
        InputError: bad data, or rankings that would have to be bought first.
    """
    return [
        of_run(name, config, root, gains)
        for name, config in configs.items()
        if pipeline.needs_rankings(config)
    ]


def of_run(name: str, config: RunConfig, root: Path, gains: Gains | None = None) -> EffectsRow:
    """The row of one config; see :func:`collect`."""
    engines = Engines(approve=_nothing_is_bought)
    result = pipeline.run(config, root, Silent(), engines, until="annotation")
    context = stages.Context(config, root, Silent())
    gains = gains or gains_of(config)
    return EffectsRow(
        name,
        config.selection.strategy,
        gains,
        tuple(_of_seed(context, result, gains, seed) for seed in config.seeds),
    )


def gains_of(config: RunConfig) -> Gains:
    """The game that the config's strategy plays; the paper's where it plays none."""
    chosen = config.selection
    options = registry.options(
        "strategies", chosen.strategy, chosen.options, "selection.options"
    ).model_dump()
    names = ("mu", "ratio", "g_si", "g_in")
    return Gains(**{name: options[name] for name in names if name in options})


def _of_seed(context: stages.Context, result: RunResult, gains: Gains, seed: int) -> SeedEffects:
    assert result.annotation is not None
    sessions = stages.load_dataset(result.dataset).sessions
    selection = selecting.load_selection(result.by_seed["selection"][seed])
    ids, rankings = result.annotation.rankings(seed)
    answered = windows_of.take(sessions, windows_of.rows_of_ids(sessions, ids))
    student = checkpoint.load(result.by_seed["student"][seed].folder / "checkpoint")
    top = top_items(student, answered, context.config.data.window, CUTOFF)
    unanswered = len(selection.session_ids) - len(ids)
    found = compose(rankings, top, answered.targets, unanswered)
    scores = pq.read_table(result.by_seed["difficulty"][seed].folder / "difficulty.parquet")
    all_ids, all_ranks = scores["session_id"].to_numpy(), scores["rank"].to_numpy()
    recorded = buying.recorded_ids(context.config)
    pool = all_ranks if recorded is None else all_ranks[np.isin(all_ids, recorded)]
    order = np.argsort(all_ids)
    own = order[np.searchsorted(all_ids, ids, sorter=order)]
    ranks = ranks_in_pool(pool, all_ranks[own])
    policies = [solve(gains, len(pool)) for solve in (paper, exact)]
    guaranteed_paper, guaranteed_exact = (
        _guaranteed(policy.min_gain, policy.log_min_gain) for policy in policies
    )
    noted = selection.notes.get("guaranteed_gain")
    return SeedEffects(
        seed,
        {kind: int(getattr(found, kind)) for kind in KINDS},
        found.mean_overlap,
        len(pool),
        gained(ranks, effects_of(rankings, top, answered.targets), len(pool), gains),
        guaranteed_paper,
        guaranteed_exact,
        None if noted is None else _scaled(float(noted)),
    )


def _guaranteed(gain: float, log_gain: float) -> Scaled:
    """A policy's guarantee; the logarithm is there where the gain itself may have underflowed."""
    return Scaled(1, log_gain / math.log(10)) if log_gain > -math.inf else _scaled(gain)


def _nothing_is_bought(planned: Plan) -> None:
    raise InputError(
        f"{planned.to_send:,} rankings are not there yet and would have to be bought; run the "
        "config or its sweep below this root first"
    )
