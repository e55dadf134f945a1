"""DSL: masks and how they change, the schedule, and that a student ends exactly sparse."""

from __future__ import annotations

import functools
import math
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alkd_ray import registry
from alkd_ray.config import TrainingConfig
from alkd_ray.distillation import Knowledge
from alkd_ray.distillation._item_tables import item_tables
from alkd_ray.distillation._sparse_tables import SparseTables, change
from alkd_ray.distillation.dsl import DSL
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.training import examples
from alkd_ray.training.loop import train_rows
from alkd_ray.training.stepper import Objective, make_loss
from alkd_ray.types import BoolArray, FloatArray, SessionSet

NUM_ITEMS, WINDOW, DIM = 40, 4, 6
BACKBONES = ["fpmc", "stamp", "attmix"]


def world(sessions: int = 400) -> SessionSet:
    """Item i is followed by i + 1."""
    rng = numpy_stream(3, "dsl world")
    starts, lengths = rng.integers(NUM_ITEMS, size=sessions), rng.integers(1, 6, sessions)
    walks = [(s + np.arange(n + 1)) % NUM_ITEMS for s, n in zip(starts, lengths, strict=True)]
    return from_lists(
        np.arange(sessions),
        [walk[:-1].tolist() for walk in walks],
        [int(walk[-1]) for walk in walks],
        positional_split(sessions),
    )


def backbone(name: str = "fpmc", dim: int = DIM, seed: int = 1, **options: object) -> Backbone:
    return registry.build(
        "recommenders",
        name,
        {"init_std": 0.3, **options},
        num_items=NUM_ITEMS,
        dim=dim,
        generator=torch_stream(seed, "initial weights"),
    )


def weights(model: Backbone) -> Tensor:
    return torch.cat([p.detach().flatten() for p in cast(nn.Module, model).parameters()])


def knowledge() -> Knowledge:
    sessions = world()
    none = np.zeros(0, np.int64)
    return Knowledge(
        of_split(sessions, "train"), of_split(sessions, "valid"), WINDOW, none, (), backbone()
    )


def training(**given: object) -> TrainingConfig:
    base = {"batch_size": 64, "learning_rate": 0.02, "max_steps": 60, "metric": "recall@5"}
    return TrainingConfig(**{**base, **given})  # type: ignore[arg-type]


def dsl(**options: object) -> DSL:
    return registry.build("distillation", "dsl", {"interval": 7, "annealing_steps": 40, **options})


@functools.cache
def pretrained(name: str) -> dict[str, Tensor]:
    """The weights of a dense student that has learned something."""
    model = backbone(name)
    plainly_trained(model, training(max_steps=100), seed=1)
    return cast(nn.Module, model).state_dict()


def plainly_trained(model: Backbone, settings: TrainingConfig, seed: int) -> None:
    known = knowledge()
    rows = examples.of_sessions(known.train, settings.examples, WINDOW)
    train_rows(
        model, rows, known.valid, settings, WINDOW, seed, purpose="distillation", keep_start=True
    )


def drawn_masks(model: Backbone, density: float, seed: int) -> list[BoolArray]:
    """The masks that training with ``seed`` begins with, by a loop over items."""
    draws = numpy_stream(seed, "distillation", "dsl", "mask")
    masks = []
    for table in item_tables(model, ""):
        mask = draws.random(tuple(table.shape)) < density
        for item, row in enumerate(table.detach().abs().numpy()):
            if not mask[item].any():
                mask[item, row.argmax()] = True
        masks.append(mask)
    return masks


# One change of a mask


def naively_changed(
    mask: BoolArray, values: FloatArray, gradients: FloatArray, share: float
) -> BoolArray:
    """The same rule with Python's own sort; ``values`` are 0 where not in use."""
    mask = mask.copy()
    size, gradient = np.abs(values), np.abs(gradients)
    used = [place for place in np.ndindex(mask.shape) if mask[place]]
    best = [max((size[p], -p[1]) for p in used if p[0] == item) for item in range(len(mask))]
    free_to_go = [p for p in used if p[1] != -best[p[0]][1]]
    wanted = math.ceil(share * len(used))
    dropped = sorted(free_to_go, key=lambda p: (size[p], p))[:wanted]
    for place in dropped:
        mask[place] = False
    unused = [place for place in np.ndindex(mask.shape) if not mask[place]]
    for place in sorted(unused, key=lambda p: (-gradient[p], -size[p], p))[: len(dropped)]:
        mask[place] = True
    return mask


def test_a_change_worked_out_by_hand() -> None:
    mask = torch.tensor([[True, True, False], [True, True, False]])
    values = torch.tensor([[0.9, -0.1, 0.0], [-0.2, 0.8, 0.0]])
    gradients = torch.tensor([[0.0, 0.3, 0.5], [0.2, 9.0, 0.1]])
    # Half of 4: -.1 and -.2 go; of them and the two zeros .5 and .3 grow, and -.1 is back.
    change(mask, values.abs(), gradients, 0.5)
    assert mask.tolist() == [[True, True, True], [False, True, False]]


