"""How fast a pass goes, and its history for charts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from alkd_ray.annotation.passes import Progress
from alkd_ray.types import AnnotationOutcome

WINDOW_SECONDS = 10.0
MOST_POINTS = 500


@dataclass(frozen=True, slots=True)
class Point:
    """A pass at one instant; money and tokens are the budget's.

    Attributes:
        seconds: since the pass began.
        done, total, failed: rows.
        in_flight: requests sent and not settled.
        sent: requests sent by this pass.
        requests_per_second: rows done, over the last ten seconds.
        tokens_per_second: tokens settled, over the last ten seconds.
        settled_microusd, held_microusd, unresolved_microusd: of the budget.
        settled_tokens: of the budget.
    """

    seconds: float
    done: int
    total: int
    failed: int
    in_flight: int
    sent: int
    requests_per_second: float
    tokens_per_second: float
    settled_microusd: int
    held_microusd: int
    unresolved_microusd: int
    settled_tokens: int


class Meter:
    """Turns a pass's progress into rates, and keeps a history of at most :data:`MOST_POINTS`."""

    def __init__(self) -> None:
        self.history: list[Point] = []
        self._recent: deque[tuple[float, int, int]] = deque()
        self._every, self._seen = 1, 0

    def add(self, progress: Progress, seconds: float) -> Point:
        """One more reading, ``seconds`` after the pass began."""
        tokens = progress.ledger.settled.tokens
        self._recent.append((seconds, progress.done, tokens))
        while len(self._recent) > 2 and seconds - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()
        start, earlier_done, earlier_tokens = self._recent[0]
        took = seconds - start or float("inf")
        point = _point(
            progress,
            seconds,
            (progress.done - earlier_done) / took,
            (tokens - earlier_tokens) / took,
        )
        self._keep(point)
        return point

    def finish(self, outcome: AnnotationOutcome) -> None:
        """The last point: what the ledger says when all is over."""
        last = self.history[-1] if self.history else None
        found = len(outcome.annotations)
        total = last.total if last else found
        at_the_end = Progress(
            done=total if outcome.status == "complete" else found,
            total=total,
            failed=sum(bool(annotation.failure) for annotation in outcome.annotations),
            in_flight=outcome.ledger.held.requests,
            sent=outcome.sent,
            ledger=outcome.ledger,
        )
        rate = outcome.sent / max(outcome.seconds, 1e-9)
        tokens_per_second = last.tokens_per_second if last else 0.0
        self.history.append(_point(at_the_end, outcome.seconds, rate, tokens_per_second))

    def _keep(self, point: Point) -> None:
        """Keeps every point at first, then every second one, every fourth, and so on."""
        if self._seen % self._every == 0:
            self.history.append(point)
        self._seen += 1
        if len(self.history) >= MOST_POINTS:
            self.history = self.history[::2]
            self._every *= 2


def _point(
    progress: Progress, seconds: float, requests_per_second: float, tokens_per_second: float
) -> Point:
    ledger = progress.ledger
    return Point(
        round(seconds, 3),
        progress.done,
        progress.total,
        progress.failed,
        progress.in_flight,
        progress.sent,
        round(requests_per_second, 3),
        round(tokens_per_second, 3),
        ledger.settled.microusd,
        ledger.held.microusd,
        ledger.unresolved.microusd,
        ledger.settled.tokens,
    )
