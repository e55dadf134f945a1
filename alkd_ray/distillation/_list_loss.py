"""DLLM2Rec's loss of a batch: a base over all rows, and the LLM's lists where rows have one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alkd_ray.distillation._llm_lists import LLMLists, in_top
from alkd_ray.distillation._robust import robust_gradients
from alkd_ray.recommenders import Backbone, embed_candidates
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.losses import Loss, row_shares


class ListLoss:
    """``mean of base + weight * list``; the terms are those of :class:`Dllm2Rec`.

    A row without a list counts in the mean all the same. The cross entropies are differentiated by
    autograd; the robust losses, over the whole catalogue, in closed form.
    """

    def __init__(
        self,
        lists: LLMLists,
        base: Loss | None,
        draws: np.random.Generator,
        roots: Tensor,
        *,
        weight: float,
        alpha: float,
        top: int,
        gamma_consistency: float,
        as_coded: bool,
    ) -> None:
        """Takes what does not change during training.

        Args:
            lists: on the device of the training.
            base: another base loss; None = the paper's.
            draws: of the negatives.
            roots: ``[N]`` sqrt(propensity / beta), on the device of the training.
            weight: lambda.
            alpha: factor of the robust losses.
            top: length of the student's own list.
            gamma_consistency: weight of an item that is in it.
            as_coded: see :class:`Dllm2Rec`.
        """
        self.lists = lists
        self.base = base
        self.draws = draws
        self.roots = roots
        self.weight = weight
        self.alpha = alpha
        self.top = top
        self.gamma_consistency = gamma_consistency
        self.as_coded = as_coded

    def __call__(self, backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
        """See :class:`alkd_ray.training.losses.Loss`."""
        number, shares = self.lists.of_window[batch.window_of], row_shares(batch)  # [B] both
        if not self.weight:
            number = torch.full_like(number, -1)
        if self.base is None:
            return self._add_gradients(
                backbone, batch.items, batch.mask, batch.positives, number, shares, want_value
            )
        value = self.base(backbone, batch, want_value)
        rows = torch.nonzero(number >= 0)[:, 0]
        if not len(rows):
            return value
        addition = self._add_gradients(
            backbone,
            batch.items[rows],
            batch.mask[rows],
            None,
            number[rows],
            shares[rows],
            value is not None,
        )
        return None if value is None or addition is None else value + addition

    def _add_gradients(
        self,
        backbone: Backbone,
        items: Tensor,
        mask: Tensor,
        positives: Tensor | None,
        number: Tensor,
        shares: Tensor,
        want_value: bool,
    ) -> float | None:
        """Adds the gradients of rows; without ``positives`` those of their lists alone."""
        encoded = backbone.encode(items, mask)  # [B, d]
        drawn = torch.from_numpy(self.draws.integers(len(self.roots), size=len(items)))
        negatives = drawn.to(items.device)  # [B]
        listed = torch.nonzero(number >= 0)[:, 0]  # [R]
        table = backbone.item_table() if self.alpha or len(listed) else None
        losses, columns, weights = [], [], []
        if positives is not None:
            losses.append(self._cross_entropy(backbone, encoded, positives, negatives, shares))
            columns.append(positives[:, None])
            weights.append(shares[:, None])
        if table is not None and len(listed):
            lists = number[listed]
            ranked = self.lists.items[lists]  # [R, K]
            with torch.no_grad():
                agreed = in_top(encoded[listed], table, ranked, self.top)
            by_item = self.lists.weights(lists, agreed, self.gamma_consistency)  # [R, K]
            by_item *= self.weight * shares[listed, None]
            losses.append(
                self._list_entropy(backbone, encoded[listed], ranked, negatives[listed], by_item)
            )
            # Rows without a list have one of weight 0, so that all rows are of one width.
            columns.append(self.lists.items[number.clamp_min(0)])
            weights.append(by_item.new_zeros(columns[-1].shape).index_copy_(0, listed, by_item))
        loss = torch.stack(losses).sum()
        if table is None or not self.alpha:
            loss.backward()
            return float(loss.detach()) if want_value else None
        with torch.no_grad():
            found = robust_gradients(
                encoded,
                table,
                self.roots,
                torch.cat(columns, 1),
                self.alpha * torch.cat(weights, 1),
                want_value,
            )
        torch.autograd.backward(
            [loss, encoded, table], [torch.ones_like(loss), found.by_encoded, found.by_table]
        )
        return None if found.value is None else float(loss.detach()) + found.value

    def _cross_entropy(
        self,
        backbone: Backbone,
        encoded: Tensor,
        positives: Tensor,
        negatives: Tensor,
        shares: Tensor,
    ) -> Tensor:
        """Of the positives and the negatives, ``[]``."""
        both = embed_candidates(backbone, torch.stack([positives, negatives]))  # [2, B, d]
        scores = (both * encoded).sum(-1)  # [2, B]
        by_row = functional.softplus(-scores[0]) + functional.softplus(scores[1])  # [B]
        # The published code takes one mean over positives and negatives together.
        return (by_row * shares).sum() * (0.5 if self.as_coded else 1.0)

    def _list_entropy(
        self,
        backbone: Backbone,
        encoded: Tensor,
        ranked: Tensor,
        negatives: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Of ``ranked`` items ``[R, K]``, each beside its row's negative, weighted; ``[]``."""
        candidates = torch.cat([ranked, negatives[:, None]], 1)  # [R, K + 1]
        scores = torch.bmm(embed_candidates(backbone, candidates), encoded[:, :, None])[:, :, 0]
        negative = scores[:, -1] - 1.0 if self.as_coded else scores[:, -1]  # [R]
        pulls = (functional.softplus(-scores[:, :-1]) * weights).sum()
        return pulls + (functional.softplus(negative) * weights.sum(1)).sum()