def test_without_gradients_what_was_dropped_comes_back() -> None:
    mask = torch.tensor([[True, True, False], [True, True, False]])
    values = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    before = mask.clone()
    change(mask, values, torch.zeros(2, 3), 0.5)
    assert torch.equal(mask, before)


@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("density", [0.15, 0.5, 1.0])
def test_a_change_is_that_of_a_plain_sort(density: float, share: float) -> None:
    rng = numpy_stream(1, "change", str(density))
    mask = rng.random((30, 8)) < density
    mask[~mask.any(1), 3] = True
    # Few different values: many ties, and items without any gradient.
    values = np.round(rng.normal(size=mask.shape), 1) * mask
    gradients = np.round(rng.normal(size=mask.shape), 1) * (rng.random((30, 1)) < 0.6)
    found = torch.from_numpy(mask.copy())
    change(found, torch.from_numpy(np.abs(values)), torch.from_numpy(np.abs(gradients)), share)
    expected = naively_changed(mask, values, gradients, share)
    assert found.numpy().tolist() == expected.tolist()
    assert found.sum() == mask.sum()
    assert found.any(1).all()
    if share == 0 or density == 1:
        assert (found.numpy() == mask).all()


def test_regrown_weights_keep_their_value_and_new_ones_start_at_0() -> None:
    table = nn.Parameter(torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.7]]))
    sparse = SparseTables([table], 1.0, numpy_stream(1, "t"), "cpu")
    sparse.masks[0][:] = torch.tensor([[True, True, False], [True, True, False]])
    sparse.apply()
    assert table.tolist() == torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]).tolist()
    table.grad = torch.tensor([[0.0, -0.3, 0.5], [0.2, 9.0, 0.1]])
    sparse.explore(0.5)
    assert table.tolist() == torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.0]]).tolist()
    assert sparse.masks[0].tolist() == [[True, True, True], [False, True, False]]
    table.grad = None  # not part of the loss: nothing is known, nothing changes
    sparse.explore(0.5)
    assert sparse.masks[0].tolist() == [[True, True, True], [False, True, False]]


# The masks that training begins with


def test_masks_are_bernoulli_draws_and_leave_every_item_a_weight() -> None:
    table = nn.Parameter(torch.randn(4000, 10, generator=torch_stream(1, "t")))
    (half,) = SparseTables([table], 0.5, numpy_stream(1, "t"), "cpu").masks
    count = table.numel()
    assert abs(int(half.sum()) - count / 2) < 4 * math.sqrt(count / 4) + 4000 * 0.5**10
    (few,) = SparseTables([table], 0.05, numpy_stream(1, "t"), "cpu").masks
    assert few.any(1).all()
    alone = few.sum(1) == 1
    kept = torch.from_numpy(numpy_stream(1, "t").random((4000, 10)) < 0.05)
    assert torch.equal(few[kept.any(1)], kept[kept.any(1)])
    rescued = alone & ~kept.any(1)
    assert torch.equal(few[rescued].float().argmax(1), table[rescued].abs().argmax(1))


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("fpmc", ["input_item_embedding", "target_item_embedding"]),
        ("stamp", ["input_item_embedding", "target_item_embedding"]),
        ("attmix", ["item_embedding"]),
    ],
)
def test_sparse_are_the_item_tables(name: str, tables: list[str]) -> None:
    model = backbone(name, item_bias=True)
    found = item_tables(model, "a test:")
    assert [id(table) for table in found] == [id(getattr(model, name)) for name in tables]


def test_a_square_matrix_is_no_item_table() -> None:
    """With as many dimensions as items, no shape tells them apart."""
    with pytest.raises(InputError, match="a test: a Fpmc has no parameter with a row for each"):
        item_tables(backbone(dim=NUM_ITEMS), "a test:")


# The method


def test_the_share_falls_by_a_cosine() -> None:
    method = dsl()
    assert method.share_at(0.0) == pytest.approx(0.5)
    assert method.share_at(0.5) == pytest.approx((0.5 + 0.005) / 2)
    assert method.share_at(1.0) == pytest.approx(0.005)
    assert method.share_at(3.0) == pytest.approx(0.005)
    assert method.share_at(1 / 3) == pytest.approx(0.005 + 0.495 * 0.75)


@pytest.mark.parametrize("name", BACKBONES)
def test_density_1_is_plain_training_to_the_bit(name: str) -> None:
    sparse, plain = backbone(name), backbone(name)
    dsl(density=1.0).distill(sparse, knowledge(), training(), seed=2)
    plainly_trained(plain, training(), seed=2)
    assert torch.equal(weights(sparse), weights(plain))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", BACKBONES)
