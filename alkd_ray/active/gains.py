"""What a session is worth for distillation, by its difficulty rank and by the LLM's effect on it.

Du et al., AAAI 2025, "Expected gain of distillation" and "Implementation Details".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alkd_ray.errors import InputError

MAX_MU = 50.0


@dataclass(frozen=True, slots=True)
class EffectCounts:
    """How many of the sessions have each effect; which ones is not known.

    Attributes:
        effective: k_ef, ranked right by the LLM where conventional recommenders fail.
        similar: k_si, ranked as the student ranks them.
        incorrect: k_in, ranked wrong.
    """

    effective: int
    similar: int
    incorrect: int


@dataclass(frozen=True, slots=True)
class Gains:
    """Gains in closed form: the session of rank r gains, or loses, in proportion to ``r^-mu``.

    Effective: ``g_ef(r) = r^-mu``; similar: ``g_si * r^-mu``; incorrect: ``-g_in * r^-mu``.

    Attributes:
        mu: how fast the gain falls with the rank, 0 to 50.
        ratio: shares of effective, similar and incorrect sessions, to any common scale.
        g_si: gain of a similar session as a part of that of an effective one, 0 to 1.
        g_in: loss of an incorrect session as a part of the gain of an effective one, 0 to 1.

    Raises:
        InputError: a value outside its limits, or g_si and g_in both 0 (Definition 1 divides by
            their sum).
    """

    mu: float = 10.0
    ratio: tuple[float, float, float] = (1.0, 5.0, 4.0)
    g_si: float = 0.5
    g_in: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.mu <= MAX_MU:
            raise InputError(f"mu is {self.mu}, it must lie between 0 and {MAX_MU:g}")
        usable = all(math.isfinite(share) and share >= 0 for share in self.ratio)
        if len(self.ratio) != 3 or not usable or sum(self.ratio) <= 0:
            raise InputError(
                f"ratio is {self.ratio}, it must be three numbers (effective, similar, incorrect), "
                "none negative and not all 0"
            )
        for name, value in (("g_si", self.g_si), ("g_in", self.g_in)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}, it must lie between 0 and 1")
        if self.g_si + self.g_in == 0:
            raise InputError("g_si and g_in are both 0, one of them must be above 0")

    def counts(self, population: int) -> EffectCounts:
        """The ratio as whole sessions of ``population``.

        The sum of all sessions that are not effective, and the incorrect among them, are rounded
        to the nearest whole number, halves up; the others are what is left. So the counts sum to
        the population, each is off by less than one, and none jumps when a session is taken away.
        """
        effective, similar, incorrect = self.ratio
        total = effective + similar + incorrect
        k_in = _nearest(population * incorrect / total, population)
        not_effective = _nearest(population * (similar + incorrect) / total, population)
        return EffectCounts(population - not_effective, not_effective - k_in, k_in)

    def two_effects(self) -> Gains:
        """The game of Baykal et al. (2023): correct (effective or similar, gain 1) or incorrect."""
        effective, similar, incorrect = self.ratio
        return Gains(self.mu, (effective + similar, 0.0, incorrect), 1.0, self.g_in)


def _nearest(value: float, limit: int) -> int:
    return min(math.floor(value + 0.5), limit)
