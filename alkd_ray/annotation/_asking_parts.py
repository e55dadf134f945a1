"""What a worker of a pass is given: rows, a desk, and how to ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from alkd_ray.annotation.questions import Question


class DeskFace(Protocol):
    """The desk as a worker sees it, in this process or another."""

    async def do(self, operation: Any) -> Any:
        """Carries out one operation of :mod:`alkd_ray.annotation.desk`, durably."""
        ...


class Questions(Protocol):
    """Rows by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Question: ...


@dataclass(frozen=True, slots=True)
class AskingSettings:
    """How a worker asks.

    Attributes:
        worker: its name, unique in the pass.
        in_flight: most requests in flight.
        tries: most sendings of one attempt that end in an error or without an answer.
        seed: of the jitter of waits.
        takes_turns: the endpoint's rate is limited, so the desk says when a request may leave.
    """

    worker: str
    in_flight: int
    tries: int
    seed: int = 0
    takes_turns: bool = False
