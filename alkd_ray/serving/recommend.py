"""Recommendations of a student, in the item ids of the data's owner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from alkd_ray import sessions as windows_of
from alkd_ray.errors import InputError
from alkd_ray.evaluation.ranks import BLOCK_ROWS, top_items
from alkd_ray.recommenders import Recommender
from alkd_ray.serving.export import ITEMS_FILE, read_export
from alkd_ray.training import checkpoint
from alkd_ray.types import Catalogue, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """One recommended item.

    Attributes:
        source_id: its id in the owner's data.
        score: the student's score, larger = recommended earlier; comparable within a session.
        title: its title, "" where the data gives none.
    """

    source_id: str
    score: float
    title: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer to one session.

    Attributes:
        items: at most k items, best first; never one of the session's own items.
        unknown: ids of the session that the catalogue does not have; they were ignored.
        problem: why there are no items; "" normally.
    """

    items: tuple[RecommendedItem, ...]
    unknown: tuple[str, ...] = ()
    problem: str = ""


class Student:
    """A recommender with the catalogue and the window it was trained on.

    It holds no state between calls, so several threads may share one.

    Args:
        recommender: scores items for windows.
        catalogue: its N items; their source ids must be distinct.
        window: input items that it sees, the last ones.
    """

    def __init__(self, recommender: Recommender, catalogue: Catalogue, window: int) -> None:
        if len(catalogue) != recommender.num_items:
            raise InputError(
                f"the catalogue has {len(catalogue)} items, but the student scores "
                f"{recommender.num_items}; take both from the same run"
            )
        self.recommender = recommender
        self.catalogue = catalogue
        self.window = window
        self._item_of = {str(source): item for item, source in enumerate(catalogue.source_ids)}
        if len(self._item_of) != len(catalogue):
            raise InputError(
                f"the catalogue has {len(catalogue)} items but only {len(self._item_of)} "
                "distinct source ids; give every item an id of its own"
            )

    def recommend(self, sessions: Sequence[Iterable[str]], k: int = 10) -> list[Recommendation]:
        """The k best items for each session.

        A session without a known item has nothing to go by: its answer holds a ``problem``
        instead of items, and the other sessions are answered all the same.

        Args:
            sessions: S sessions, each the source ids of its items, oldest first.
            k: items wanted, 1..N. A session gets fewer where the catalogue has fewer others.

        Returns:
            S answers, in the order of the sessions.

        Raises:
            InputError: k is out of bounds, or a session is a text instead of a list of ids.
        """
        if not 1 <= k <= len(self.catalogue):
            raise InputError(
                f"the number of items wanted is {k}, but must be 1 to {len(self.catalogue)}, "
                "the size of the catalogue"
            )
        known: list[list[int]] = []
        unknown: list[tuple[str, ...]] = []
        for row, session in enumerate(sessions):
            if isinstance(session, str):
                raise InputError(f"session {row} is the text {session!r}; give a list of item ids")
            ids = [str(source) for source in session]
            known.append([self._item_of[source] for source in ids if source in self._item_of])
            unknown.append(tuple(source for source in ids if source not in self._item_of))
        answerable = [row for row, items in enumerate(known) if items]
        answers = [Recommendation((), lost, _problem(lost)) for lost in unknown]
        for start in range(0, len(answerable), BLOCK_ROWS):
            rows = answerable[start : start + BLOCK_ROWS]
            top, scores = self._best([known[row] for row in rows], k)
            for row, items, values in zip(rows, top, scores, strict=True):
                answers[row] = Recommendation(self._named(items, values), unknown[row])
        return answers

    def _best(self, known: list[list[int]], k: int) -> tuple[IntArray, FloatArray]:
        """Items and their scores, ``[B, k]`` each; item -1 where there is none."""
        count = len(known)
        block = windows_of.from_lists(range(count), known, [0] * count, ["test"] * count)
        top = top_items(self.recommender, block, self.window, k, block_rows=count)
        batch = windows_of.windows(block, self.window)
        with torch.inference_mode():
            scores = self.recommender.score(
                torch.from_numpy(batch.items), torch.from_numpy(batch.mask)
            )  # [B, N]
            chosen = scores.gather(1, torch.from_numpy(top).clamp_min(0))  # [B, k]
        return top, chosen.numpy().astype(np.float64)

    def _named(self, items: IntArray, scores: FloatArray) -> tuple[RecommendedItem, ...]:
        return tuple(
            RecommendedItem(
                str(self.catalogue.source_ids[item]), float(score), str(self.catalogue.titles[item])
            )
            for item, score in zip(items, scores, strict=True)
            if item >= 0
        )


def load_student(folder: str | Path) -> Student:
    """The student of an exported folder; nothing but the folder is needed.

    Raises:
        InputError: the folder is not an export, or is damaged.
    """
    folder = Path(folder)
    facts = read_export(folder)
    try:
        table = pq.read_table(folder / ITEMS_FILE, columns=["source_id", "title"])
    except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise InputError(
            f"{folder / ITEMS_FILE}: cannot be read ({' '.join(str(error).split())}); "
            "export the student again"
        ) from error
    catalogue = Catalogue(
        table["source_id"].to_numpy().astype(object), table["title"].to_numpy().astype(object)
    )
    return Student(checkpoint.load(folder), catalogue, facts["window"])


def _problem(unknown: tuple[str, ...]) -> str:
    if unknown:
        return "none of the session's item ids is in the catalogue"
    return "the session is empty; give at least one item id"
