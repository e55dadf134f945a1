"""Rates of a pass, and the history that is kept of it."""

from __future__ import annotations

import itertools

import pytest

from alkd_ray.annotation.meter import MOST_POINTS, Meter
from alkd_ray.annotation.passes import Progress
from alkd_ray.types import Amounts, Caps, LedgerState


def progress(done: int, tokens: int = 0) -> Progress:
    ledger = LedgerState(
        settled=Amounts(tokens, tokens, done),
        held=Amounts(7, 9, 1),
        unresolved=Amounts(3),
        caps=Caps(),
    )
    return Progress(done, 10_000, 0, 5, done, ledger)


def test_rates_are_those_of_the_last_seconds() -> None:
    meter = Meter()
    assert meter.add(progress(0), 0.0).requests_per_second == 0.0
    for second in range(1, 21):
        meter.add(progress(second * 10, second * 1_000), float(second))
    slow = [meter.add(progress(200, 20_000), 20.0 + second) for second in range(1, 15)]
    assert slow[0].requests_per_second == pytest.approx(90 / 10, rel=0.15)
    assert slow[-1].requests_per_second == slow[-1].tokens_per_second == 0.0


def test_a_long_history_is_thinned_and_keeps_both_ends() -> None:
    meter = Meter()
    for number in range(20_000):
        meter.add(progress(number), number * 0.5)
    seconds = [point.seconds for point in meter.history]
    assert MOST_POINTS / 2 <= len(seconds) <= MOST_POINTS
    assert seconds[0] == 0.0
    assert seconds[-1] >= 19_000 * 0.5
    gaps = {round(b - a, 3) for a, b in itertools.pairwise(seconds)}
    assert len(gaps) == 1
