"""Small networks that turn a student's embedding into the teacher's, and the gate between them.

Kang, Hwang, Kweon and Yu: DE-RRD. CIKM 2020, section 3.1 (experts and their selection).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from alkd_ray.config import TrainingConfig
from alkd_ray.distillation._entities import Embedded
from alkd_ray.distillation._joint import FrozenTeacher
from alkd_ray.recommenders import Backbone
from alkd_ray.recommenders._lookup import added_up, rows_of
from alkd_ray.registry import PluginConfig
from alkd_ray.seeds import numpy_stream, torch_stream

NEGLIGIBLE = 2.0**-24
"""Share of an expert that float32 loses beside a share of 1."""


class Temperature:
    """Falls from ``start`` to ``end`` by the same factor at each of ``steps`` steps, then stays.

    ``T_e = T_0 (T_E / T_0)^(e / E)``, e counted from 0.
    """

    def __init__(self, start: float, end: float, steps: int) -> None:
        self.start = start
        self.end = end
        self.steps = steps
        self._made = 0

    def next(self) -> float:
        """T of the next step."""
        share = min(1.0, self._made / self.steps)
        self._made += 1
        return self.start * (self.end / self.start) ** share


class Annealed:
    """A method whose temperature falls: its options for that."""

    class Config(PluginConfig):
        """Options of the temperature."""

        start_temperature: float = Field(1.0, ge=1e-10, description="T at the first step")
        end_temperature: float = Field(
            1e-10, ge=1e-10, description="T at last, not above start_temperature"
        )
        annealing_steps: int = Field(
            1000, ge=1, description="steps in which T falls; max_steps, if that is less"
        )

        @model_validator(mode="after")
        def _falling(self) -> Annealed.Config:
            if self.end_temperature > self.start_temperature:
                raise ValueError("end_temperature must not be above start_temperature")
            return self

    def __init__(
        self, start_temperature: float, end_temperature: float, annealing_steps: int
    ) -> None:
        self.start_temperature = start_temperature
        self.end_temperature = end_temperature
        self.annealing_steps = annealing_steps

    def temperature(self, training: TrainingConfig) -> Temperature:
        """At its first step."""
        steps = min(self.annealing_steps, training.max_steps)
        return Temperature(self.start_temperature, self.end_temperature, steps)


class Experts(nn.Module):
    """K networks ``E_m`` from a student's embedding s to its teacher's t, and a gate that reads t.

    ``E_m``: linear (d_s -> (d_t + d_s) // 2), ReLU, linear (-> d_t). The gate shares t among them:
    ``z = softmax((log softmax(W t) + Gumbel) / T)``; the lower T, the more it chooses one.

    Initial weights and biases are uniform within 1 / sqrt(inputs), as torch's linear layers. The
    noise comes from a numpy stream on the host, so that a seed means the same on every device.

    Attributes:
        first: ``[K, d_s + 1, H]``, the first layers, their biases as the last row.
        second: ``[K, H, d_t]``; second_bias: ``[K, d_t]``.
        gate: ``[d_t, K]``, W; gate_bias: ``[K]``.
    """

    def __init__(
        self, count: int, sizes: tuple[int, int], seed: int, purpose: tuple[str, ...], device: str
    ) -> None:
        """Draws the initial values.

        Args:
            count: K.
            sizes: d_s and d_t.
            seed: the run's seed.
            purpose: names the streams of random draws.
            device: where the parameters lie.
        """
        super().__init__()
        of_student, of_teacher = sizes
        hidden = (of_student + of_teacher) // 2
        draws = torch_stream(seed, *purpose, "initial weights")

        def uniform(inputs: int, *shape: int) -> nn.Parameter:
            drawn = torch.rand(shape, generator=draws) * 2 - 1
            return nn.Parameter((drawn / math.sqrt(inputs)).to(device))

        self.first = uniform(of_student, count, of_student + 1, hidden)
        self.second = uniform(hidden, count, hidden, of_teacher)
        self.second_bias = uniform(hidden, count, of_teacher)
        self.gate = uniform(of_teacher, of_teacher, count)
        self.gate_bias = uniform(of_teacher, count)
        self._noise = numpy_stream(seed, *purpose, "gumbel")

    def regression(self, embedded: Embedded, temperature: float) -> Tensor:
        """``sum ||t - sum_m z_m E_m(s)||^2`` over the sessions or items, with fresh noise."""
        shares = self.shares(embedded.teacher, temperature)
        return (embedded.teacher - self.predicted(embedded.student, shares)).square().sum()

    def groups(self, teacher: Tensor) -> Tensor:
        """``[n]`` int64, the likeliest expert of each row of ``teacher`` ``[n, d_t]``; no noise."""
        with torch.no_grad():
            return torch.addmm(self.gate_bias, teacher, self.gate).argmax(1)

    def shares(self, teacher: Tensor, temperature: float) -> Tensor:
        """``[n, K]`` float32, z for ``teacher`` ``[n, d_t]``, negligible shares as 0.

        Each row sums to 1.
        """
        # Minus the log of an exponential draw is a Gumbel draw. The normaliser of log softmax is
        # the same for all experts of a row, so the outer softmax takes it out again.
        size = (len(teacher), len(self.gate_bias))
        noise = -np.log(self._noise.standard_exponential(size))
        noisy = torch.addmm(self.gate_bias, teacher, self.gate) + torch.from_numpy(
            noise.astype(np.float32)
        ).to(teacher.device)  # [n, K]
        gaps = noisy - noisy.detach().amax(1, keepdim=True)
        # Shares that underflow would make each product with them many times slower.
        is_negligible = gaps < temperature * math.log(NEGLIGIBLE)
        return torch.softmax((gaps / temperature).masked_fill(is_negligible, -torch.inf), 1)

    def predicted(self, student: Tensor, shares: Tensor) -> Tensor:
        """``[n, d_t]``, ``sum_m z_m E_m(s)``.

        A share is not negative, so it may be taken into the ReLU, where there are fewest numbers.
        Once T is low nearly all shares are 0: each expert then works on as many rows as the
        busiest has shares in, those in which its own are largest.

        Args:
            student: ``[n, d_s]``, s.
            shares: ``[n, K]``, z.
        """
        extended = functional.pad(student, (0, 1), value=1.0)  # [n, d_s + 1]
        most = int((shares > 0).sum(0).max())  # rows of the busiest expert
        if 2 * most > len(student):
            scaled = shares.T.unsqueeze(2) * extended  # [K, n, d_s + 1]
            hidden = torch.bmm(scaled, self.first).relu_()  # [K, n, H]
            return torch.addbmm(shares @ self.second_bias, hidden, self.second)
        part, row = shares.T.topk(most, dim=1, sorted=False)  # [K, most] both
        part = part.unsqueeze(2)
        hidden = torch.bmm(part * rows_of(extended, row), self.first).relu_()  # [K, most, H]
        outputs = torch.baddbmm(part * self.second_bias.unsqueeze(1), hidden, self.second)
        return added_up(len(student), row, outputs)


def two_of(
    count: int, student: Backbone, teacher: FrozenTeacher, seed: int, method: str
) -> tuple[Experts, Experts]:
    """``count`` networks for sessions and as many for items, where the teacher's embeddings lie."""
    sizes = (student.item_table().shape[1], teacher.items.shape[1])
    device = str(teacher.items.device)
    of_sessions, of_items = (
        Experts(count, sizes, seed, ("distillation", method, kind), device)
        for kind in ("sessions", "items")
    )
    return of_sessions, of_items
