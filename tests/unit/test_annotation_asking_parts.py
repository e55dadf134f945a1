"""The small parts of a pass: groups of operations, the pace, plans, keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alkd_ray.annotation import planning, pricing
from alkd_ray.annotation.grouping import Grouped
from alkd_ray.annotation.pace import Pace
from alkd_ray.annotation.planning import Size
from alkd_ray.annotation.questions import RankQuestions, size_in_bytes
from alkd_ray.annotation.refusals import REFUSED_ALIKE, Refusals
from alkd_ray.errors import BudgetError
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._client import NotBilledError
from alkd_ray.types import Caps
from tests.annotation_rows import RATES, catalogue, requests

ENDPOINT = Endpoint("http://host/v1", "http://host/v1", "model", temperature=0.0)


def test_operations_that_wait_share_a_group_and_keep_their_order() -> None:
    groups: list[list[int]] = []

    async def apply(operations: Sequence[int]) -> list[int]:
        groups.append(list(operations))
        await asyncio.sleep(0.01)
        return [-operation for operation in operations]

    async def main() -> list[int]:
        grouped = Grouped(apply, most=50)
        return list(await asyncio.gather(*[grouped.do(number) for number in range(120)]))

    assert asyncio.run(main()) == [-number for number in range(120)]
    assert [number for group in groups for number in group] == list(range(120))
    assert max(map(len, groups)) == 50
    assert len(groups) <= 4


def test_an_error_reaches_every_operation_of_its_group_and_no_other() -> None:
    async def apply(operations: Sequence[str]) -> Sequence[str]:
        await asyncio.sleep(0)
        if "bad" in operations:
            raise ValueError("disk full")
        return operations

    async def main() -> tuple[list[Any], str]:
        grouped = Grouped(apply)
        first = await asyncio.gather(
            grouped.do("bad"), grouped.do("with it"), return_exceptions=True
        )
        return first, await grouped.do("later")

    first, later = asyncio.run(main())
    assert [str(error) for error in first] == ["disk full", "disk full"]
    assert later == "later"


def test_the_pace_bounds_what_is_in_flight_and_shrinks_after_a_429() -> None:
    async def main() -> tuple[int, int, float]:
        pace = Pace(8)
        most = 0

        async def one() -> None:
            nonlocal most
            async with pace.slot():
                most = max(most, pace.in_flight)
                await asyncio.sleep(0.002)

        await asyncio.gather(*[one() for _ in range(40)])
        before, most = most, 0
        pace.slowed(0.05)
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*[one() for _ in range(20)])
        return before, most, asyncio.get_running_loop().time() - started

    before, after, seconds = asyncio.run(main())
    assert before == 8
    assert after == 5  # 0.7 of it
    assert seconds >= 0.05


def test_the_end_of_the_pass_ends_the_pace_s_pauses() -> None:
    async def main() -> float:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        pace = Pace(2, over)
        started = loop.time()
        pace.slowed(60.0)
        loop.call_later(0.02, over.set)
        for _ in range(2):
            async with pace.slot():
                pass
        return loop.time() - started

    assert asyncio.run(main()) < 10


def refusal(said: str) -> NotBilledError:
    return NotBilledError(said, status=400, is_permanent=True)


def test_refusals_alike_end_the_pass_unless_an_answer_comes_in_between() -> None:
    refusals = Refusals()
    for number in range(REFUSED_ALIKE - 1):
        assert not refusals.why_over(refusal("no")), number
    refusals.answered()
    for _ in range(REFUSED_ALIKE - 1):
        assert not refusals.why_over(refusal("no"))
    assert not refusals.why_over(refusal("another reason"))
    for _ in range(REFUSED_ALIKE - 1):
        assert not refusals.why_over(refusal("no"))
    why = refusals.why_over(refusal("no"))
    told = f"{REFUSED_ALIKE} requests in a row were refused alike and none was answered: no"
    assert why.startswith(told)


@pytest.mark.parametrize(
    ("said", "are_alike"),
    [
        ("locked (request req_{:024x})", True),
        ("locked, see 0c1d2e3f-{:04x}-4455-8899-aabbccddeeff", True),
        ("locked at 2026-11-29T10:00:{:02}.123Z", True),
        ("the prompt has 9{:02} tokens, 800 are allowed", False),
    ],
)
def test_refusals_are_alike_but_for_the_ids_in_them(said: str, are_alike: bool) -> None:
    refusals = Refusals()
    why = [refusals.why_over(refusal(said.format(number))) for number in range(REFUSED_ALIKE)]
    assert bool(why[-1]) is are_alike
    assert not any(why[:-1])


def test_refusals_alike_wait_for_what_was_under_way_at_the_first_of_them() -> None:
    refusals = Refusals()
    slow = refusals.sent()
    for _ in range(3 * REFUSED_ALIKE):
        refusals.ended(refusals.sent())
        assert not refusals.why_over(refusal("no"))
    refusals.sent()  # later than the first refusal: it need not be waited for
    refusals.ended(slow)
    assert refusals.why_over(refusal("no"))


def test_the_pace_grows_back_with_answers() -> None:
    async def main() -> tuple[float, float]:
        pace = Pace(8)
        pace.slowed(0)
        low = pace.limit
        for _ in range(60):
            await pace.answered()
        return low, pace.limit

    low, high = asyncio.run(main())
    assert low == pytest.approx(5.6)
    assert high == 8


def test_places_go_to_those_who_wait_in_order_and_a_cancelled_one_passes_its_on() -> None:
    async def main() -> tuple[list[int], int]:
        pace, order, begun, leave = Pace(1), list[int](), asyncio.Event(), asyncio.Event()

        async def one(number: int) -> None:
            async with pace.slot():
                order.append(number)
                begun.set()
                await leave.wait()
            if number == 0:
                tasks[1].cancel()  # it has been given the place, and does not know it yet

        tasks = [asyncio.create_task(one(number)) for number in range(6)]
        await begun.wait()
        tasks[2].cancel()  # it still waits
        await asyncio.wait([tasks[2]])
        leave.set()
        await asyncio.wait(tasks)
        return order, pace.in_flight

    assert asyncio.run(main()) == ([0, 3, 4, 5], 0)


def test_a_shrunken_pace_keeps_the_order_and_loses_nobody() -> None:
    async def main() -> tuple[list[int], int, int]:
        pace, order, most = Pace(10), list[int](), 0

        async def one(number: int) -> None:
            nonlocal most
            async with pace.slot():
                order.append(number)
                if number >= 10:
                    most = max(most, pace.in_flight)
                await asyncio.sleep(0)
                if number == 0:
                    pace.slowed(0.0)

        await asyncio.gather(*[one(number) for number in range(50)])
        return order, most, pace.in_flight

    assert asyncio.run(main()) == (list(range(50)), 7, 0)


def test_a_key_is_that_of_what_determines_the_answer() -> None:
    rows = requests(3)
    titles = catalogue()
    questions = RankQuestions(rows, titles, "books", ENDPOINT)
    keys = {questions[row].key for row in range(3)}
    assert len(keys) == 3
    same = RankQuestions(rows, titles, "books", replace(ENDPOINT, base_url="http://other:1/v1"))
    assert same[0].key == questions[0].key
    for other in (
        RankQuestions(rows, titles, "films", ENDPOINT),
        RankQuestions(rows, titles, "books", replace(ENDPOINT, identity="elsewhere")),
        RankQuestions(rows, titles, "books", replace(ENDPOINT, model="other")),
        RankQuestions(rows, titles, "books", replace(ENDPOINT, temperature=1.0)),
        RankQuestions(rows, titles, "books", replace(ENDPOINT, extra_body={"seed": 1})),
        RankQuestions(rows, titles, "books", ENDPOINT, max_output_tokens=999),
        RankQuestions(
            [replace(r, hints="go on in order") for r in rows], titles, "books", ENDPOINT
        ),
    ):
        assert other[0].key not in keys


def test_held_bytes_bound_what_is_sent() -> None:
    question = RankQuestions(requests(1), catalogue(), "b\u00fccher", ENDPOINT)[0]
    sent = {
        **question.body,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "ranking", "strict": True, "schema": question.schema},
        },
    }
    content = "".join(message["content"] for message in question.body["messages"])
    bound = size_in_bytes(question.body, question.schema)
    assert bound >= len(content.encode()) + len(json.dumps(question.schema))
    assert bound >= 0.98 * len(json.dumps(sent, ensure_ascii=False).encode())


def test_a_plan_adds_up_and_refuses_what_cannot_end_under_the_cap() -> None:
    rates = pricing.rates_of("model", "http://host/v1", RATES)
    sizes = [Size(3_600, 400, 25, 264)] * 100
    plan = planning.plan(sizes, 130, rates, Caps(microusd=10_000))
    assert (plan.requests, plan.to_send) == (130, 100)
    assert plan.least.microusd < plan.expected.microusd < plan.most.microusd
    one = pricing.worst_case(rates, 4_000, 264)
    assert plan.most.microusd == 100 * one.microusd
    assert plan.dearest == one
    with pytest.raises(BudgetError, match=r"the 100 requests .* the cap leaves 0\.01 USD"):
        planning.check(plan, is_partial_allowed=False)
    planning.check(plan, is_partial_allowed=True)
    planning.check(planning.plan(sizes, 130, rates, Caps(microusd=100_000)), False)
    with pytest.raises(BudgetError, match=r"more than the 99 .* raise budget\.requests"):
        planning.check(planning.plan(sizes, 130, rates, Caps(requests=99)), False)
    with pytest.raises(BudgetError, match=r"tokens.* raise budget\.tokens"):
        planning.check(planning.plan(sizes, 130, rates, Caps(tokens=999)), False)
    planning.check(planning.plan([], 130, rates, Caps(requests=0)), False)


def test_a_reading_prefers_what_was_accepted_then_what_is_longer() -> None:
    question = RankQuestions(requests(1), catalogue(), "books", ENDPOINT)[0]
    full = question.read(json.dumps({"ranking": list(range(1, 11))}))
    short = question.read(json.dumps({"ranking": [1, 2, 3]}))
    nothing = question.read("I cannot help with that.")
    assert max([nothing, short, full], key=lambda reading: reading.worth) is full
    assert (full.ask_again, full.failure) == ("", "")
    assert "3 different candidates, 10 are wanted" in short.ask_again
    assert nothing.failure
    assert np.array_equal(full.ranking, question.candidates[:10])
