"""A sweep: one run's config, and the fields that vary over its trials.

    name: budgets
    run: hetrec_fpmc.yaml          # a config file beside this one, or its fields
    seeds: [1, 2, 3]
    over:
      selection.budget: {grid: [100, 300, 1000]}
      student.dim: {choice: [5, 10, 20]}
      student.training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
    samples: 8

Grids are crossed; the other kinds are drawn, ``samples`` times for each point of the grid.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alkd_ray import config as configs
from alkd_ray import registry
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.seeds import numpy_stream


class Axis(BaseModel):
    """How one field varies: exactly one of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grid: list[Any] | None = Field(default=None, min_length=1, description="each of these")
    choice: list[Any] | None = Field(default=None, min_length=1, description="one of these, drawn")
    uniform: tuple[float, float] | None = Field(default=None, description="drawn in [low, high)")
    loguniform: tuple[float, float] | None = Field(
        default=None, description="the same, evenly on a logarithmic scale"
    )
    range: tuple[int, int] | None = Field(
        default=None, description="a whole number drawn from low..high, both included"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Axis:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of grid, choice, uniform, loguniform, range, not {given}")
        low, high = self.uniform or self.loguniform or self.range or (0, 1)
        if low > high or (self.loguniform and low <= 0):
            raise ValueError(f"{given[0]}: [{low}, {high}] is no range")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        """One value of a kind that is drawn."""
        if self.choice is not None:
            return self.choice[int(rng.integers(len(self.choice)))]
        if self.range is not None:
            return int(rng.integers(self.range[0], self.range[1], endpoint=True))
        if self.loguniform is not None:
            return float(np.exp(rng.uniform(*np.log(self.loguniform))))
        assert self.uniform is not None
        return float(rng.uniform(*self.uniform))


class SweepConfig(BaseModel):
    """The file of a sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    run: str | dict[str, Any] = Field(description="a config file, or its fields")
    seeds: list[int] | None = Field(default=None, min_length=1, description="default: the run's")
    over: dict[str, Axis] = Field(description="dotted field -> how it varies", min_length=1)
    samples: int = Field(default=1, ge=1, description="draws for each point of the grid")
    seed: int = Field(default=1, ge=0, description="of the draws")


def load(
    path: str | Path, overrides: list[str] | None = None
) -> tuple[SweepConfig, list[RunConfig]]:
    """The sweep of a file, and the config of each of its trials.

    All trials have the sweep's name, and so one budget.

    Args:
        path: a YAML file.
        overrides: ``key=value`` for the run's fields, under the axes.

    Raises:
        InputError: naming the file, the field and what is allowed.
    """
    file = Path(path)
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read as YAML: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"{file}: a sweep is a mapping of fields")
    try:
        sweep = SweepConfig.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{file}: {registry.explain(error, '', SweepConfig)}") from error
    base = sweep.run
    if isinstance(base, str):
        base = configs.read(file.parent / base if (file.parent / base).is_file() else base)
    trials = [
        configs.make(_with(sweep, base, point, overrides), where=f"{file}, trial {point}")
        for point in points(sweep)
    ]
    return sweep, trials


def points(sweep: SweepConfig) -> list[dict[str, Any]]:
    """Field -> value of each trial: the grid crossed with the draws."""
    grids = {name: axis.grid for name, axis in sweep.over.items() if axis.grid is not None}
    drawn = {name: axis for name, axis in sweep.over.items() if axis.grid is None}
    rng = numpy_stream(sweep.seed, "sweep")
    found = []
    for values in itertools.product(*grids.values()):
        for _ in range(sweep.samples if drawn else 1):
            draws = {name: axis.draw(rng) for name, axis in drawn.items()}
            found.append(dict(zip(grids, values, strict=True)) | draws)
    return found


def _with(
    sweep: SweepConfig, base: dict[str, Any], point: dict[str, Any], overrides: list[str] | None
) -> dict[str, Any]:
    given = configs.merge(base, {"name": sweep.name})
    if sweep.seeds is not None:
        given["seeds"] = sweep.seeds
    given = configs.overridden(given, overrides or [])
    for name, value in point.items():
        configs.place(given, name, value)
    return given