def test_training_is_a_masked_step_and_a_change_every_interval(name: str, decay: float) -> None:
    """Against a loop written with numpy masks; the moments of Adam never revive a weight."""
    settings = training(weight_decay=decay, max_steps=30, validate_every=30)
    found, model, known = backbone(name), backbone(name), knowledge()
    dsl().distill(found, known, settings, seed=2)
    tables, masks = item_tables(model, ""), drawn_masks(model, 0.5, seed=2)
    counts = [mask.sum() for mask in masks]
    step = 0

    def mask_all() -> None:
        for table, mask in zip(tables, masks, strict=True):
            table.data[torch.from_numpy(~mask)] = 0

    def after_step() -> None:
        nonlocal step
        step += 1
        mask_all()
        if step % 7 == 0:
            share = 0.005 + 0.495 * (1 + math.cos(math.pi * min(step / 30, 1))) / 2
            for i, table in enumerate(tables):
                assert table.grad is not None
                values, gradients = table.detach().numpy(), table.grad.numpy()
                masks[i] = naively_changed(masks[i], values, gradients, share)
            mask_all()

    rows = examples.of_sessions(known.train, "last", WINDOW)
    mask_all()
    loss = make_loss(settings, rows, NUM_ITEMS, 2, "distillation")
    train_rows(
        model,
        rows,
        known.valid,
        settings,
        WINDOW,
        2,
        purpose="distillation",
        keep_start=True,
        objective=Objective(loss, after_step=after_step),
    )
    assert torch.equal(weights(found), weights(model))
    assert [mask.sum() for mask in masks] == counts
    first = drawn_masks(backbone(name), 0.5, seed=2)
    assert all((mask != before).any() for mask, before in zip(masks, first, strict=True))


@pytest.mark.parametrize("density", [0.2, 0.5])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_student_ends_exactly_sparse_whichever_weights_were_best(
    name: str, density: float
) -> None:
    for settings in (training(), training(learning_rate=3.0, max_steps=10, validate_every=5)):
        student = backbone(name)
        cast(nn.Module, student).load_state_dict(pretrained(name))
        most = [int(mask.sum()) for mask in drawn_masks(student, density, seed=3)]
        result = dsl(density=density).distill(student, knowledge(), settings, seed=3)
        used = [int((table != 0).sum()) for table in item_tables(student, "")]
        # Weights grown without a gradient are 0 until their item is in a batch.
        assert all(0.9 * most_of <= of <= most_of for of, most_of in zip(used, most, strict=True))
        assert result.history[0]["step"] == 0


def test_the_dense_start_does_not_count() -> None:
    """Training that spoils the student ends with the masked start, not with the dense one."""
    student = backbone()
    cast(nn.Module, student).load_state_dict(pretrained("fpmc"))
    start = [table.detach().clone() for table in item_tables(student, "")]
    masks = drawn_masks(student, 0.5, seed=3)
    settings = training(learning_rate=50.0, max_steps=4, validate_every=2)
    result = dsl().distill(student, knowledge(), settings, seed=3)
    assert result.best_step == 0
    for table, before, mask in zip(item_tables(student, ""), start, masks, strict=True):
        assert torch.equal(table.detach(), before * torch.from_numpy(mask))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_sparse_student_learns(name: str) -> None:
    student = backbone(name, dim=12)
    settings = training(max_steps=160, learning_rate=0.05)
    result = dsl(interval=20, annealing_steps=100).distill(student, knowledge(), settings, 1)
    assert result.history[0]["metric"] < 0.3
    assert result.best_metric > 0.9
    assert result.best_step > 20


def test_a_seed_gives_the_same_bits() -> None:
    runs = []
    for seed in (1, 1, 2):
        student = backbone()
        dsl().distill(student, knowledge(), training(examples="prefixes"), seed)
        runs.append(weights(student))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0] == 0, runs[2] == 0)


class Tableless(nn.Module):
    """A backbone whose embeddings have no row for each item."""

    num_items = NUM_ITEMS

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.zeros(NUM_ITEMS * DIM))

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        return self.item_table()[items].sum(1)

    def item_table(self) -> Tensor:
        return self.flat.view(NUM_ITEMS, DIM)

    def score(self, items: Tensor, mask: Tensor) -> Tensor:
        return self.encode(items, mask) @ self.item_table().T


def test_what_cannot_be_is_refused() -> None:
    settings = training(loss="softmax", soft_labels=["item-knn"])
    with pytest.raises(InputError, match="soft_labels must be empty"):
        dsl().distill(backbone(), knowledge(), settings, 1)
    with pytest.raises(InputError, match="a Tableless has no parameter with a row for each"):
        dsl().distill(Tableless(), knowledge(), training(), 1)
    with pytest.raises(InputError, match="density"):
        registry.options("distillation", "dsl", {"density": 0.0})
    with pytest.raises(InputError, match="last_share must not be above first_share"):
        registry.options("distillation", "dsl", {"first_share": 0.1, "last_share": 0.2})
