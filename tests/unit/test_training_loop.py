"""The loop: determinism, early stopping, the best weights, draws, bad numbers, bad settings."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from alkd_ray import registry
from alkd_ray.config import TrainingConfig
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import rank_targets
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.sessions import from_lists, of_split, positional_split
from alkd_ray.training import examples, loop, stepper
from alkd_ray.types import SessionSet

NUM_ITEMS, WINDOW = 60, 5


def ring_world(sessions: int = 600) -> SessionSet:
    """Item i is followed by i + 1: what comes next can be learned for certain."""
    rng = numpy_stream(11, "ring world")
    starts, lengths = rng.integers(NUM_ITEMS, size=sessions), rng.integers(1, 7, size=sessions)
    walks = [(s + np.arange(n + 1)) % NUM_ITEMS for s, n in zip(starts, lengths, strict=True)]
    return from_lists(
        np.arange(sessions),
        [walk[:-1] for walk in walks],
        [int(walk[-1]) for walk in walks],
        positional_split(sessions),
    )


def make(name: str = "fpmc", seed: int = 1, **options: object) -> Backbone:
    return registry.build(
        "recommenders",
        name,
        options,
        num_items=NUM_ITEMS,
        dim=8,
        generator=torch_stream(seed, "initial weights"),
    )


def settings(**given: object) -> TrainingConfig:
    base = {"batch_size": 64, "learning_rate": 0.03, "max_steps": 120, "metric": "recall@5"}
    return TrainingConfig(**{**base, **given})  # type: ignore[arg-type]


def fitted(model: Backbone, training: TrainingConfig, seed: int = 1) -> loop.TrainingResult:
    world = ring_world()
    return loop.fit(
        model, of_split(world, "train"), of_split(world, "valid"), training, WINDOW, seed
    )


def weights(model: Backbone) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])  # type: ignore[attr-defined]


@pytest.mark.parametrize("loss", ["pairwise", "sampled_bce", "softmax"])
def test_a_seed_gives_the_same_bits(loss: str) -> None:
    runs = []
    for seed in (1, 1, 2):
        model = make()
        result = fitted(model, settings(loss=loss, max_steps=40), seed)
        runs.append((weights(model), [entry["metric"] for entry in result.history]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])


def test_dropout_draws_from_a_stream_of_the_seed() -> None:
    found = []
    for seed, dropout in ((1, 0.3), (1, 0.3), (1, 0.0)):
        torch.rand(3)  # where the global generator stands is of no matter
        model = make("attmix", dropout=dropout)
        fitted(model, settings(max_steps=20), seed)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.parametrize("loss", ["pairwise", "softmax"])
def test_the_number_of_threads_changes_rounding_alone(loss: str) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = make("attmix")
            fitted(model, settings(loss=loss, max_steps=20))
            found.append(weights(model))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_a_bar_is_told_of_steps_between_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TELL_SECONDS", 0.0)
    world, told = ring_world(), []
    loop.fit(
        make(),
        of_split(world, "train"),
        of_split(world, "valid"),
        settings(max_steps=25, validate_every=10),
        WINDOW,
        1,
        lambda step, most, best: told.append((step, most, best)),
    )
    assert [step for step, _, _ in told] == list(range(1, 26))
    assert {most for _, most, _ in told} == {25}
    assert [best for _, _, best in told[:9]] == [0.0] * 9  # nothing is known yet


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "pairwise"},
        {"loss": "pairwise", "examples": "prefixes", "schedule": "cosine"},
        {"loss": "sampled_bce", "max_steps": 800},
        {"loss": "softmax", "weight_decay": 1e-3},
        {"loss": "softmax", "examples": "prefixes", "soft_labels": ["sequential-rules"]},
    ],
    ids=str,
)
def test_every_loss_learns_the_ring(given: dict[str, object]) -> None:
    model = make(position_weights=True)
    fitted(model, settings(**{"max_steps": 400, **given}))
    test = of_split(ring_world(), "test")
    values = metric_values(rank_targets(model, test, WINDOW), "recall@5")
    assert values.mean() > 0.9


def test_the_best_weights_are_kept_and_told() -> None:
    model, told = make(), []
    world = ring_world()
    valid = of_split(world, "valid")
    result = loop.fit(
        model,
        of_split(world, "train"),
        valid,
        settings(learning_rate=0.5, max_steps=150, validate_every=7, metric="ndcg@5"),
        WINDOW,
        1,
        lambda step, most, best: told.append((step, most, best)),
    )
    found = {entry["step"]: entry["metric"] for entry in result.history}
    first_best = min(step for step, value in found.items() if value == max(found.values()))
    assert result.best_step == first_best < result.steps
    assert result.best_metric == found[first_best]
    again = metric_values(rank_targets(model, valid, WINDOW), "ndcg@5").mean()
    assert again == pytest.approx(result.best_metric, abs=1e-12)
    assert [step for step, _, _ in told] == [*range(7, 150, 7), 150][: len(told)]
    assert [best for _, _, best in told] == np.maximum.accumulate(list(found.values())).tolist()


def test_patience_counts_validations_without_gain() -> None:
    result = fitted(make(), settings(learning_rate=1e-12, patience=3, validate_every=4))
    assert (result.best_step, result.steps) == (4, 16)  # the first, then three without gain


def test_the_start_counts_only_when_asked() -> None:
    world, model = ring_world(), make()
    fitted(model, settings(max_steps=300))
    before = weights(model)
    wrong = examples.of_rankings(  # every window shall be followed by item 0
        of_split(world, "train"), np.arange(300), np.zeros(300, np.int64), None, WINDOW
    )
    for keep_start in (True, False):
        result = loop.train_rows(
            model,
            wrong,
            of_split(world, "valid"),
            settings(loss="softmax", patience=2),
            WINDOW,
            1,
            purpose="test",
            keep_start=keep_start,
        )
        assert (result.best_step == 0) == keep_start
        assert torch.equal(weights(model), before) == keep_start


def test_a_batch_has_no_row_twice_and_every_row_is_as_likely() -> None:
    rng = numpy_stream(1, "draws")
    drawn = [stepper.draw(rng, 50, 20) for _ in range(2000)]
    assert all(len(set(index.tolist())) == 20 for index in drawn)
    counts = Counter(np.concatenate([index.numpy() for index in drawn]).tolist())
    assert len(counts) == 50
    # each count is binomial with mean 800 and sd 21.9
    assert max(abs(count - 800) for count in counts.values()) < 5 * 22
    assert sorted(stepper.draw(rng, 5, 20).tolist()) == [0, 1, 2, 3, 4]


def test_a_pairwise_batch_of_one_row_is_refused() -> None:
    with pytest.raises(InputError, match=r"compares the rows of a batch.*batch_size 1"):
        fitted(make(), settings(batch_size=1))


def test_a_history_is_strict_json_from_the_start_on() -> None:
    world = ring_world()
    train = of_split(world, "train")
    result = loop.train_rows(
        make(),
        examples.of_sessions(train, "last", WINDOW),
        of_split(world, "valid"),
        settings(max_steps=20),
        WINDOW,
        1,
        purpose="test",
        keep_start=True,
    )
    json.dumps(result.history, allow_nan=False)
    assert [("loss" in entry) for entry in result.history] == [False, True]


def test_divergence_is_one_clear_sentence() -> None:
    with pytest.raises(AlkdError, match=r"diverged.*lower training.learning_rate \(it is 1e\+30\)"):
        fitted(make(), settings(learning_rate=1e30, validate_every=5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"soft_labels": ["item-knn"]}, "needs training.loss softmax, not pairwise"),
        ({"loss": "softmax", "soft_labels": ["fpmc"]}, "'fpmc' is not a plain recommender"),
        ({"loss": "softmax", "soft_labels": ["nothing"]}, "unknown name 'nothing'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted(make(), settings(**given))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="finds no GPU here"):
        fitted(make(), settings(device="cuda"))


def test_empty_splits_are_refused() -> None:
    world = ring_world(2)  # 1 trains, 0 validate, 1 tests
    train, valid = of_split(world, "train"), of_split(world, "valid")
    with pytest.raises(InputError, match="no validation sessions"):
        loop.fit(make(), train, valid, settings(), WINDOW, 1)
    with pytest.raises(InputError, match="no training session has an input item"):
        loop.fit(make(), valid, train, settings(), WINDOW, 1)


def test_bias_starts_at_centred_log_popularity() -> None:
    model = make(item_bias=True)
    rows = examples.of_sessions(of_split(ring_world(), "train"), "prefixes", WINDOW)
    loop.start_bias_from_popularity(model, rows)
    bias = model.item_bias.detach().numpy()  # type: ignore[attr-defined]
    counts = np.bincount(rows.positives.numpy(), minlength=NUM_ITEMS)
    assert abs(bias.mean()) < 1e-6
    np.testing.assert_allclose(np.diff(bias), np.diff(np.log1p(counts)), atol=1e-5)
