"""What earlier answers teach a plan, and what it does not touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from alkd_ray.annotation import planning, pricing
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.experience import BYTES_PER_TOKEN, Experience, learned
from alkd_ray.annotation.planning import Size, Speed
from alkd_ray.annotation.worker import annotate
from alkd_ray.types import Caps
from tests.annotation_rows import MODEL, job, serving

RATES = pricing.rates_of("m", "", {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0})
SIZE = Size(body_bytes=4_000, bytes_around=100, wanted=25, max_output_tokens=264)


def test_an_answered_pass_teaches_the_next_plan(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        outcome = annotate(job(tmp_path / "store", server.url))
    with Database(tmp_path / "store" / "books.sqlite", read_only=True) as database:
        known = learned(database, server.url, MODEL, "rank")
        assert learned(database, server.url, MODEL, "hints").answers == 0
        assert learned(database, "elsewhere", MODEL, "rank").answers == 0
    assert known.answers == len(outcome.annotations) == known.timed
    assert known.prompt_tokens == sum(a.prompt_tokens for a in outcome.annotations)
    assert known.completion_tokens == sum(a.completion_tokens for a in outcome.annotations)
    assert known.prompt(known.request_bytes) == known.prompt_tokens
    assert known.seconds_an_answer is not None


def test_estimates_follow_experience_and_holds_do_not() -> None:
    plain = planning.plan([SIZE] * 10, 10, RATES, Caps())
    known = Experience(answers=2, request_bytes=8_000, prompt_tokens=4_000, completion_tokens=100)
    taught = planning.plan([SIZE] * 10, 10, RATES, Caps(), known)
    assert plain.expected.tokens == 10 * (4_000 / BYTES_PER_TOKEN + 25 * 3 + 12)
    assert taught.expected.tokens == 10 * (2_000 + 50)
    assert taught.most == plain.most
    assert taught.learned_from == 2
    for found in (plain, taught):
        assert found.least.microusd < found.expected.microusd < found.most.microusd


def test_time_is_bound_by_the_slowest_of_rate_and_latency() -> None:
    known = Experience(2, 8_000, 4_000, 100, timed=2, seconds=20.0)  # 10 s an answer
    sizes = [SIZE] * 120

    def seconds(**speed: int) -> float | None:
        return planning.plan(sizes, 120, RATES, Caps(), known, Speed(**speed)).seconds

    assert seconds(in_flight=10) == pytest.approx(120.0)
    assert seconds(in_flight=10, requests_per_minute=30) == pytest.approx(240.0)
    assert seconds(in_flight=100, tokens_per_minute=120 * 2_050) == pytest.approx(60.0)
    assert planning.plan(sizes, 120, RATES, Caps()).seconds is None
    assert planning.plan([], 120, RATES, Caps()).seconds == 0.0


def test_hints_and_rankings_are_one_plan() -> None:
    first = planning.plan([SIZE], 1, RATES, Caps(microusd=9))
    second = planning.plan([SIZE] * 3, 5, RATES, Caps(microusd=9))
    both = planning.together(first, second)
    assert (both.requests, both.to_send) == (6, 4)
    assert both.expected == first.expected + second.expected
    assert both.rates == RATES.source
