"""What a pass will cost, before anything is sent: the least, the expected, the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alkd_ray.annotation import pricing
from alkd_ray.annotation.pricing import Rates, usd
from alkd_ray.errors import BudgetError
from alkd_ray.types import Amounts, Caps, Usage

# English titles in JSON take about four bytes a token. For estimates alone; holds are by bytes.
BYTES_PER_TOKEN = 4.0
LEAST_BYTES_PER_TOKEN = 6.0
TOKENS_PER_ITEM = 3
LEAST_TOKENS_PER_ITEM = 1
TOKENS_AROUND = 12


@dataclass(frozen=True, slots=True)
class Size:
    """One request: its bytes, the items wanted of it, and the limit of its output."""

    body_bytes: int
    wanted: int
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests still to be sent and their cost.

    Attributes:
        requests: unique requests of the pass, answered ones included.
        to_send: those without a stored answer.
        least, expected, most: cost of the latter; ``most`` is what the ledger would hold.
        dearest: the most that a single one of them can cost.
        rates: where the prices come from.
        left: what the cap leaves; None for a unit without a cap.
    """

    requests: int
    to_send: int
    least: Amounts
    expected: Amounts
    most: Amounts
    dearest: Amounts
    rates: str
    left: Caps


def plan(sizes: Sequence[Size], requests: int, rates: Rates, left: Caps) -> Plan:
    """Adds up the requests of ``sizes``, the ones to be sent."""
    least = expected = most = Amounts()
    dearest = Amounts()
    for size in sizes:
        worst = pricing.worst_case(rates, size.body_bytes, size.max_output_tokens)
        most += worst
        dearest = max(dearest, worst, key=lambda amounts: (amounts.microusd, amounts.tokens))
        least += _estimate(rates, size, LEAST_BYTES_PER_TOKEN, LEAST_TOKENS_PER_ITEM, cached=True)
        expected += _estimate(rates, size, BYTES_PER_TOKEN, TOKENS_PER_ITEM)
    return Plan(requests, len(sizes), least, expected, most, dearest, rates.source, left)


def check(found: Plan, is_partial_allowed: bool) -> None:
    """Refuses a pass that is not expected to end under its cap.

    Raises:
        BudgetError: saying what it needs, what is left, and what to change.
    """
    if not found.to_send or is_partial_allowed:
        return
    left, expected = found.left, found.expected
    problems = []
    if left.microusd is not None and expected.microusd > left.microusd:
        problems.append(
            f"are expected to cost {usd(expected.microusd)} (at least "
            f"{usd(found.least.microusd)}), but the cap leaves {usd(left.microusd)}; "
            "raise budget.dollars"
        )
    if left.tokens is not None and expected.tokens > left.tokens:
        problems.append(
            f"are expected to take {expected.tokens:,} tokens, but the cap leaves "
            f"{left.tokens:,}; raise budget.tokens"
        )
    if left.requests is not None and expected.requests > left.requests:
        problems.append(
            f"are more than the {left.requests:,} that the cap leaves; raise budget.requests"
        )
    if problems:
        raise BudgetError(
            f"the {found.to_send:,} requests to be sent {problems[0]}, lower selection.budget, or "
            "go on as far as the cap reaches with annotation.partial=true"
        )


def _estimate(
    rates: Rates, size: Size, bytes_per_token: float, per_item: float, *, cached: bool = False
) -> Amounts:
    prompt = round(size.body_bytes / bytes_per_token)
    output = min(round(size.wanted * per_item) + TOKENS_AROUND, size.max_output_tokens)
    usage = Usage(prompt, output, prompt if cached else 0)
    return Amounts(pricing.cost_microusd(rates, usage), usage.total_tokens, 1)
