"""The student checkpoints published with ALKDRec (AAAI 2025), as backbones of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alkd_ray.errors import InputError
from alkd_ray.recommenders.fpmc import Fpmc
from alkd_ray.recommenders.stamp import Stamp
from alkd_ray.seeds import torch_stream

_WINDOW = 10
"""Input items that the published students saw."""


def published_fpmc(path: Path) -> Fpmc:
    """An FPMC student from its ``.npz`` arrays, one for each parameter name.

    Raises:
        InputError: an array is missing.
    """
    arrays = _read(path, ("input_item_embedding", "target_item_embedding"))
    num_items, dim = arrays["input_item_embedding"].shape
    backbone = Fpmc(num_items=num_items, dim=dim, generator=_overwritten())
    _copy(backbone, {name: arrays[name] for name in arrays})
    return backbone


def published_stamp(path: Path) -> Stamp:
    """A STAMP student from its ``.npz`` arrays.

    Item i is row i of both tables; their extra last row was never used. Shorter windows were
    padded with item 0, which counted in the mean: see ``reference_padding``. The trilinear layers
    are left out, as the published scores do not use them.

    Raises:
        InputError: an array is missing.
    """
    stored = {
        "input_item_embedding": "LI.weight",
        "target_item_embedding": "item_emb.weight",
        "w0": "w0.weight",
        "w1": "w1.weight",
        "w2": "w2.weight",
        "w3": "w3.weight",
        "b_a": "b_a",
    }
    arrays = _read(path, tuple(stored.values()))
    rows, dim = arrays["LI.weight"].shape
    num_items = rows - 1
    backbone = Stamp(
        reference_padding=_WINDOW, num_items=num_items, dim=dim, generator=_overwritten()
    )
    values = {name: arrays[key] for name, key in stored.items()}
    for name in ("input_item_embedding", "target_item_embedding"):
        values[name] = values[name][:num_items]
    values["w0"] = values["w0"][0]
    _copy(backbone, values)
    return backbone


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as stored:
        missing = [name for name in names if name not in stored]
        if missing:
            raise InputError(
                f"{path}: has no array {', '.join(missing)}; it is not the published checkpoint "
                "of this backbone"
            )
        return {name: torch.from_numpy(stored[name].astype(np.float32)) for name in names}


def _copy(backbone: nn.Module, values: dict[str, Tensor]) -> None:
    backbone.load_state_dict(values)
    backbone.eval()


def _overwritten() -> torch.Generator:
    return torch_stream(0, "overwritten by the published checkpoint")
