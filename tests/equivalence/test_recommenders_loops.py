"""The batched encoders equal the papers' formulas, worked out one window at a time in numpy."""

import numpy as np
import pytest
import torch

from alkd_ray.recommenders.attmix import AttMix
from alkd_ray.recommenders.fpmc import Fpmc
from alkd_ray.recommenders.stamp import Stamp
from alkd_ray.seeds import numpy_stream, torch_stream

N, DIM, WINDOW = 30, 6, 10


def prepared(backbone_class, **options):
    generator = torch_stream(0, "loops")
    model = backbone_class(num_items=N, dim=DIM, generator=generator, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model, {name: value.detach().numpy() for name, value in model.named_parameters()}


def check(model, reference):
    rng = numpy_stream(0, "loops")
    rows = [rng.integers(0, N, length) for length in (1, 2, 3, 7, 10)]
    items, mask = np.zeros((len(rows), WINDOW), np.int64), np.zeros((len(rows), WINDOW), bool)
    for at, row in enumerate(rows):
        items[at, -len(row) :], mask[at, -len(row) :] = row, True
    with torch.no_grad():
        found = model.encode(torch.from_numpy(items), torch.from_numpy(mask)).numpy()
    expected = np.stack([reference(row) for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_fpmc():
    model, values = prepared(Fpmc)
    check(model, lambda row: values["input_item_embedding"][row].mean(0))


def test_fpmc_with_every_option():
    model, values = prepared(
        Fpmc, position_weights=True, positions=4, tanh_layer=True, item_bias=True
    )

    def reference(row):
        from_end = np.minimum(np.arange(len(row))[::-1], 3)
        weights = softmax(values["position_logits"][from_end])
        mean = weights @ values["input_item_embedding"][row]
        return np.append(np.tanh(values["mixing"] @ mean + values["mixing_bias"]), 1)

    check(model, reference)


def test_stamp():
    for trilinear in (False, True):
        for padding in (0, 10):
            model, values = prepared(Stamp, trilinear=trilinear, reference_padding=padding)

            def reference(row, v=values, trilinear=trilinear, padding=padding):
                e = v["input_item_embedding"][row]
                missing = max(0, padding - len(row)) * v["input_item_embedding"][0]
                ms = (e.sum(0) + missing) / len(row)
                a = [
                    v["w0"] @ sigmoid(v["w1"] @ x + v["w2"] @ e[-1] + v["w3"] @ ms + v["b_a"])
                    for x in e
                ]
                attended = np.array(a) @ e
                if not trilinear:
                    return attended + ms
                current = np.tanh(v["w_t"] @ e[-1] + v["b_t"])
                return np.tanh(v["w_s"] @ attended + v["b_s"]) * current

            check(model, reference)


def unit(x, is_normalised=True):
    return x / np.linalg.norm(x, axis=-1, keepdims=True) if is_normalised else x


def attmix_session(v, row, normalise, lp, kept_items=1.0, kept_maps=(1.0, 1.0)):
    """A session of two heads, three levels and length 5; what dropout kept is 0 or 1 / (1 - p)."""
    x = unit(v["item_embedding"][row], normalise != "none") * kept_items
    attended, part = [], DIM // 2
    for head in range(2):
        block = slice(head * part, (head + 1) * part)
        maps = []
        for level in range(3):
            q = v["level_weights"][level] @ x[-(level + 1) :].mean(0)
            q = v["query"][block] @ (q + v["level_bias"][level])
            maps.append(softmax(x @ v["key"][block].T @ q / np.sqrt(part)))
        pooled = np.mean(np.array(maps) ** lp, axis=0) ** (1 / lp)
        attention = pooled / pooled.sum() * kept_maps[head]
        attended.append(attention @ x @ v["value"][block].T)
    session = v["output"] @ np.concatenate([*attended, x[-1]]) + v["output_bias"]
    return session if normalise == "none" else 5.0 * unit(session)


@pytest.mark.parametrize("normalise", ["both", "session", "none"])
@pytest.mark.parametrize("lp", [1.0, 3.0])
@pytest.mark.parametrize("two_tables", [False, True])
def test_attmix(normalise, lp, two_tables):
    model, v = prepared(
        AttMix, levels=3, heads=2, lp=lp, normalise=normalise, scale=5.0, two_tables=two_tables
    )
    check(model, lambda row: attmix_session(v, row, normalise, lp))
    candidates = v["target_item_embedding" if two_tables else "item_embedding"]
    table = model.item_table().detach().numpy()
    np.testing.assert_allclose(table, unit(candidates, normalise == "both"), rtol=1e-5, atol=1e-6)


def test_attmix_with_dropout():
    model, v = prepared(AttMix, levels=3, heads=2, scale=5.0, lp=1.0, dropout=0.3)
    rng = numpy_stream(0, "dropout")
    items = torch.from_numpy(rng.integers(0, N, (8, 4)))
    mask = torch.ones(items.shape, dtype=torch.bool)
    model.training_draws = torch_stream(0, "dropout")
    same = torch_stream(0, "dropout")
    kept_items = (torch.rand((8, 4, DIM), generator=same) >= 0.3).numpy() / 0.7
    kept_maps = (torch.rand((8, 4, 2), generator=same) >= 0.3).numpy() / 0.7
    with torch.no_grad():
        trained = model.encode(items, mask).numpy()
        whole = model.eval().encode(items, mask).numpy()
        model.training_draws = None
        np.testing.assert_array_equal(model.train().encode(items, mask).numpy(), whole)
    for at, row in enumerate(items.numpy()):
        expected = attmix_session(v, row, "both", 1.0, kept_items[at], kept_maps[at].T)
        np.testing.assert_allclose(trained[at], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            whole[at], attmix_session(v, row, "both", 1.0), rtol=1e-4, atol=1e-5
        )
