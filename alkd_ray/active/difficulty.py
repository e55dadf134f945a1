"""How hard each session is, and its rank.

``consistency`` is the paper's measure (Du et al., AAAI 2025, "Difficulty of instances in
distillation"); ``overlap`` is what its published code ranks by. Larger is harder for both.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from alkd_ray import seeds
from alkd_ray.errors import InputError
from alkd_ray.types import BoolArray, DifficultyScores, FloatArray, IntArray

OVERLAP_CUTOFFS = (1, 5, 10, 20)
# Rows at a time: the gathered embeddings of a block stay in the processor's cache.
_BLOCK_ROWS = 512


def consistency(
    encoded: NDArray[np.floating], table: NDArray[np.floating], items: IntArray, mask: BoolArray
) -> FloatArray:
    """df_s: minus the mean, over a session's items, of sigmoid(encode(s) . e_v).

    The value of a row does not depend on the other rows.

    Args:
        encoded: ``[S, d]`` the teacher's session vectors.
        table: ``[N, d]`` the teacher's item embeddings.
        items: ``[S, L]`` int64, each session's items; masked positions mean nothing.
        mask: ``[S, L]`` bool, True where ``items`` is an item.

    Returns:
        ``[S]`` float64 in (-1, 0); near -1 the teacher has captured the session, it is easy.

    Raises:
        InputError: a session without an item.
    """
    counts = mask.sum(1)  # [S]
    if not counts.all():
        raise InputError(
            f"{int((counts == 0).sum())} sessions have no input item (the first in row "
            f"{int(np.argmin(counts))}), so that they have no difficulty; remove them"
        )
    difficulty = np.empty(len(items), np.float64)
    for start in range(0, len(items), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        vectors = table[np.where(mask[rows], items[rows], 0)]  # [b, L, d]
        logits = np.einsum("sld,sd->sl", vectors, encoded[rows])
        sigmoids = expit(logits.astype(np.float64)) * mask[rows]  # [b, L]
        difficulty[rows] = -sigmoids.sum(1) / counts[rows]
    return difficulty


def overlap(teacher_top: IntArray, student_top: IntArray) -> FloatArray:
    """One minus the mean overlap of teacher's and student's top-{1, 5, 10, 20} lists.

    The overlap at k is the share of the teacher's k best items that are among the student's k
    best. The published code ranks by the mean overlap itself; here 0 means that the lists agree
    (the student knows what the teacher knows: easy), 1 that they share nothing (hard).

    Args:
        teacher_top: ``[S, 20]`` int64 distinct items, best first; -1 where there are fewer, and
            fewer columns where the catalogue is that small.
        student_top: the same of the student.

    Returns:
        ``[S]`` float64 in [0, 1], few distinct values.
    """
    width = min(teacher_top.shape[1], student_top.shape[1])
    # A pair of equal items at places i and j counts 1/k for every cutoff k above both.
    place = np.arange(width)
    later = np.maximum(place[:, None], place[None, :])  # [W, W]
    weight = sum((later < k) / min(k, width) for k in OVERLAP_CUTOFFS) / len(OVERLAP_CUTOFFS)
    difficulty = np.empty(len(teacher_top), np.float64)
    for start in range(0, len(teacher_top), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        teacher, student = teacher_top[rows, :width], student_top[rows, :width]
        equal = (teacher[:, :, None] == student[:, None, :]) & (teacher >= 0)[:, :, None]
        difficulty[rows] = 1.0 - (equal * weight).sum((1, 2))
    # Sums of 1/20, 1/10, ... differ in the last bit; equal overlaps shall stay equal.
    return np.round(np.clip(difficulty, 0.0, 1.0), 12)


def rank(
    session_ids: IntArray,
    difficulty: FloatArray,
    *,
    direction: Literal["hardest_first", "easiest_first"],
    seed: int,
    kind: Literal["consistency", "overlap"],
) -> DifficultyScores:
    """Ranks 1..S by difficulty, the same for each session whatever the order of the rows.

    Equal difficulties are ordered by a hash of the session id and the seed.

    Args:
        session_ids: ``[S]`` int64, distinct.
        difficulty: ``[S]`` float64, larger = harder.
        direction: which end has rank 1, and so the highest gain.
        seed: the run's seed.
        kind: where the difficulty is from.

    Raises:
        InputError: a repeated id, or a difficulty that is not a finite number.
    """
    if len(np.unique(session_ids)) != len(session_ids):
        raise InputError(
            f"only {len(np.unique(session_ids))} of {len(session_ids)} session ids are distinct; "
            "a session can have one difficulty only"
        )
    bad = ~np.isfinite(difficulty)
    if bad.any():
        raise InputError(
            f"the difficulty of {int(bad.sum())} sessions is not a finite number (the first is "
            f"session {int(session_ids[bad.argmax()])}); the teacher's training has diverged, "
            "lower its learning rate"
        )
    ascending = -difficulty if direction == "hardest_first" else difficulty
    order = np.lexsort((seeds.hash_uniform(seed, session_ids), ascending))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return DifficultyScores(session_ids, difficulty, ranks, kind, direction)
