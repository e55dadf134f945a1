"""The lean gradients equal those that autograd finds for the loss as it is written down."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray import registry
from alkd_ray.recommenders import Backbone, embed_candidates
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.training import softmax
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.losses import InBatchPairwise, Loss, SampledBCE
from alkd_ray.training.softmax import FullSoftmax, SampledSoftmax, softmax_gradients

NUM_ITEMS, DIM, ROWS, LENGTH, SOFT = 37, 5, 16, 4, 6


class MeanOfItems(nn.Module):
    """The smallest backbone: mean of input embeddings, a table of its own for candidates."""

    def __init__(self, num_items: int = NUM_ITEMS) -> None:
        super().__init__()
        draw = torch_stream(3, "test weights")
        self.num_items = num_items
        self.inputs = nn.Parameter(torch.randn(num_items, DIM, generator=draw))
        self.candidates = nn.Parameter(torch.randn(num_items, DIM, generator=draw))

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        share = mask / mask.sum(1, keepdim=True)
        return torch.einsum("bld,bl->bd", functional.embedding(items, self.inputs), share)

    def item_table(self) -> Tensor:
        return self.candidates

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        return self.encode(items, mask) @ self.item_table().T


def make_batch(*, weighted: bool = False, soft: bool = False) -> RowBatch:
    rng = numpy_stream(5, "test batch")
    mask = torch.from_numpy(rng.random((ROWS, LENGTH)) < 0.7)
    mask[:, -1] = True
    soft_items = np.stack([rng.permutation(NUM_ITEMS)[:SOFT] for _ in range(ROWS)])
    shares = rng.random((ROWS, SOFT))
    positives = rng.integers(NUM_ITEMS, size=ROWS)
    soft_items[: ROWS // 2, 0] = positives[: ROWS // 2]  # labels that repeat the positive
    shares[-1] = 0  # a row without soft labels
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-12)
    return RowBatch(
        items=torch.from_numpy(rng.integers(NUM_ITEMS, size=(ROWS, LENGTH))),
        mask=mask,
        positives=torch.from_numpy(positives),
        window_of=torch.arange(ROWS),
        weights=torch.from_numpy(rng.integers(1, 4, ROWS).astype(np.float32)) if weighted else None,
        soft_items=torch.from_numpy(soft_items) if soft else None,
        soft_shares=torch.from_numpy(shares.astype(np.float32)) if soft else None,
    )


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def assert_equal_gradients(model: nn.Module, loss: object, batch: RowBatch, plain: Tensor) -> None:
    value = loss(model, batch, True)  # type: ignore[operator]
    lean = gradients(model)
    plain.backward()
    assert value == pytest.approx(float(plain.detach()), rel=1e-5)
    for mine, wanted in zip(lean, gradients(model), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)


def value_of(loss: Loss, model: Backbone, batch: RowBatch) -> float:
    value = loss(model, batch, True)
    assert value is not None
    return value


def mean(by_row: Tensor, batch: RowBatch) -> Tensor:
    weights = torch.ones(ROWS) if batch.weights is None else batch.weights
    return (by_row * weights).sum() / weights.sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_pairwise_is_the_published_broadcast(weighted: bool) -> None:
    model, batch = MeanOfItems(), make_batch(weighted=weighted)
    u = model.encode(batch.items, batch.mask)
    p = model.item_table()[batch.positives]
    positive = (u * p).sum(1, keepdim=True)  # [B, 1]
    negative = (u[:, None, :] * p[None, :, :]).sum(2)  # [B, B], the [B, B, d] broadcast
    by_row = -functional.logsigmoid(positive - negative).mean(1)
    assert_equal_gradients(model, InBatchPairwise(), batch, mean(by_row, batch))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_full_softmax_is_cross_entropy(
    weighted: bool, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "_CPU_BLOCK_ELEMENTS", 5 * NUM_ITEMS)  # 4 blocks
    model, batch = MeanOfItems(), make_batch(weighted=weighted, soft=soft)
    target = torch.zeros(ROWS, NUM_ITEMS)
    if batch.soft_items is not None and batch.soft_shares is not None:
        target.scatter_add_(1, batch.soft_items, 0.7 * batch.soft_shares)
    hard = 1 - target.sum(1, keepdim=True)
    target.scatter_add_(1, batch.positives[:, None], hard)
    scores = model.score(batch.items, batch.mask)
    by_row = -(target * scores.log_softmax(1)).sum(1)
    assert_equal_gradients(model, FullSoftmax(0.7), batch, mean(by_row, batch))


def test_softmax_stands_large_scores() -> None:
    encoded, table = 100 * torch.ones(2, 3), torch.arange(12.0).reshape(4, 3)
    labels, parts = torch.tensor([[0], [3]]), torch.ones(2, 1)
    by_encoded, by_table, value = softmax_gradients(
        encoded, table, labels, parts, torch.full((2,), 0.5), True
    )
    assert torch.isfinite(by_encoded).all()
    assert torch.isfinite(by_table).all()
    assert value == pytest.approx(0.5 * 100 * (30 - 3))  # row 0 loses the whole gap, row 1 nothing


@pytest.mark.parametrize("soft", [False, True])
def test_sampled_softmax_of_every_item_is_full_softmax(soft: bool) -> None:
    batch, model = make_batch(weighted=True, soft=soft), MeanOfItems()
    everything = SampledSoftmax(
        np.ones(NUM_ITEMS), numpy_stream(1, "t"), 0.7, expected=100 * NUM_ITEMS
    )
    sampled = everything(model, batch, True)
    by_sample = gradients(model)
    full = FullSoftmax(0.7)(model, batch, True)
    assert sampled == pytest.approx(full, rel=1e-5)
    for mine, wanted in zip(by_sample, gradients(model), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)


def test_sampled_softmax_has_no_bias_of_the_normaliser() -> None:
    """exp(loss + score of the positive) is the estimate; its mean is the true normaliser."""
    model, one = MeanOfItems(), make_batch()
    batch = RowBatch(one.items[:1], one.mask[:1], one.positives[:1], one.window_of[:1])
    counts = np.arange(NUM_ITEMS, dtype=float)
    loss = SampledSoftmax(counts, numpy_stream(2, "t"), expected=12)
    scores = model.score(batch.items, batch.mask)[0].detach().double()
    at_positive = float(scores[batch.positives[0]])
    estimates = np.array([np.exp(value_of(loss, model, batch) + at_positive) for _ in range(3000)])
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - float(scores.exp().sum())) < 4 * error


def test_sampled_bce_is_binary_cross_entropy_of_two_items() -> None:
    model, batch = MeanOfItems(), make_batch(weighted=True)
    negatives = torch.from_numpy(numpy_stream(7, "n").integers(NUM_ITEMS, size=ROWS))
    scores = model.score(batch.items, batch.mask)
    rows = torch.arange(ROWS)
    by_row = functional.binary_cross_entropy_with_logits(
        scores[rows, batch.positives], torch.ones(ROWS), reduction="none"
    ) + functional.binary_cross_entropy_with_logits(
        scores[rows, negatives], torch.zeros(ROWS), reduction="none"
    )
    loss = SampledBCE(NUM_ITEMS, numpy_stream(7, "n"))
    assert_equal_gradients(model, loss, batch, mean(by_row, batch))


def test_pairwise_value_is_left_out_when_not_wanted() -> None:
    assert InBatchPairwise()(MeanOfItems(), make_batch(), False) is None


def make_backbone(name: str, **options: object) -> Backbone:
    return registry.build(
        "recommenders",
        name,
        {"item_bias": True, **options},
        num_items=NUM_ITEMS,
        dim=4,
        generator=torch_stream(1, "initial weights"),
    )


@pytest.mark.parametrize(
    "loss",
    [
        InBatchPairwise(),
        SampledBCE(NUM_ITEMS, numpy_stream(1, "n")),
        FullSoftmax(0.7),
        SampledSoftmax(np.ones(NUM_ITEMS), numpy_stream(1, "n"), 0.7, expected=12),
    ],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("name", ["stamp", "attmix"])
def test_no_loss_or_backbone_makes_tensors_on_another_device(loss: Loss, name: str) -> None:
    """The meta device refuses to be mixed with CPU tensors, as a GPU does."""
    model, batch = make_backbone(name), make_batch(weighted=True, soft=True)
    module = cast(nn.Module, model).to("meta")
    moved = {field: getattr(batch, field).to("meta") for field in RowBatch.__slots__}
    assert loss(model, RowBatch(**moved), False) is None
    found = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.is_meta}
    assert found == dict(module.named_parameters()).keys()


@pytest.mark.parametrize("name", ["fpmc", "stamp", "attmix"])
def test_candidates_are_rows_of_the_item_table(name: str) -> None:
    model = make_backbone(name)
    nn.init.normal_(model.item_bias, generator=torch_stream(2, "bias"))  # type: ignore[attr-defined]
    items = torch.tensor([[3, 3, 0], [NUM_ITEMS - 1, 7, 5]])
    weigh = torch.randn(2, 3, model.item_table().shape[1], generator=torch_stream(3, "w"))
    (embed_candidates(model, items) * weigh).sum().backward()
    lean = gradients(cast(nn.Module, model))
    whole = model.item_table()[items]
    torch.testing.assert_close(embed_candidates(model, items), whole)
    (whole * weigh).sum().backward()
    torch.testing.assert_close(lean, gradients(cast(nn.Module, model)))
