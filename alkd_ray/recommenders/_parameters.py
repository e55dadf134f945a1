"""Making a backbone's parameters: checked sizes, seeded initial values, the folded item bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.errors import InputError


def check_sizes(backbone: str, num_items: int, dim: int) -> None:
    """Refuses sizes that no embedding can have.

    Raises:
        InputError: ``num_items`` or ``dim`` is below 1.
    """
    if num_items < 1:
        raise InputError(f"{backbone}: num_items is {num_items}; a catalogue has at least 1 item")
    if dim < 1:
        raise InputError(f"{backbone}: dim is {dim}; give an embedding at least 1 dimension")


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter of ``shape`` drawn from N(0, std^2), on the generator's device."""
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    return nn.Parameter(drawn * std)


def uniform(shape: tuple[int, ...], end: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter of ``shape`` drawn evenly from [-end, end), on the generator's device."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return nn.Parameter((2 * drawn - 1) * end)


def xavier_std(num_items: int, dim: int) -> float:
    """The standard deviation of Xavier-normal values for an ``[N, d]`` table: sqrt(2 / (N + d))."""
    return math.sqrt(2.0 / (num_items + dim))


def append_one(encoded: Tensor, bias: Tensor | None) -> Tensor:
    """``encoded`` ``[B, d]``, with a trailing 1 where there is an item bias: ``[B, d + 1]``."""
    return encoded if bias is None else functional.pad(encoded, (0, 1), value=1.0)


def append_bias(table: Tensor, bias: Tensor | None) -> Tensor:
    """``table`` ``[N, d]``, with the item bias (``[N]``) as a trailing column: ``[N, d + 1]``.

    Together with :func:`append_one` the bias becomes part of the dot product, so that all code
    that reads ``encode`` and ``item_table`` has it without knowing of it.
    """
    return table if bias is None else torch.cat([table, bias[:, None]], dim=1)
