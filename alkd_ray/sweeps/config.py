"""A sweep: one run's config, and the fields that vary over its trials.

    name: budgets
    run: hetrec_fpmc.yaml          # a config file beside this one, or its fields
    seeds: [1, 2, 3]
    over:
      selection.budget: {grid: [100, 300, 1000]}
      student.dim: {choice: [5, 10, 20]}
      student.training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
      backbone:                                    # a name of your own, for fields that go together
        cases:
          fpmc: {teacher.backbone: fpmc, student.backbone: fpmc}
          stamp: {teacher.backbone: stamp, student.backbone: stamp}
    samples: 8

Grids and cases are crossed; the other kinds are drawn, ``samples`` times for each point of the
grid. With ``search: optuna`` Optuna chooses ``samples`` settings, one after another, by what it was
told of those before.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alkd_ray import config as configs
from alkd_ray import registry
from alkd_ray.config import RunConfig, canonical_hash
from alkd_ray.errors import InputError
from alkd_ray.seeds import numpy_stream

OWN = "sweep."  # overrides that begin so are for the sweep's own fields
# Parts of a run's config that hold for all settings -> what to vary instead.
OF_THE_WHOLE = {
    "budget": "all settings are bought under one cap; vary selection.budget, the sessions paid for",
    "seeds": "every setting has the same; give the sweep's own field seeds",
    "name": "every setting has the sweep's; a case of an axis may have any name",
    **dict.fromkeys(("books", "storage"), "it says where things lie, which changes no result"),
    "tracking": "all settings are one sweep in MLflow, and none of it changes a result",
}


class Axis(BaseModel):
    """How one field varies: exactly one of these."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    grid: list[Any] | None = Field(default=None, min_length=1, description="each of these")
    cases: dict[str, dict[str, Any]] | None = Field(
        default=None,
        min_length=1,
        description="each of these: name -> the dotted fields that it sets; the axis has any name",
    )
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
            raise ValueError(
                f"give one of grid, cases, choice, uniform, loguniform, range, not {given}"
            )
        low, high = self.uniform or self.loguniform or self.range or (0, 1)
        if low > high or (self.loguniform and low <= 0):
            raise ValueError(f"{given[0]}: [{low}, {high}] is no range")
        return self

    @property
    def crossed(self) -> list[Any] | None:
        """The values of a kind that is crossed with the others."""
        return list(self.cases) if self.cases is not None else self.grid

    @property
    def listed(self) -> list[Any] | None:
        """All values, where they are listed."""
        return self.crossed or self.choice

    def fields(self, name: str, value: Any) -> dict[str, Any]:
        """The dotted fields that a value of the axis ``name`` sets."""
        return {name: value} if self.cases is None else self.cases[value]

    def all_fields(self, name: str) -> set[str]:
        """The dotted fields that any value of the axis ``name`` sets."""
        return {name} if self.cases is None else set().union(*self.cases.values())

    def draw(self, rng: np.random.Generator) -> Any:
        """One value; of a list, one of its values."""
        if self.listed is not None:
            return self.listed[int(rng.integers(len(self.listed)))]
        if self.range is not None:
            return int(rng.integers(self.range[0], self.range[1], endpoint=True))
        if self.loguniform is not None:
            return float(np.exp(rng.uniform(*np.log(self.loguniform))))
        assert self.uniform is not None
        return float(rng.uniform(*self.uniform))


class AshaConfig(BaseModel):
    """When a trial's training is ended early: asynchronous successive halving."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_step: int = Field(default=100, ge=1, description="training step of the first rung")
    reduction: float = Field(
        default=3.0, gt=1, description="a rung lets one of so many go on; the next is that far up"
    )


class SweepConfig(BaseModel):
    """The file of a sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    run: str | dict[str, Any] = Field(description="a config file, or its fields")
    seeds: list[int] | None = Field(default=None, min_length=1, description="default: the run's")
    over: dict[str, Axis] = Field(
        description="dotted field, or a name of cases -> how it varies", min_length=1
    )
    search: Literal["grid", "random", "optuna"] = Field(
        default="random",
        description="grid: every axis is a grid; random: grids crossed, the others drawn; optuna: "
        "Optuna chooses all of them",
    )
    samples: int = Field(
        default=1, ge=1, description="draws for each point of the grid; optuna: settings in all"
    )
    seed: int = Field(default=1, ge=0, description="of the draws")
    metric: str = Field(
        default="ndcg@10",
        pattern=r"^(recall|ndcg|mrr)@[1-9]\d*$",
        description="on the validation sessions; its mean over the seeds ranks the settings",
    )
    scheduler: Literal["none", "asha"] = "none"
    asha: AshaConfig = AshaConfig()
    finalists: int | Literal["all"] = Field(
        default=1, description="best settings whose test metrics are computed, after the search"
    )
    engine: Literal["ray", "local"] = Field(
        default="ray", description="Ray Tune, or one trial after another in this process"
    )
    pack: int | None = Field(
        default=None, ge=1, description="trials that an actor is given at once; default: measured"
    )
    trial_cpus: float = Field(default=1.0, gt=0, description="CPUs of an actor")
    trial_gpus: float = Field(default=0.0, ge=0, description="GPUs of an actor")

    @model_validator(mode="after")
    def _fits(self) -> SweepConfig:
        drawn = sorted(name for name, axis in self.over.items() if axis.crossed is None)
        if self.search == "grid" and drawn:
            raise ValueError(f"search grid takes grids and cases alone, not the axes {drawn}")
        for name, axis in self.over.items():
            for field in sorted(axis.all_fields(name)):
                if why := OF_THE_WHOLE.get(field.split(".")[0]):
                    raise ValueError(f"over.{name}: {field} cannot vary: {why}")
        for (name, axis), (other, beside) in itertools.combinations(self.over.items(), 2):
            if axis.cases and beside.cases:
                continue  # of two cases, which have names, the later one may correct the other
            if found := _clash(axis.all_fields(name), beside.all_fields(other)):
                raise ValueError(
                    f"over.{name} sets {found[0]} and over.{other} sets {found[1]}: the later one "
                    "undoes the other, whose values would be shown for what they are not; vary "
                    "each field in one axis, or give both axes cases"
                )
        if isinstance(self.finalists, int) and self.finalists < 1:
            raise ValueError("finalists: give a number from 1, or all")
        return self


