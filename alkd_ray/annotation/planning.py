"""What a pass will cost, before anything is sent: the least, the expected, the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alkd_ray.annotation import entries, pricing
from alkd_ray.annotation.entries import HoldEntry
from alkd_ray.annotation.experience import Experience
from alkd_ray.annotation.pricing import Rates, usd
from alkd_ray.errors import BudgetError
from alkd_ray.types import Amounts, Caps, LedgerState, Usage

# Where nothing was learned, the least is a third less than expected; where it was, a tenth.
LEAST_SHARE = 2 / 3
LEAST_SHARE_LEARNED = 0.9


@dataclass(frozen=True, slots=True)
class Size:
    """One request: its bytes, those around its body, and what is wanted of it.

    Attributes:
        body_bytes: of the body.
        bytes_around: of the response format and the chat template, for holds.
        wanted: items; 0 for free text.
        max_output_tokens: the limit of the output.
        kind: ``rank`` or ``hints``.
    """

    body_bytes: int
    bytes_around: int
    wanted: int
    max_output_tokens: int
    kind: str = "rank"


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
        learned_from: answers that the estimates rest on; 0 = assumptions alone.
        seconds: how long it will take at the configured rate and requests in flight, as far as
            known; None where neither a rate is set nor anything was learned.
    """

    requests: int
    to_send: int
    least: Amounts
    expected: Amounts
    most: Amounts
    dearest: Amounts
    rates: str
    left: Caps
    learned_from: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class InBatches:
    """Requests of a pass that are in batches under way: they are not sent again.

    Attributes:
        keys: which they are.
        worst: what one budget holds for those that the pass will collect.
        expected: what these are expected to cost.
    """

    keys: frozenset[str]
    worst: Amounts
    expected: Amounts

    def collected(self, state: LedgerState) -> LedgerState:
        """The budget as it is expected to be when they are collected: a hold is dearer."""
        held = entries.minus(state.held, self.worst) + self.expected
        return replace(state, held=held)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast requests may be sent; see :class:`Plan`."""

    in_flight: int = 1
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def plan(
    sizes: Sequence[Size],
    requests: int,
    rates: Rates,
    left: Caps,
    experience: Experience | None = None,
    speed: Speed | None = None,
) -> Plan:
    """Adds up the requests of ``sizes``, the ones to be sent."""
    known = experience or Experience()
    least = expected = most = Amounts()
    dearest = Amounts()
    for size in sizes:
        worst = pricing.worst_case(
            rates, size.body_bytes + size.bytes_around, size.max_output_tokens
        )
        most += worst
        dearest = max(dearest, worst, key=lambda amounts: (amounts.microusd, amounts.tokens))
        usage = _usage(size, known if size.kind == "rank" else Experience())
        expected += Amounts(pricing.cost_microusd(rates, usage), usage.total_tokens, 1)
        share = LEAST_SHARE_LEARNED if known.answers and size.kind == "rank" else LEAST_SHARE
        cheap = Usage(
            round(share * usage.prompt_tokens),
            round(share * usage.completion_tokens),
            round(share * usage.prompt_tokens),
        )
        least += Amounts(pricing.cost_microusd(rates, cheap), cheap.total_tokens, 1)
    return Plan(
        requests,
        len(sizes),
        least,
        expected,
        most,
        dearest,
        rates.source,
        left,
        known.answers,
        _seconds(expected, known, speed or Speed()) if sizes else 0.0,
    )


def in_batches(
    sizes: Mapping[str, Size],
    held: Sequence[HoldEntry],
    collecting: str,
    rates: Rates,
    experience: Experience,
) -> InBatches:
    """Finds those of ``sizes``, by key, that are in batches.

    Args:
        sizes: the requests that have no answer yet.
        held: holds of the batches under way, of any budget.
        collecting: the budget of a pass that waits for its batches; "" for one that does not.
        rates: those of batches.
        experience: what is known of tokens.
    """
    found = [hold for hold in held if hold.key in sizes]
    ours = [hold for hold in found if hold.budget == collecting]
    return InBatches(
        frozenset(hold.key for hold in found),
        sum((hold.worst for hold in ours), Amounts()),
        plan([sizes[hold.key] for hold in ours], 0, rates, Caps(), experience).expected,
    )


def together(first: Plan, second: Plan) -> Plan:
    """Two plans under one cap, one after the other."""
    seconds = [plan.seconds for plan in (first, second) if plan.seconds is not None]
    return Plan(
        first.requests + second.requests,
        first.to_send + second.to_send,
        first.least + second.least,
        first.expected + second.expected,
        first.most + second.most,
        max(first.dearest, second.dearest, key=lambda most: (most.microusd, most.tokens)),
        " and ".join(dict.fromkeys(plan.rates for plan in (first, second) if plan.requests)),
        second.left,
        second.learned_from,
        sum(seconds) if seconds else None,
    )


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


def _usage(size: Size, known: Experience) -> Usage:
    output = known.output(size.wanted, size.max_output_tokens)
    return Usage(known.prompt(size.body_bytes), output)


def _seconds(expected: Amounts, known: Experience, speed: Speed) -> float | None:
    bounds = []
    if speed.requests_per_minute is not None:
        bounds.append(expected.requests * 60.0 / speed.requests_per_minute)
    if speed.tokens_per_minute is not None:
        bounds.append(expected.tokens * 60.0 / speed.tokens_per_minute)
    if known.seconds_an_answer is not None:
        bounds.append(expected.requests * known.seconds_an_answer / speed.in_flight)
    return max(bounds, default=None)
