"""Rankings as training rows, and what is refused before there are any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.errors import InputError
from alkd_ray.sessions import rows_of_ids
from alkd_ray.types import IntArray


def flattened(rankings: Sequence[IntArray], num_items: int) -> tuple[IntArray, IntArray, IntArray]:
    """All ranked items in one run, those outside the catalogue left out.

    A ranking may be empty, short, long, or name an item twice; its positions stay as they are.

    Returns:
        ``[R]`` number of the ranking, ``[R]`` 0-based position in it, ``[R]`` item; all int64.
    """
    lengths = np.array([len(ranking) for ranking in rankings], np.int64)
    number = np.repeat(np.arange(len(rankings)), lengths)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    items = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, rankings)]).astype(np.int64)
    known = (items >= 0) & (items < num_items)
    return number[known], position[known], items[known]


def session_rows(knowledge: Knowledge) -> IntArray:
    """``[len(ranked_ids)]`` int64, the row in ``knowledge.train`` of each ranked session.

    Raises:
        InputError: a ranked session is no training session.
    """
    rows = rows_of_ids(knowledge.train, knowledge.ranked_ids)
    if (rows < 0).any():
        strange = knowledge.ranked_ids[rows < 0]
        raise InputError(
            f"{len(strange)} ranked sessions, the first with id {strange[0]}, are not among the "
            f"{len(knowledge.train)} training sessions; rank training sessions alone"
        )
    return rows


def check_training(training: TrainingConfig) -> None:
    """Refuses settings that mean nothing in a distillation.

    Raises:
        InputError: naming the field.
    """
    if training.soft_labels:
        raise InputError(
            "distillation.training.soft_labels must be empty: a distillation has labels of its own"
        )


def nothing_to_learn(knowledge: Knowledge) -> InputError:
    """What to raise where no ranking holds an item that counts."""
    return InputError(
        f"none of the {len(knowledge.rankings)} rankings holds an item to learn from; "
        "look at the annotation's failures first"
    )
