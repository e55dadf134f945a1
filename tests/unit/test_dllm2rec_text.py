"""DLLM2Rec's text term: its folded steps are those on two parameters; files that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.distillation._text_term import TextTerm, read_texts
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import numpy_stream, torch_stream
from alkd_ray.training import examples
from alkd_ray.training.losses import InBatchPairwise
from alkd_ray.training.stepper import Objective, Stepper
from tests.ranked_world import (
    BACKBONES,
    DIM,
    NUM_ITEMS,
    TEXT_DIM,
    TRAINING,
    WINDOW,
    make_knowledge,
    make_student,
    make_texts,
)


class Explicit(nn.Module):
    """A backbone whose tables are what the paper writes: two parameters, added up when read."""

    def __init__(self, inner: Backbone, texts: Tensor, eta: float) -> None:
        super().__init__()
        self.inner = cast(nn.Module, inner)
        self.texts = texts
        self.eta = eta
        self.names = [n for n, _ in self.inner.named_parameters() if n.endswith("item_embedding")]
        self.free = nn.ParameterDict(
            {n: p for n, p in self.inner.named_parameters() if n not in self.names}
        )
        self.own = nn.ParameterDict(
            {n: self.inner.get_parameter(n).detach().clone() for n in self.names}
        )
        self.projection = nn.ParameterDict(
            {n: torch.zeros(DIM, texts.shape[1]) for n in self.names}
        )
        for name in self.names:
            delattr(self.inner, name)

    def trained(self) -> list[nn.Parameter]:
        parts = (self.free, self.own, self.projection)
        return [p for part in parts for p in part.parameters()]

    def put_together(self) -> Backbone:
        for name in self.names:
            text = self.eta * self.texts @ self.projection[name].T
            setattr(self.inner, name, self.own[name] + text)
        return cast(Backbone, self.inner)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_folded_steps_are_steps_on_both_parameters(backbone: str, weight_decay: float) -> None:
    texts, eta = make_texts(), 0.2
    knowledge = make_knowledge()
    training = TRAINING.model_copy(
        update={"weight_decay": weight_decay, "learning_rate": 0.01, "schedule": "cosine"}
    )
    rows = examples.of_sessions(knowledge.train, "last", WINDOW)
    student, explicit = make_student(backbone), Explicit(make_student(backbone), texts, eta)
    term = TextTerm(student, texts, eta)
    assert len(term.tables) == (1 if backbone == "attmix" else 2)
    stepper = Stepper(
        student, rows, training, 7, "x",
        Objective(term.after(InBatchPairwise()), term.moves, term.fold),
    )  # fmt: skip
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimiser = kind(explicit.trained(), lr=0.01, weight_decay=weight_decay)
    draws = numpy_stream(7, "x", "batches")
    for step in range(training.max_steps):
        stepper.step(want_value=False)
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / training.max_steps))
        index = draws.choice(len(rows), training.batch_size, replace=False, shuffle=False)
        optimiser.zero_grad()
        batch = rows.take(torch.from_numpy(index))
        whole = explicit.put_together()
        u = whole.encode(batch.items, batch.mask)
        scores = u @ whole.item_table()[batch.positives].T  # [B, B]
        functional.softplus(scores - scores.diagonal()[:, None]).mean().backward()
        optimiser.step()
        assert not any(move.any() for move in term.moves)
    wanted = cast(Any, explicit.put_together())
    for name in explicit.names:
        assert explicit.projection[name].abs().max() > 1e-3
        found = cast(nn.Module, student).get_parameter(name)
        torch.testing.assert_close(found, getattr(wanted, name), rtol=1e-4, atol=1e-5)


def test_moves_have_the_gradients_of_the_projection() -> None:
    """Adam hides a wrong factor, so the gradient is looked at itself."""
    student, texts, eta = make_student("stamp"), make_texts(), 0.2
    factors = torch.randn(NUM_ITEMS, DIM, generator=torch_stream(8, "factors"))
    term = TextTerm(student, texts, eta)
    (student.item_table().square() * factors).sum().backward()
    term.set_gradients()
    projection = torch.zeros(DIM, TEXT_DIM, requires_grad=True)
    items = student.item_table().detach() + eta * texts @ projection.T
    (items.square() * factors).sum().backward()
    inputs, targets = term.moves
    torch.testing.assert_close(targets.grad, projection.grad)
    assert inputs.grad is None  # no window was encoded


def test_text_embeddings_of_another_form_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "texts.npy"

    def refused(write: Callable[[], object]) -> str:
        write()
        with pytest.raises(InputError) as caught:
            read_texts(str(file), NUM_ITEMS)
        assert str(file) in str(caught.value)
        return str(caught.value)

    assert "cannot be read" in refused(lambda: None)
    assert "cannot be read" in refused(lambda: file.write_bytes(b"not numbers"))
    assert "cannot be read" in refused(lambda: file.write_bytes(b""))
    assert "cannot be read" in refused(
        lambda: np.save(file, np.array([{}], object), allow_pickle=True)
    )
    message = refused(lambda: np.save(file, np.zeros((3, 8), np.float32)))
    assert "[3, 8]" in message
    assert f"[{NUM_ITEMS}, dimensions]" in message
    assert "shape" in refused(lambda: np.save(file, np.zeros(NUM_ITEMS, np.float32)))
    assert "float32" in refused(lambda: np.save(file, np.zeros((NUM_ITEMS, 2), np.int64)))
    spoiled = np.zeros((NUM_ITEMS, 2), np.float32)
    spoiled[3, 1] = np.nan
    assert "row 3" in refused(lambda: np.save(file, spoiled))


def test_a_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "texts.npy", make_texts().numpy())
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(read_texts("texts.npy", NUM_ITEMS), make_texts())


def test_a_backbone_without_item_tables_is_refused() -> None:
    class Other(nn.Module):
        num_items = NUM_ITEMS

        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Parameter(torch.zeros(NUM_ITEMS * DIM))

    with pytest.raises(
        InputError, match=r"text_embeddings_path: a Other has no parameter with a row"
    ):
        TextTerm(cast(Backbone, Other()), make_texts(), 0.2)
