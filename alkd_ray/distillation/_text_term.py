"""Text embeddings of items inside a backbone's item tables: ``e_i = e_i^cf + eta W t_i``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alkd_ray.distillation._item_tables import item_tables
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone
from alkd_ray.training.examples import RowBatch
from alkd_ray.training.losses import Loss


class TextTerm:
    """Trains W jointly with the tables, of which each is one parameter all the while.

    A table E holds ``E_cf + eta T W^T`` from the start, with W = 0 there. Hence
    ``dL/dW = eta (dL/dE)^T T``, and a step that moves E_cf by D and W by V moves E by
    ``D + eta T V^T``. The optimiser moves E by D itself, since ``dL/dE_cf = dL/dE``. For V it
    gets a parameter that is 0 before every step, which :meth:`fold` then adds to E. As the
    optimiser's moments hang on gradients alone, this is the same as training E_cf and W; so it is
    with decoupled weight decay, which shrinks E, and with it both its parts, by one factor. The
    backbone is complete after each step, and nothing of this is left in its checkpoint.

    Attributes:
        moves: of each table ``[d, D]``, V of the step under way.
    """

    def __init__(self, backbone: Backbone, texts: Tensor, eta: float) -> None:
        """Finds the tables.

        Args:
            backbone: its tables are what :func:`item_tables` finds.
            texts: ``[N, D]`` float32, T, on the device of the training.
            eta: weight of the term.

        Raises:
            InputError: the backbone has no item table.
        """
        self.texts = texts
        self.eta = eta
        self.tables = item_tables(backbone, "distillation.options.text_embeddings_path:")
        self.moves = [
            nn.Parameter(torch.zeros(table.shape[1], texts.shape[1], device=texts.device))
            for table in self.tables
        ]

    def after(self, loss: Loss) -> Loss:
        """``loss``, and the moves' gradients from the tables' ones that it leaves."""

        def with_texts(backbone: Backbone, batch: RowBatch, want_value: bool) -> float | None:
            value = loss(backbone, batch, want_value)
            self.set_gradients()
            return value

        return with_texts

    def set_gradients(self) -> None:
        """Gives the moves their gradients, from the finished ones of the tables."""
        for table, move in zip(self.tables, self.moves, strict=True):
            if table.grad is not None:
                move.grad = self.eta * (table.grad.T @ self.texts)  # [d, D]

    @torch.no_grad()
    def fold(self) -> None:
        """Adds the moves to the tables, and sets them to 0 for the next step."""
        for table, move in zip(self.tables, self.moves, strict=True):
            table.addmm_(self.texts, move.T, alpha=self.eta)
            move.zero_()


def read_texts(path: str, num_items: int) -> Tensor:
    """``[N, D]`` float32, the text embeddings of a ``.npy`` file.

    Args:
        path: absolute, or relative to the working directory.
        num_items: N, the rows that are wanted.

    Raises:
        InputError: there is no such file, or it is not of that form.
    """
    file = Path(path).absolute()
    field = f"distillation.options.text_embeddings_path: {file}"
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{field}: cannot be read as a .npy file of numbers: {error}") from error
    if not isinstance(found, np.ndarray) or not np.issubdtype(found.dtype, np.floating):
        raise InputError(f"{field}: is not one array of float32; save it with numpy.save")
    if found.ndim != 2 or len(found) != num_items or not found.shape[1]:
        raise InputError(
            f"{field}: has the shape {list(found.shape)}, wanted is [{num_items}, dimensions], "
            "one row for each item in the order of the catalogue"
        )
    texts = np.ascontiguousarray(found, np.float32)
    if not np.isfinite(texts).all():
        row = int(np.flatnonzero(~np.isfinite(texts).all(1))[0])
        raise InputError(f"{field}: row {row} holds a number that is not finite; make it again")
    return torch.from_numpy(texts)
