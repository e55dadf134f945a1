"""What a sweep is made of: settings, their trials, and what became of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from alkd_ray.config import canonical_hash

TrialStatus = Literal["complete", "dropped", "failed"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the search space.

    Attributes:
        point: dotted field -> value.
    """

    point: dict[str, Any]

    @property
    def id(self) -> str:
        """From the point alone, so that a retry is the same setting."""
        return canonical_hash(self.point, 8)

    @property
    def label(self) -> str:
        """For people: ``budget=100 strategy=random``."""
        names = short_names(list(self.point))
        return " ".join(f"{names[axis]}={value_text(v)}" for axis, v in self.point.items())


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting with a seed, and the keys of what was made for it beforehand.

    Attributes:
        point: of the setting.
        seed: the run's seed.
        dataset: key of the imported sessions.
        teacher: key of the conventional teacher.
        rankings: key of the bought rankings; "" where the method reads none.
        training: hash of how its student is trained and distilled. The sweep's id does not hold
            it: defaults and presets may be others than when the sweep was begun.
    """

    point: dict[str, Any]
    seed: int
    dataset: str
    teacher: str
    rankings: str = ""
    training: str = ""

    @property
    def setting(self) -> Setting:
        """The setting."""
        return Setting(self.point)

    @property
    def id(self) -> str:
        """``<setting>-<seed>``."""
        return f"{self.setting.id}-{self.seed}"

    @property
    def inputs(self) -> str:
        """Hash of all that decides its result: more may have been bought since it was run."""
        return canonical_hash([self.dataset, self.teacher, self.rankings, self.training], 8)


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What became of a trial; a line of the journal.

    Attributes:
        trial: its id.
        point: of its setting.
        seed: its seed.
        inputs: see :attr:`Trial.inputs`.
        status: ``dropped`` = the scheduler ended it early.
        metrics: on the validation sessions; {} unless complete.
        best_step: step of the best weights.
        steps: steps trained.
        rungs: step -> the training's metric there, as far as the scheduler looked.
        student: key of the pretrained student.
        distilled: key of the distilled student.
        seconds: of work, 0 for what was there already.
        reused: all of it was there already.
        node: where it ran.
        reason: why it was dropped or failed.
    """

    trial: str
    point: dict[str, Any]
    seed: int
    inputs: str
    status: TrialStatus
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    steps: int = 0
    rungs: dict[int, float] = field(default_factory=dict)
    student: str = ""
    distilled: str = ""
    seconds: float = 0.0
    reused: bool = False
    node: str = ""
    reason: str = ""

    @property
    def setting(self) -> Setting:
        """The setting."""
        return Setting(self.point)

    def as_json(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TrialRecord:
        """From a line of the journal; JSON has no whole numbers as names."""
        rungs = {int(step): value for step, value in found["rungs"].items()}
        return cls(**{**found, "rungs": rungs})


def value_text(value: Any) -> str:
    """A value of an axis, for people; on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def short_names(axes: Sequence[str]) -> dict[str, str]:
    """Dotted field -> the shortest end of it that no other axis has."""
    found = {}
    for axis in axes:
        parts = axis.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        found[axis] = next(
            (e for e in ends if sum(a == e or a.endswith(f".{e}") for a in axes) == 1), axis
        )
    return {axis: value_text(name) for axis, name in found.items()}
