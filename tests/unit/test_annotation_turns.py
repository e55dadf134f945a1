"""One rate for all who ask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alkd_ray.annotation.database import Database
from alkd_ray.annotation.turns import FARTHEST_SECONDS, SHARE_OF_LIMIT, Limits, Turns

NOW = 1_000_000.0


def leaving(turns: Turns, tokens: int, count: int, lanes: int = 64) -> np.ndarray:
    """Instants at which ``count`` requests leave when ``lanes`` ask as soon as they may."""
    ready = [NOW] * lanes
    left = []
    while len(left) < count:
        lane = int(np.argmin(ready))
        turn = turns.take(tokens, at=ready[lane])
        ready[lane] += turn.seconds
        if turn.is_granted:
            left.append(ready[lane])
    return np.sort(left)


@pytest.mark.parametrize(
    ("limits", "tokens", "expected"),
    [
        (Limits(requests_per_minute=600), 1_000, 600),
        (Limits(tokens_per_minute=600_000), 1_000, 600),
        (Limits(requests_per_minute=900, tokens_per_minute=600_000), 1_000, 600),
        (Limits(requests_per_minute=60, tokens_per_minute=600_000), 1_000, 60),
    ],
)
def test_any_minute_is_used_to_95_percent_and_never_beyond_the_limit(
    tmp_path: Path, limits: Limits, tokens: int, expected: int
) -> None:
    with Database(tmp_path / "books.sqlite") as database:
        left = leaving(Turns(database, "here", limits), tokens, expected * 3)
    in_a_minute = [
        int(np.searchsorted(left, start + 60.0) - np.searchsorted(left, start))
        for start in left[left < left[-1] - 60.0]
    ]
    assert max(in_a_minute) <= expected
    assert min(in_a_minute) >= 0.95 * expected


def test_several_who_ask_share_one_rate_also_after_a_restart(tmp_path: Path) -> None:
    limits = Limits(requests_per_minute=60)
    with Database(tmp_path / "books.sqlite") as database:
        first, second = Turns(database, "here", limits), Turns(database, "here", limits)
        waits = [turns.take(0, at=NOW).seconds for turns in (first, second, first)]
        elsewhere = Turns(database, "there", limits).take(0, at=NOW).seconds
    gap = 1.0 / SHARE_OF_LIMIT
    assert waits == pytest.approx([0.0, gap, 2 * gap])
    assert elsewhere == 0.0
    with Database(tmp_path / "books.sqlite") as database:
        assert Turns(database, "here", limits).take(0, at=NOW).seconds == pytest.approx(3 * gap)


def test_far_turns_are_not_given_away(tmp_path: Path) -> None:
    with Database(tmp_path / "books.sqlite") as database:
        turns = Turns(database, "here", Limits(requests_per_minute=6))
        assert turns.take(0, at=NOW).is_granted
        assert not turns.take(0, at=NOW).is_granted
        later = turns.take(0, at=NOW + FARTHEST_SECONDS)
        assert later.is_granted
        assert later.seconds == pytest.approx(10.0 / SHARE_OF_LIMIT - FARTHEST_SECONDS)


def test_the_clock_moves_by_what_was_really_used(tmp_path: Path) -> None:
    with Database(tmp_path / "books.sqlite") as database:
        turns = Turns(database, "here", Limits(tokens_per_minute=6_000))
        turn = turns.take(500, at=NOW)
        turns.correct(turn.tokens, 300)
        assert turns.take(1, at=NOW).seconds == pytest.approx(300 / 100 / SHARE_OF_LIMIT)


def test_without_limits_nobody_waits_and_nothing_is_written(tmp_path: Path) -> None:
    with Database(tmp_path / "books.sqlite") as database:
        turn = Turns(database, "here", Limits()).take(10**9)
        assert turn.is_granted
        assert turn.seconds == 0.0
        assert database.execute("SELECT count(*) FROM turns").fetchone() == (0,)
