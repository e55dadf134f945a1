"""Contract of the room: recommenders score items for windows of sessions.

Every recommender has the scoring half. A plain one (a count of co-occurrences) is made with
``num_items`` and fitted to sessions; a backbone is a torch module made with ``num_items``, ``dim``
and a generator, and is trained by :mod:`alkd_ray.training`. Scoring, difficulty, distillation and
export need nothing else of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alkd_ray.types import SessionSet


@runtime_checkable
class Recommender(Protocol):
    """The scoring half."""

    num_items: int

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        """Scores of all items.

        Args:
            items: ``[B, L]`` int64, right-aligned windows.
            mask: ``[B, L]`` bool, True where ``items`` is an item.

        Returns:
            ``[B, N]`` float32, larger = recommended earlier. May be overwritten by the caller.
        """
        ...


@runtime_checkable
class PlainRecommender(Recommender, Protocol):
    """A recommender that counts."""

    def fit(self, sessions: SessionSet) -> None:
        """Learns from whole sessions, their targets included."""
        ...


@runtime_checkable
class Backbone(Recommender, Protocol):
    """A recommender with embeddings: ``score = encode @ item_table.T``. Also a torch module."""

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of windows, ``[B, d]`` float32."""
        ...

    def item_table(self) -> Tensor:
        """Embeddings of all items as candidates, ``[N, d]`` float32."""
        ...


@runtime_checkable
class DrawsInTraining(Protocol):
    """A backbone with random parts in training, such as dropout.

    Attributes:
        training_draws: a generator on the host, so that a seed means the same on every device. Who
            trains the backbone sets it; None = nothing is drawn.
    """

    training_draws: torch.Generator | None


def embed_candidates(backbone: Backbone, items: Tensor) -> Tensor:
    """``item_table()[items]``, ``[..., d]``, differentiable.

    A backbone whose table is dear to work out (one that normalises it, say) may have a method of
    this name, which then serves the losses that look at few items.
    """
    own = getattr(backbone, "embed_candidates", None)
    if own is not None:
        return own(items)
    from alkd_ray.recommenders._lookup import rows_of

    return rows_of(backbone.item_table(), items)
