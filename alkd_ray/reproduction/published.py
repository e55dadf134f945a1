"""The numbers that the paper prints, as they stand there.

Du, Sun, Wang, Chua, Zhang, Ong: Active Large Language Model-Based Knowledge Distillation for
Session-Based Recommendation, AAAI 2025, tables 1 and 2. Its figures print no numbers. Its "ndcg"
is :func:`alkd_ray.evaluation.metrics.reference_ndcg`, and every value is that of a single run.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class PublishedCell:
    """Where a number stands in the paper.

    Attributes:
        table: ``table1`` or ``table2``.
        dataset: ``hetrec2011-ml`` or ``amazon-games``.
        backbone: ``fpmc``, ``stamp`` or ``attmix``.
        system: the column of table 1 or the row of table 2, as printed.
        metric: ``recall@k`` or ``ndcg@k``.
    """

    table: str
    dataset: str
    backbone: str
    system: str
    metric: str


@functools.cache
def published() -> dict[PublishedCell, float]:
    """All numbers of tables 1 and 2."""
    file = resources.files("alkd_ray.reproduction") / "published.csv"
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    return {PublishedCell(**row): float(value) for row in rows if (value := row.pop("value"))}
