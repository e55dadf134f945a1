"""A teacher's top items for each window, within groups of items of like popularity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from alkd_ray import sessions as windows_of
from alkd_ray.distillation._joint import on_device
from alkd_ray.errors import InputError
from alkd_ray.evaluation.ranks import BLOCK_ROWS
from alkd_ray.recommenders import Recommender
from alkd_ray.training.examples import Rows
from alkd_ray.types import IntArray, SessionSet

MOST_BYTES = 8 << 30
"""Of the lists of all windows."""


@dataclass(frozen=True, slots=True)
class TeacherLists:
    """For each window and group, unobserved items in the teacher's order, best first.

    Items of equal scores are ordered by item, the lower one first. Scores are not kept.

    Attributes:
        items: ``[W, C]`` int32, a window's lists of all groups side by side; entries beyond a
            list's length mean nothing. On the device of the training rows.
        starts: ``[G]`` int64, the column at which each group's list begins.
        lengths: ``[W, G]`` int64, items in each list. On the host, where draws are made.
    """

    items: Tensor
    starts: IntArray
    lengths: IntArray


def popularity_groups(train: SessionSet, num_items: int, groups: int) -> IntArray:
    """``[N]`` int64, each item's group: 0 = the most popular, -1 = never seen in training.

    Items are ordered by their interactions (in sessions and as targets; the lower item first when
    equal) and cut where the interactions of the items before add up to 1/G, 2/G, ... of all: an
    item belongs where the middle of its own interactions falls. A group stays empty where one item
    alone has more interactions than a group should have.
    """
    seen = np.concatenate([train.flat_items, train.targets])
    counts = np.bincount(seen, minlength=num_items)  # [N]
    order = np.argsort(-counts, kind="stable")
    until = np.cumsum(counts[order])
    # floor(G * (until - count / 2) / total) in whole numbers: no rounding at a border.
    middle = 2 * until - counts[order]
    found = np.full(num_items, -1, np.int64)
    found[order] = np.minimum(groups * middle // max(2 * int(until[-1]), 1), groups - 1)
    found[counts == 0] = -1
    return found


def teacher_lists(
    teacher: Recommender,
    train: SessionSet,
    rows: Rows,
    session_of: IntArray,
    group_of: IntArray,
    groups: int,
    longest: int,
) -> TeacherLists:
    """The lists for the windows of ``rows``, worked out in blocks of windows.

    Memory: ``4 W sum_g min(longest, size of group g)`` bytes, at most ``MOST_BYTES``, and one
    block's scores of all items.

    Args:
        teacher: scores items; it need not have embeddings.
        train: training sessions. All items of a window's session, its target included, are
            observed and stand in none of its lists.
        rows: training rows with a window each, on the device where the lists are wanted.
        session_of: ``[W]`` int64, the session of each window.
        group_of: ``[N]`` int64, the group of each item; -1 = none.
        groups: G.
        longest: most items in a list.

    Raises:
        InputError: the lists take too much memory.
    """
    device = rows.windows.device
    members = [torch.from_numpy(np.flatnonzero(group_of == group)) for group in range(groups)]
    sizes = [min(longest, len(of_group)) for of_group in members]
    starts = np.cumsum([0, *sizes])
    wanted = 4 * len(rows.windows) * int(starts[-1])
    if wanted > MOST_BYTES:
        raise InputError(
            f"unkd: the teacher's lists for {len(rows.windows)} windows would take {wanted} bytes, "
            f"more than {MOST_BYTES}; set distillation.options.kept or rank_scale lower, or "
            "distillation.training.examples to last"
        )
    items = torch.zeros((len(rows.windows), int(starts[-1])), dtype=torch.int32, device=device)
    lengths = np.zeros((len(rows.windows), groups), np.int64)
    with on_device(teacher, device), torch.inference_mode():
        for first in range(0, len(rows.windows), BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            scores = _unobserved_scores(teacher, rows.windows[part], train, session_of[part])
            for group, of_group in enumerate(members):
                there = of_group.to(scores.device)
                values, columns = _best(scores[:, there], sizes[group])  # [b, size] both
                items[part, starts[group] : starts[group + 1]] = there[columns].to(items)
                lengths[part, group] = (values > -torch.inf).sum(1).cpu().numpy()
    return TeacherLists(items, starts[:-1], lengths)


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``[b, count]`` values and columns, best first, of equal ones the lower column first.

    A stable sort is up to ten times dearer than ``topk``: only rows in which an order is open, by
    equal scores within or at the end of what is listed, are sorted.
    """
    values, columns = scores.topk(count, dim=1)
    is_open = (values[:, 1:] == values[:, :-1]).any(1)
    is_open |= (scores >= values[:, -1:]).sum(1) > count
    rows = is_open.nonzero().squeeze(1)
    if len(rows):
        order = torch.sort(scores[rows], dim=1, descending=True, stable=True)
        values[rows], columns[rows] = order.values[:, :count], order.indices[:, :count]
    return values, columns


def _unobserved_scores(
    teacher: Recommender, windows: Tensor, train: SessionSet, session_of: IntArray
) -> Tensor:
    """``[b, N]`` the teacher's scores of a block of windows, -inf at observed items."""
    inputs = windows.long() if isinstance(teacher, nn.Module) else windows.long().cpu()  # [b, L]
    scores = teacher.score(inputs.clamp_min(0), inputs >= 0)  # [b, N]
    part = windows_of.take(train, session_of)
    row = np.arange(len(part))
    observed_by = np.concatenate([np.repeat(row, part.lengths), row])
    observed = np.concatenate([part.flat_items, part.targets])
    where = (torch.from_numpy(observed_by), torch.from_numpy(observed))
    scores[tuple(index.to(scores.device) for index in where)] = -torch.inf
    return scores