def _clash(earlier: Iterable[str], later: Iterable[str]) -> tuple[str, str] | None:
    """Two fields of which the later one is the same, or has the earlier one as a part."""
    for one, other in itertools.product(sorted(earlier), sorted(later)):
        if f"{one}.".startswith(f"{other}."):
            return one, other
    return None


# What decides neither a trial's result nor which trials there are.
HOW_TO_RUN = {"engine", "pack", "trial_cpus", "trial_gpus", "finalists"}
WHERE_THINGS_LIE = {"books", "storage"}


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep that was read: its file's content, and the run that its settings vary.

    Attributes:
        config: the file.
        base: the fields of the run, the sweep's name and seeds among them.
        where: the file's name, for errors.
    """

    config: SweepConfig
    base: dict[str, Any]
    where: str

    @property
    def sweep_id(self) -> str:
        """Name and content; the same content is the same sweep, however it is run."""
        varied = self.config.model_dump(exclude=HOW_TO_RUN | {"run"})
        run = {name: value for name, value in self.base.items() if name not in WHERE_THINGS_LIE}
        return f"{self.config.name}-{canonical_hash([varied, run], 8)}"

    def kept_at(self, storage: str) -> Sweep:
        """The same sweep, its outputs in ``storage``: other nodes need not be told of it."""
        return replace(self, base={**self.base, "storage": storage})

    @property
    def seeds(self) -> list[int]:
        """Of every setting."""
        return self.of({}).seeds

    def of(self, point: Mapping[str, Any]) -> RunConfig:
        """The config of one setting: ``point`` laid on the run.

        Raises:
            InputError: naming the sweep's file and the point.
        """
        given = copy.deepcopy(self.base)
        for name, value in point.items():
            for field, wanted in self.config.over[name].fields(name, value).items():
                configs.place(given, field, wanted)
        return configs.make(given, where=f"{self.where}, setting {dict(point)}")


def load(path: str | Path, overrides: list[str] | None = None) -> Sweep:
    """The sweep of a file.

    All settings have the sweep's name, and so one budget.

    Args:
        path: a YAML file.
        overrides: ``key=value`` for the run's fields, below the axes; ``sweep.key=value`` for the
            sweep's own, e.g. ``sweep.finalists=3``.

    Raises:
        InputError: naming the file, the field and what is allowed.
    """
    file = Path(path)
    given = configs.read(file)  # as a run's: with ${NAME:-default}
    own = [text.removeprefix(OWN) for text in overrides or [] if text.startswith(OWN)]
    try:
        config = SweepConfig.model_validate(configs.overridden(given, own))
    except ValidationError as error:
        raise InputError(f"{file}: {registry.explain(error, '', SweepConfig)}") from error
    base = config.run
    if isinstance(base, str):
        base = configs.read(file.parent / base if (file.parent / base).is_file() else base)
    base = configs.merge(base, {"name": config.name})
    if config.seeds is not None:
        base["seeds"] = config.seeds
    others = [text for text in overrides or [] if not text.startswith(OWN)]
    _check_overrides(others, own)
    return Sweep(config, configs.overridden(base, others), str(file))


def _check_overrides(others: list[str], own: list[str]) -> None:
    """Refuses fields of the run that are the sweep's."""
    fields = {text.partition("=")[0] for text in others}
    if "name" in fields:
        raise InputError("name=...: the settings of a sweep have its name; give sweep.name=...")
    if "seeds" in fields and any(text.startswith("seeds=") for text in own):
        raise InputError("seeds=... and sweep.seeds=...: give one of them, both say the same")


def points(sweep: SweepConfig) -> list[dict[str, Any]]:
    """Field -> value of each setting: the grid crossed with the draws."""
    grids = {name: axis.crossed for name, axis in sweep.over.items() if axis.crossed is not None}
    drawn = {name: axis for name, axis in sweep.over.items() if axis.crossed is None}
    rng = numpy_stream(sweep.seed, "sweep")
    found = []
    for values in itertools.product(*grids.values()):
        for _ in range(sweep.samples if drawn else 1):
            draws = {name: axis.draw(rng) for name, axis in drawn.items()}
            found.append(dict(zip(grids, values, strict=True)) | draws)
    return found
