"""Item tables of which only a share of the weights is used, and which ones changes in training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class SparseTables:
    """Tables ``[N, d]`` with a mask each; what is masked out is exactly 0 after :meth:`apply`.

    The number of weights in use is drawn once for each table and never changes.

    An item always keeps the largest weight it has: without any it could not be told from others,
    and a backbone that normalises would have no direction there and a gradient out of all
    proportion, which Adam's second moment would hardly forget.

    Attributes:
        tables: the parameters.
        masks: ``[N, d]`` bool each, True where a weight is in use.
    """

    def __init__(
        self,
        tables: Sequence[nn.Parameter],
        density: float,
        draws: np.random.Generator,
        device: str,
    ) -> None:
        """Draws the masks; the tables are not changed yet.

        Args:
            tables: ``[N, d]`` each.
            density: probability that a weight is in use.
            draws: on the host, so that a seed means the same masks on every device.
            device: where the tables will be trained.
        """
        self.tables = tuple(tables)
        self.masks: list[Tensor] = []
        for table in self.tables:
            mask = torch.from_numpy(draws.random(tuple(table.shape)) < density)
            item = torch.arange(len(table))
            # Only rows without a weight are changed: elsewhere the drawn mask stays as it is.
            mask[item, table.detach().abs().argmax(1).cpu()] |= ~mask.any(1)
            self.masks.append(mask.to(device))

    @torch.no_grad()
    def apply(self) -> None:
        """Sets what is masked out to 0."""
        for table, mask in zip(self.tables, self.masks, strict=True):
            table.mul_(mask.to(table.device))

    @torch.no_grad()
    def explore(self, share: float) -> None:
        """Takes weights out of use and others into it, as many in each table as before.

        Dropped is the share of the weights in use that are nearest to 0, then as many weights not
        in use are grown, those with the largest gradients. What was dropped just now may grow
        again, and then keeps its value. Other grown weights start from 0.

        Ties: a gradient is exactly 0 wherever an item was not in the batch. Among equal gradients
        the larger weight grows, so that items of which nothing was learned keep what they have;
        then the first in the table.

        Args:
            share: of the weights in use to drop, from 0 to 1, rounded up to a whole weight.
        """
        for table, mask in zip(self.tables, self.masks, strict=True):
            if table.grad is not None:
                change(mask, table.abs(), table.grad.abs(), share)
        self.apply()


def change(mask: Tensor, magnitudes: Tensor, gradients: Tensor, share: float) -> None:
    """Drops and grows weights of one table (see :meth:`SparseTables.explore`), in its mask.

    Args:
        mask: ``[N, d]`` bool, contiguous; changed in place.
        magnitudes: ``[N, d]``, of the weights; 0 where they are not in use.
        gradients: ``[N, d]``, their magnitudes.
        share: of the weights in use to drop.
    """
    flat = mask.view(-1)
    may_go = mask.clone()
    may_go.scatter_(1, magnitudes.masked_fill(~mask, -1).argmax(1, keepdim=True), False)
    count = min(math.ceil(share * int(mask.sum())), int(may_go.sum()))
    smallest = magnitudes.masked_fill(~may_go, torch.inf).flatten().argsort(stable=True)
    flat[smallest[:count]] = False
    largest = magnitudes.flatten().argsort(descending=True, stable=True)
    by_gradient = gradients.masked_fill(mask, -1).flatten()[largest]
    flat[largest[by_gradient.argsort(descending=True, stable=True)[:count]]] = True
