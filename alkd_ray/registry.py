"""Name -> plug-in. No state, no decorators: a plug-in is found by the name of its file.

A room is a package; every module in it whose name has no leading underscore is one plug-in and
defines exactly one public class with a nested pydantic ``Config``. Hyphens and underscores in
names are the same. ``package.module:Class`` names a plug-in from outside.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from alkd_ray.errors import InputError

# Fields in which people put secrets by mistake: their values are never shown.
MAY_HOLD_SECRETS = ("api_key_env", "base_url", "books", "storage")
ROOMS = ("sources", "recommenders", "strategies", "llm_teachers", "distillation")


class PluginConfig(BaseModel):
    """Base of the plug-ins' ``Config``: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def names(room: str) -> list[str]:
    """The plug-ins of ``room``, by file name, with hyphens, sorted. Imports none of them."""
    if room not in ROOMS:
        raise InputError(f"there is no room {room!r}; rooms: {', '.join(ROOMS)}")
    folder = Path(__file__).parent / room
    return sorted(path.stem.replace("_", "-") for path in folder.glob("[a-z]*.py"))


def find(room: str, name: str) -> type[Any]:
    """The class of plug-in ``name`` of ``room``.

    Raises:
        InputError: no such plug-in; the message lists those there are.
    """
    if ":" in name:
        return _find_outside(room, name)
    if name.replace("_", "-") not in names(room):
        raise InputError(
            f"unknown name {name!r} in {room}; known: {', '.join(names(room))} "
            "(or package.module:Class)"
        )
    module = importlib.import_module(f"alkd_ray.{room}.{name.replace('-', '_')}")
    classes = [
        member
        for member_name, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
        and not member_name.startswith("_")
        and "Config" in vars(member)
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define one public class with a Config")
    return classes[0]


def _find_outside(room: str, name: str) -> type[Any]:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot load {name!r} for {room}: {error}") from error
    if not hasattr(found, "Config"):
        raise InputError(f"cannot load {name!r} for {room}: it has no nested class Config")
    return found


def options(room: str, name: str, given: dict[str, Any], where: str = "") -> PluginConfig:
    """``given`` validated by the plug-in's own ``Config``, defaults filled in.

    Args:
        room: the plug-in's room.
        name: the plug-in.
        given: the options as read from a config.
        where: the path of the field that holds them, for the message.

    Raises:
        InputError: naming the field and what is allowed.
    """
    config_class: type[PluginConfig] = find(room, name).Config
    try:
        return config_class(**given)
    except ValidationError as error:
        raise InputError(explain(error, where or f"{room}.{name}", config_class)) from error


def build(room: str, name: str, given: dict[str, Any], **more: Any) -> Any:
    """A plug-in made from validated options, as flat keyword values, and ``more``."""
    validated = options(room, name, given)
    values = {field: getattr(validated, field) for field in type(validated).model_fields}
    return find(room, name)(**values, **more)


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """One line a field: its path, what is wrong with it, what is allowed."""
    lines = []
    for problem in error.errors():
        path = ".".join([part for part in [where] if part] + [str(p) for p in problem["loc"]])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            around = _model_at(model, problem["loc"][:-1])
            known = f"; known: {', '.join(around.model_fields)}" if around else ""
            message = f"no such field{known}"
        else:
            is_of_a_field = problem["loc"] and problem["type"] != "missing"
            is_shown = is_of_a_field and problem["loc"][-1] not in MAY_HOLD_SECRETS
            message += f" (it is {problem['input']!r})" if is_shown else ""
        lines.append(f"{path}: {message}")
    return "; ".join(lines)


def _model_at(model: type[BaseModel] | None, path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model of the fields below ``path``; None where that is no plain model."""
    for name in path:
        field = model.model_fields.get(str(name)) if model is not None else None
        inner = field.annotation if field is not None else None
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    return model
