"""What every recommender of the room keeps: shapes, invariances, and that it learns."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from alkd_ray import registry
from alkd_ray import sessions as windows_of
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone, PlainRecommender, Recommender
from alkd_ray.seeds import numpy_stream, torch_stream

N, DIM, WINDOW = 50, 16, 10
NAMES = registry.names("recommenders")
BACKBONES = [name for name in NAMES if not hasattr(registry.find("recommenders", name), "fit")]
PLAIN = [name for name in NAMES if name not in BACKBONES]
# Every option that adds parameters or another way of computing.
VARIANTS = [
    ("fpmc", {}),
    ("fpmc", {"position_weights": True, "tanh_layer": True, "item_bias": True}),
    ("stamp", {}),
    ("stamp", {"trilinear": True, "item_bias": True}),
    ("stamp", {"reference_padding": 10}),
    ("attmix", {}),
    ("attmix", {"normalise": "none", "heads": 4, "levels": 5, "lp": 1.0, "item_bias": True}),
    (
        "attmix",
        {
            "normalise": "session",
            "scale": 1.0,
            "two_tables": True,
            "init": "uniform",
            "item_bias": True,
        },
    ),
    ("popularity", {}),
    ("item-knn", {}),
    ("item-knn", {"neighbours": 3, "shrinkage": 0.0, "last": 2}),
    ("sequential-rules", {}),
    ("sequential-rules", {"decay": 0.0}),
    ("vsknn", {}),
    ("vsknn", {"similarity": "cosine", "idf": False, "match_weight": False, "sample": 0}),
]
BACKBONE_VARIANTS = [variant for variant in VARIANTS if variant[0] in BACKBONES]


def backbone(name, options, dim=DIM, seed=0, num_items=N):
    generator = torch_stream(seed, "contract", name)
    return registry.build(
        "recommenders", name, options, num_items=num_items, dim=dim, generator=generator
    )


def made(name, options):
    """A recommender ready to score: drawn, or fitted to random sessions."""
    if name in BACKBONES:
        model = backbone(name, options)
        # Away from the initial values, where much is zero and invisible.
        generator = torch_stream(1, "contract", name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model
    model = registry.build("recommenders", name, options, num_items=N)
    rng = numpy_stream(0, "contract")
    lists = [rng.integers(0, N, rng.integers(1, 8)).tolist() for _ in range(60)]
    targets = rng.integers(0, N, 60)
    model.fit(windows_of.from_lists(range(60), lists, targets, ["train"] * 60))
    return model


def random_windows(rows=9):
    rng = numpy_stream(0, "contract", "windows")
    lengths = np.r_[1, WINDOW, rng.integers(1, WINDOW + 1, rows - 2)]
    mask = np.arange(WINDOW)[None, :] >= WINDOW - lengths[:, None]
    items = np.where(mask, rng.integers(0, N, mask.shape), 0)
    items[3, -2:] = items[3, -1]  # a repeated item
    return torch.from_numpy(items), torch.from_numpy(mask)


def test_every_recommender_is_in_a_variant():
    assert {name for name, _ in VARIANTS} == set(NAMES)
    assert BACKBONES == ["attmix", "fpmc", "stamp"]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_scores(name, options):
    model = made(name, options)
    items, mask = random_windows()
    with torch.no_grad():
        scores = model.score(items, mask)
    assert isinstance(model, Recommender)
    assert isinstance(model, Backbone if name in BACKBONES else PlainRecommender)
    assert scores.shape == (len(items), N)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    if name != "popularity":  # something depends on the window
        assert not torch.allclose(scores[0], scores[1])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_row_depends_on_its_items_alone(name, options):
    model = made(name, options)
    items, mask = random_windows()
    with torch.no_grad():
        whole = model.score(items, mask).clone()
        single = torch.cat(
            [model.score(items[row : row + 1], mask[row : row + 1]) for row in range(len(items))]
        )
        wider = model.score(
            functional.pad(items, (3, 0), value=7), functional.pad(mask, (3, 0), value=False)
        ).clone()
        junk = model.score(torch.where(mask, items, 11), mask).clone()
        first = model.score(items[:1, -1:], mask[:1, -1:])
    for other in (single, wider, junk):
        torch.testing.assert_close(other, whole)
    torch.testing.assert_close(first, whole[:1])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_scores_may_be_overwritten(name, options):
    model = made(name, options)
    items, mask = random_windows()
    with torch.no_grad():
        before = model.score(items, mask)
        kept = before.clone()
        before.fill_(-torch.inf)
        torch.testing.assert_close(model.score(items, mask), kept)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_window_without_items_has_finite_scores(name, options):
    model = made(name, options)
    items, mask = random_windows()
    mask[2] = False
    scores = model.score(items, mask)
    assert scores.isfinite().all()
    assert model.score(items[2:3], mask[2:3]).isfinite().all()
    if name in BACKBONES:
        scores.sum().backward()
        for parameter_name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize(("name", "options"), BACKBONE_VARIANTS)
def test_score_is_the_product_of_its_halves(name, options):
    model = made(name, options)
    items, mask = random_windows()
    with torch.no_grad():
        encoded, table = model.encode(items, mask), model.item_table()
        scores = model.score(items, mask)
    assert encoded.dtype == table.dtype == torch.float32
    assert table.shape == (N, encoded.shape[1])
    assert encoded.shape[1] == DIM + ("item_bias" in options)
    torch.testing.assert_close(scores, encoded @ table.T)


@pytest.mark.parametrize(("name", "options"), BACKBONE_VARIANTS)
def test_item_bias_moves_one_column(name, options):
    model = made(name, options)
    if "item_bias" not in options:
        assert model.item_bias is None
        return
    items, mask = random_windows()
    with torch.no_grad():
        before = model.score(items, mask)
        model.item_bias[4] += 2.5
        moved = model.score(items, mask) - before
    expected = torch.zeros(len(items), N)
    expected[:, 4] = 2.5
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(("name", "options"), BACKBONE_VARIANTS)
def test_the_generator_alone_decides_the_start(name, options):
    torch.rand(1)  # the global stream is not read
    one, same, other = (backbone(name, options, seed=seed) for seed in (0, 0, 1))
    for (key, value), again in zip(one.state_dict().items(), same.parameters(), strict=True):
        assert torch.equal(value, again), key
    assert not all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize(("name", "options"), BACKBONE_VARIANTS)
def test_gradients_reach_every_parameter(name, options):
    model = made(name, options)
    items, mask = random_windows()
    functional.cross_entropy(model.score(items, mask), torch.arange(len(items))).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(("name", "options"), BACKBONE_VARIANTS)
def test_checkpoint_names_hold_the_whole_state(name, options):
    model = made(name, options)
    items, mask = random_windows()
    again = backbone(name, options, seed=5)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.score(items, mask), model.score(items, mask))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("dim", [0, -3])
def test_bad_sizes_are_refused(name, dim):
    with pytest.raises(InputError, match="dim"):
        backbone(name, {}, dim=dim)
    with pytest.raises(InputError, match="num_items"):
        backbone(name, {}, num_items=0)


@pytest.mark.parametrize("name", PLAIN)
def test_items_outside_the_catalogue_are_refused(name):
    model = registry.build("recommenders", name, {}, num_items=5)
    with pytest.raises(InputError, match="num_items 5"):
        model.fit(windows_of.from_lists([0], [[1, 5]], [2], ["train"]))
    with pytest.raises(InputError, match="target 9"):
        model.fit(windows_of.from_lists([0], [[1, 2]], [9], ["train"]))


@pytest.mark.parametrize("name", PLAIN)
def test_fitting_again_forgets(name):
    first = windows_of.from_lists([0, 1], [[1, 2], [2, 3]], [3, 4], ["train"] * 2)
    second = windows_of.from_lists([0], [[5, 6]], [7], ["train"])
    twice, once = (registry.build("recommenders", name, {}, num_items=8) for _ in range(2))
    twice.fit(first)
    twice.fit(second)
    once.fit(second)
    window = torch.tensor([[2, 6]]), torch.ones(1, 2, dtype=torch.bool)
    assert torch.equal(twice.score(*window), once.score(*window))


def chain_windows(seed, rows):
    """Windows of a world where item i is always followed by i + 1, mod N; N known answers."""
    rng = numpy_stream(seed, "chain")
    lengths = rng.integers(1, WINDOW + 1, rows)
    last = rng.integers(0, N, rows)
    mask = np.arange(WINDOW)[None, :] >= WINDOW - lengths[:, None]
    items = (last[:, None] - np.arange(WINDOW - 1, -1, -1)[None, :]) % N
    return torch.from_numpy(np.where(mask, items, 0)), torch.from_numpy(mask), (last + 1) % N


@pytest.mark.parametrize(("name", "options"), BACKBONE_VARIANTS)
def test_backbone_learns_a_chain(name, options):
    torch.set_num_threads(1)
    model = backbone(name, options)
    assert isinstance(model, nn.Module)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    items, mask, targets = chain_windows(0, 2000)
    targets = torch.from_numpy(targets)
    order = torch_stream(0, "chain", "order")
    for _ in range(300):
        rows = torch.randint(len(items), (128,), generator=order)
        optimiser.zero_grad()
        functional.cross_entropy(model.score(items[rows], mask[rows]), targets[rows]).backward()
        optimiser.step()
    items, mask, targets = chain_windows(1, 500)
    with torch.no_grad():
        best = model.score(items, mask).argmax(1).numpy()
    assert (best == targets).mean() > 0.9
