"""What a run's rankings cost, and the rankings themselves, as the annotation left them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from alkd_ray.artifacts import StageOutput
from alkd_ray.types import IntArray, RunStatus


@dataclass(frozen=True, slots=True)
class Cost:
    """What the rankings of a run cost, whenever they were paid for.

    Attributes:
        rankings_microusd: all answers that the run's rankings were read from.
        hints_microusd: the hints.
        tokens: prompt and completion tokens of both.
        requests: rankings asked for (equal questions of several seeds count once).
        sent: requests sent by the pass that finished this stage; the others were in the store.
        seconds: wall time of that pass.
    """

    rankings_microusd: int
    hints_microusd: int
    tokens: int
    requests: int
    sent: int
    seconds: float

    @property
    def dollars(self) -> float:
        """Rankings and hints."""
        return (self.rankings_microusd + self.hints_microusd) / 1e6


@dataclass(frozen=True, slots=True)
class Bought:
    """Rankings of all seeds, and how the pass ended."""

    output: StageOutput
    status: RunStatus
    reason: str
    cost: Cost
    answered: int
    failed: int

    @property
    def ends_the_run(self) -> bool:
        """A breach, or nothing to go on with."""
        return self.status == "breached" or (self.status != "complete" and self.answered == 0)

    def figures(self) -> dict[str, str | int | None]:
        """How the pass ended, flat, for people and programs; the ledger's part is the budget's."""
        found = json.loads((self.output.folder / "outcome.json").read_text("utf-8"))
        ledger = found["ledger"]
        return {
            "status": self.status,
            "reason": self.reason,
            "requests": self.cost.requests,
            "answered": self.answered,
            "failed": self.failed,
            "sent": self.cost.sent,
            "settled_microusd": ledger["settled"]["microusd"],
            "held_microusd": ledger["held"]["microusd"],
            "unresolved_microusd": ledger["unresolved"]["microusd"],
            "cap_microusd": ledger["caps"]["microusd"],
            "tokens": ledger["settled"]["tokens"],
        }

    def costs_by_request(self) -> dict[str, int]:
        """Key of each ranking request that was answered or failed -> what it cost, in microusd."""
        table = pq.read_table(
            self.output.folder / "rankings.parquet", columns=["key", "cost_microusd"]
        )
        return dict(zip(table["key"].to_pylist(), table["cost_microusd"].to_pylist(), strict=True))

    def failed_requests(self) -> set[str]:
        """Keys of the ranking requests that failed."""
        table = pq.read_table(
            self.output.folder / "rankings.parquet",
            columns=["key"],
            filters=[("failure", "!=", "")],
        )
        return set(table["key"].to_pylist())

    def rankings(self, seed: int) -> tuple[IntArray, tuple[IntArray, ...]]:
        """:func:`rankings_of` its output."""
        return rankings_of(self.output, seed)


def rankings_of(output: StageOutput, seed: int) -> tuple[IntArray, tuple[IntArray, ...]]:
    """Session ids ``[R]`` and rankings of one seed, failed rows left out, in pick order."""
    table = pq.read_table(
        output.folder / "rankings.parquet", filters=[("seed", "=", seed), ("failure", "=", "")]
    )
    return table["session_id"].to_numpy(), tuple(
        np.asarray(row, np.int64) for row in table["ranking"].to_pylist()
    )
