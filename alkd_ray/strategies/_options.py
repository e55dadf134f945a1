"""The options of the strategies that pick by a policy over gains."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from alkd_ray.active.gains import Gains
from alkd_ray.errors import InputError
from alkd_ray.registry import PluginConfig


class GainOptions(PluginConfig):
    """The game: see :class:`alkd_ray.active.gains.Gains`."""

    mu: float = Field(10.0, description="the gain of difficulty rank r is r^-mu; 0 to 50")
    ratio: tuple[float, float, float] = Field(
        (1.0, 5.0, 4.0), description="effective : similar : incorrect sessions, as a list"
    )
    g_si: float = Field(0.5, description="gain of a similar session, as a part of an effective's")
    g_in: float = Field(0.5, description="loss of an incorrect one, as a part of an effective's")

    @field_validator("ratio", mode="before")
    @classmethod
    def _list_or_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(value.split(":"))
        if isinstance(value, int | float):
            # YAML reads a bare 1:5:4 as a number to base 60.
            raise ValueError("write the ratio as a list, e.g. [1, 5, 4], or quoted, '1:5:4'")
        return value

    @model_validator(mode="after")
    def _playable(self) -> GainOptions:
        try:
            Gains(self.mu, self.ratio, self.g_si, self.g_in)
        except InputError as error:
            raise ValueError(str(error)) from error
        return self
