"""Soft labels: what plain recommenders, which count co-occurrences, would recommend for each row.

Neighbourhood models beat small trained backbones on sparse sessions, so their mixed top list is a
good conventional teacher. The mixture is fitted to the training sessions alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alkd_ray import registry
from alkd_ray.errors import InputError
from alkd_ray.recommenders import PlainRecommender
from alkd_ray.training.examples import Rows, SoftLabels
from alkd_ray.types import SessionSet

TOP = 100
"""Items a row's soft labels keep."""

_BLOCK_ELEMENTS = 1 << 22
"""Scores held at a time (16 MiB)."""


def fitted(names: Sequence[str], train: SessionSet, num_items: int) -> list[PlainRecommender]:
    """The plain recommenders of ``names`` with their default options, fitted to ``train``.

    Raises:
        InputError: a name is not that of a plain recommender.
    """
    models = []
    for name in names:
        if not hasattr(registry.find("recommenders", name), "fit"):
            raise InputError(
                f"training.soft_labels: {name!r} is not a plain recommender; name ones that count, "
                "such as sequential-rules or item-knn"
            )
        model = registry.build("recommenders", name, {}, num_items=num_items)
        model.fit(train)
        models.append(model)
    return models


def of_rows(models: Sequence[PlainRecommender], rows: Rows, num_items: int) -> SoftLabels:
    """Soft labels of R rows: the ``TOP`` items of the mixture, as shares.

    Each recommender's positive scores are divided by their sum and the results are added; items
    of the window are left out. Takes ``R * TOP * 8`` bytes, and never more than a block of scores.
    """
    keep = min(TOP, num_items)
    found_items = torch.empty((len(rows), keep), dtype=torch.int32)
    found_shares = torch.empty((len(rows), keep))
    block = max(1, _BLOCK_ELEMENTS // num_items)
    for index in torch.arange(len(rows)).split(block):
        batch = rows.take(index)
        top = _mixture(models, batch.items, batch.mask, num_items).topk(keep, dim=1)  # [b, K]
        found_items[index] = top.indices.int()
        found_shares[index] = top.values / top.values.sum(1, keepdim=True).clamp_min(1e-12)
    return SoftLabels(found_items, found_shares)


def _mixture(
    models: Sequence[PlainRecommender], items: Tensor, mask: Tensor, num_items: int
) -> Tensor:
    mixed = torch.zeros((len(items), num_items))  # [b, N]
    in_window = torch.zeros((len(items), num_items + 1), dtype=torch.bool)
    in_window.scatter_(1, torch.where(mask, items, num_items), True)
    for model in models:
        scores = model.score(items, mask).clamp(min=0)  # [b, N]
        scores.masked_fill_(in_window[:, :-1], 0.0)
        mixed += scores / scores.sum(1, keepdim=True).clamp_min(1e-12)
    return mixed
