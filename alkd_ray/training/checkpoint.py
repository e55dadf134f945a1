"""Checkpoints: ``weights.safetensors`` and ``config.json`` in a folder; no pickles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import isfinite, nn

from alkd_ray import __version__, artifacts, registry
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import torch_stream

_WEIGHTS = "weights.safetensors"
_CONFIG = "config.json"
_FIELDS = {"backbone": str, "options": dict, "dim": int, "num_items": int}


def save(
    folder: Path,
    backbone: Backbone,
    *,
    backbone_name: str,
    options: Mapping[str, Any],
    dim: int,
    num_items: int,
    metrics: Mapping[str, float],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``folder`` under a temporary name and renames it, so that what exists is whole.

    Args:
        folder: where to; an older checkpoint there is replaced.
        backbone: the model, also a torch module.
        backbone_name: its name in the room of recommenders.
        options: its plug-in options.
        dim: size of its embeddings.
        num_items: N.
        metrics: what it reached on validation.
        extra: further facts for the reader, JSON-able.
    """
    from safetensors.torch import save_file

    weights = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in cast(nn.Module, backbone).state_dict().items()
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(weights, temporary / _WEIGHTS)
        artifacts.write_json(
            temporary / _CONFIG,
            {
                "backbone": backbone_name,
                "options": dict(options),
                "dim": dim,
                "num_items": num_items,
                "metrics": dict(metrics),
                "extra": dict(extra or {}),
                "code_version": __version__,
            },
        )
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: Path, device: str = "cpu") -> Backbone:
    """The backbone of a checkpoint, in evaluation mode.

    Raises:
        InputError: the folder is no checkpoint, or its weights are damaged or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_config(folder)
    try:
        weights = load_file(folder / _WEIGHTS, device="cpu")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder / _WEIGHTS}: cannot be read as safetensors ({error}); train the model again"
        ) from error
    try:
        backbone = registry.build(
            "recommenders",
            facts["backbone"],
            facts["options"],
            num_items=facts["num_items"],
            dim=facts["dim"],
            generator=torch_stream(0, "overwritten by the checkpoint"),
        )
    except InputError as error:
        raise InputError(f"{folder}: {error}; train the model again") from error
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the weights do not fit backbone {facts['backbone']!r} as {_CONFIG} "
            f"describes it ({' '.join(str(error).split())}); train the model again"
        ) from error
    for name, value in weights.items():
        if not bool(isfinite(value).all()):
            raise InputError(
                f"{folder}: weight {name} holds what is not a finite number; train the model again"
            )
    return backbone.to(device).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint's ``config.json`` says: backbone, options, dim, num_items, metrics, extra.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    file = folder / _CONFIG
    try:
        facts = json.loads(file.read_text("utf-8"))
        if not isinstance(facts, dict):
            raise ValueError(f"{_CONFIG} holds a {type(facts).__name__}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: is not a checkpoint ({error}); give a folder that `alkd train` wrote"
        ) from error
    missing = sorted(_FIELDS.keys() - facts.keys())
    if missing:
        raise InputError(f"{file}: lacks {', '.join(missing)}; train the model again")
    for name, kind in _FIELDS.items():
        value = facts[name]
        if type(value) is not kind or (kind is int and value < 1):
            raise InputError(f"{file}: {name} is {value!r}; train the model again")
    return facts
