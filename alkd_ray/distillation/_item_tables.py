"""Which parameters of a backbone are its item tables."""

from __future__ import annotations

from typing import cast

from torch import nn

from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone


def item_tables(backbone: Backbone, wanted: str) -> list[nn.Parameter]:
    """The ``[N, d]`` parameters, a row for each item, whatever they are called.

    A square one is left out: with as many items as dimensions it may be any matrix.

    Args:
        backbone: N items.
        wanted: begins the message: what asks for the tables, and a colon.

    Raises:
        InputError: there is none.
    """
    items = backbone.num_items
    found = [
        parameter
        for parameter in cast(nn.Module, backbone).parameters()
        if parameter.ndim == 2 and len(parameter) == items != parameter.shape[1]
    ]
    if not found:
        raise InputError(
            f"{wanted} a {type(backbone).__name__} has no parameter with a row for each of its "
            f"{items} items (square ones do not count); choose another student.backbone"
        )
    return found
