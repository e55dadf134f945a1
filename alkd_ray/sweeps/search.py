"""Which settings a sweep tries: all of a list, or those that Optuna asks for, one after another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from alkd_ray.errors import InputError
from alkd_ray.seeds import derive, numpy_stream
from alkd_ray.sweeps.config import Axis, SweepConfig, points
from alkd_ray.sweeps.records import Setting

if TYPE_CHECKING:
    import optuna

# Known settings in a row that TPE may ask for, until one is drawn at random.
REPETITIONS = 50
# Draws in a row that are all known: then the space has no others.
DRAWS = 10_000


class Search(Protocol):
    """Asked for settings, and told how they did."""

    def next(self) -> Setting | None:
        """A setting that was not given before; None = none at present, or no more."""
        ...

    def tell(self, setting: Setting, value: float | None) -> None:
        """The mean over the seeds of a setting's metric; None = it has none."""
        ...

    @property
    def left(self) -> int:
        """Settings that are still to come."""
        ...


def settings_of(config: SweepConfig) -> list[Setting]:
    """All points of a sweep, grids crossed and draws made, in order; equal ones once."""
    return list({setting.id: setting for setting in map(Setting, points(config))}.values())


class Listed:
    """Given settings, in order."""

    def __init__(self, settings: Iterable[Setting]) -> None:
        self._left = list(settings)[::-1]

    def next(self) -> Setting | None:
        """See :class:`Search`."""
        return self._left.pop() if self._left else None

    def tell(self, setting: Setting, value: float | None) -> None:
        """Changes nothing."""

    @property
    def left(self) -> int:
        """See :class:`Search`."""
        return len(self._left)


class OptunaSearch:
    """Optuna's tree-structured Parzen estimator (Akiba et al., KDD 2019), seeded.

    What it asks for next depends on what it was told by then: with several actors at once, that
    is, on their speed. Every setting is another one; where TPE only comes back to known ones (a
    small space, or one that it has made up its mind about), others are drawn at random. So there
    are as many as were wanted, or all that the space has, however often the search is begun again.
    """

    def __init__(self, config: SweepConfig, known: Iterable[tuple[Setting, float | None]]) -> None:
        """Begins a study, or goes on with one.

        Args:
            config: the sweep.
            known: settings of an earlier process; those without a value come first.
        """
        optuna = _optuna()
        known = list(known)
        # Another process must not draw again what the earlier one drew.
        seed = derive(config.seed, "optuna", len(known)) % 2**32 if known else config.seed
        self._rng = numpy_stream(config.seed, "optuna, at random", len(known))
        self._axes = config.over
        self._samples = config.samples
        self._space = {name: _distribution(axis) for name, axis in config.over.items()}
        self._encoded = {name: _Encoded(axis) for name, axis in config.over.items()}
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        )
        self._asked: dict[str, optuna.Trial] = {}
        self._given: set[str] = set()
        for setting, value in known:
            self._add(setting, value)

    def next(self) -> Setting | None:
        """See :class:`Search`."""
        for _ in range(REPETITIONS if self.left else 0):
            trial = self._study.ask(self._space)
            setting = Setting(
                {name: self._encoded[name].decode(trial.params[name]) for name in self._space}
            )
            if setting.id not in self._given:
                self._given.add(setting.id)
                self._asked[setting.id] = trial
                return setting
            self._study.tell(trial, state=_optuna().trial.TrialState.FAIL)
        for _ in range(DRAWS if self.left else 0):
            point = {name: axis.draw(self._rng) for name, axis in self._axes.items()}
            if Setting(point).id not in self._given:
                self._add(Setting(point), None)
                return self.next()
        self._samples = len(self._given)  # there are no others
        return None

    def tell(self, setting: Setting, value: float | None) -> None:
        """See :class:`Search`."""
        trial = self._asked.pop(setting.id, None)
        if trial is None:
            return
        state = _optuna().trial.TrialState
        if value is None or not math.isfinite(value):
            self._study.tell(trial, state=state.FAIL)
        else:
            self._study.tell(trial, value)

    @property
    def left(self) -> int:
        """See :class:`Search`."""
        return max(self._samples - len(self._given), 0)

    def _add(self, setting: Setting, value: float | None) -> None:
        optuna = _optuna()
        params = {name: self._encoded[name].encode(v) for name, v in setting.point.items()}
        if value is None:
            self._study.enqueue_trial(params)
            return
        self._given.add(setting.id)
        self._study.add_trial(
            optuna.trial.create_trial(params=params, distributions=self._space, value=value)
        )


class _Encoded:
    """Optuna's categories are plain values; those of a grid or choice may be lists or mappings."""

    def __init__(self, axis: Axis) -> None:
        self.values = axis.listed

    def decode(self, value: Any) -> Any:
        return value if self.values is None else self.values[value]

    def encode(self, value: Any) -> Any:
        return value if self.values is None else self.values.index(value)


def purchases(config: SweepConfig, wanted: Iterable[str]) -> list[dict[str, Any]]:
    """All points of the axes in ``wanted``, those that decide what is bought.

    Raises:
        InputError: one of them is no list, so that what will be asked is not known beforehand.
    """
    axes = {name: config.over[name] for name in wanted}
    for name, axis in axes.items():
        if axis.listed is None:
            raise InputError(
                f"over.{name}: with search optuna, a field that decides what is bought must be a "
                "grid, cases or a choice, so that all of it can be bought, and priced, beforehand"
            )
    return [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*(axis.listed or [] for axis in axes.values()))
    ]


def _distribution(axis: Axis) -> Any:
    distributions = _optuna().distributions
    if axis.uniform is not None:
        return distributions.FloatDistribution(*axis.uniform)
    if axis.loguniform is not None:
        return distributions.FloatDistribution(*axis.loguniform, log=True)
    if axis.range is not None:
        return distributions.IntDistribution(*axis.range)
    assert axis.listed is not None
    return distributions.CategoricalDistribution(tuple(range(len(axis.listed))))


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def search_of(config: SweepConfig, known: Iterable[tuple[Setting, float | None]]) -> Search:
    """The search that a sweep names; ``known`` as for :class:`OptunaSearch`."""
    return OptunaSearch(config, known) if config.search == "optuna" else Listed(settings_of(config))
