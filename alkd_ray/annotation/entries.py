"""What the ledger's lines look like, and the sums and sentences over them; no database here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from alkd_ray.annotation.pricing import usd
from alkd_ray.errors import AlkdError
from alkd_ray.types import Amounts, Caps, LedgerState

HoldStatus = Literal["held", "settled", "released", "unresolved"]

# How the reasons of a refused hold begin, other than those of a cap.
IN_FLIGHT = "in flight"
IN_BATCH = "in a batch"
BREACHED = "breached"

# Above this (a thousand million dollars) an amount is a mistake; sums of them stay exact integers.
LARGEST_AMOUNT = 10**15

TOTAL_COLUMNS = """
    settled_microusd, settled_tokens, settled_requests, held_microusd, held_tokens, held_requests,
    unresolved_microusd, unresolved_tokens, unresolved_requests,
    cap_microusd, cap_tokens, cap_requests,
    breached_microusd, breached_tokens, breached_requests, open_breaches
"""
HOLD_COLUMNS = """
    hold_id, budget, status, owner, request_key, kind, worst_microusd, worst_tokens,
    worst_requests, actual_microusd, actual_tokens, actual_requests, breached, breach_accepted,
    by_hand, why, held_at, ended_at, attempt, batch
"""


class LedgerError(AlkdError):
    """The ledger was asked for something that contradicts what it holds; nothing changed."""


@dataclass(frozen=True, slots=True)
class HoldEntry:
    """One request's line in the ledger.

    Attributes:
        hold_id: its id, unique in the file.
        budget: the budget it counts against.
        status: ``held``, ``settled``, ``released`` or ``unresolved``.
        owner: who asked, the id of a run.
        key: the request's key ("" for none).
        kind: ``rank`` or ``hints`` ("" for none).
        worst: what was held.
        actual: what was settled; zero otherwise.
        breached: the endpoint billed more than was held, in some unit, or wrote more than it was
            allowed, so that no hold bounds its bill.
        breach_accepted: a person has seen the breach.
        by_hand: settled by a person, not by an answer.
        why: why it is, or was, unresolved.
        held_at: when, UTC, ISO 8601.
        ended_at: of the last change; "" while it is held.
        attempt: 1 for the question, 2 for asking again.
        batch: label of the batch that it was sent in, "" for a request of its own.
    """

    hold_id: str
    budget: str
    status: HoldStatus
    owner: str
    key: str
    kind: str
    worst: Amounts
    actual: Amounts
    breached: bool
    breach_accepted: bool
    by_hand: bool
    why: str
    held_at: str
    ended_at: str
    attempt: int
    batch: str

    @property
    def overshoot(self) -> Amounts:
        """What was billed beyond the hold."""
        return beyond(self.actual, self.worst)


@dataclass(frozen=True, slots=True)
class NotedRates:
    """Rates that a budget's requests were priced with, and when this was first noted."""

    model: str
    source: str
    rates: str
    noted_at: str


def left(state: LedgerState) -> Caps:
    """What the caps leave to hold, per unit; None where there is no cap, never below 0."""
    spent = total(state)
    return Caps(
        *(
            None if cap is None else max(cap - used, 0)
            for cap, used in zip(caps_in_units(state.caps), in_units(spent), strict=True)
        )
    )


def total(state: LedgerState) -> Amounts:
    """What counts against the caps: settled, held and unresolved together."""
    return state.settled + state.held + state.unresolved


def refusal(budget: str, state: LedgerState, open_breaches: int, worst: Amounts) -> str:
    """Why ``worst`` cannot be held now, one sentence; "" when it can."""
    if open_breaches:
        return (
            f"{BREACHED}: the endpoint has billed more than was held for budget {budget!r} "
            f"({usd(state.breached_microusd)} in all), or written more than it was allowed; look "
            "at its bill, then raise the cap, or give alkd ledger resolve HOLD_ID --accept-breach"
        )
    units = zip(
        caps_in_units(state.caps),
        in_units(total(state)),
        in_units(worst),
        (usd, "{:,} tokens".format, _requests),
        strict=True,
    )
    for cap, used, asked, shown in units:
        if cap is not None and used + asked > cap:
            return (
                f"the cap of {shown(cap)} of budget {budget!r} leaves {shown(max(cap - used, 0))}, "
                f"and the next request may cost {shown(asked)}"
            )
    return ""


def _requests(number: int) -> str:
    return f"{number:,} request{'' if number == 1 else 's'}"


def is_raised(old: int | None, new: int | None) -> bool:
    """Whether cap ``new`` admits more than cap ``old``."""
    return old is not None and (new is None or new > old)


def check(amounts: Amounts, what: str) -> None:
    """Raises :class:`LedgerError` on a negative or absurd amount; ``what`` begins the message."""
    for value in in_units(amounts):
        if not 0 <= value <= LARGEST_AMOUNT:
            raise LedgerError(f"{what}: an amount of {value} is not in 0..{LARGEST_AMOUNT}")


def beyond(actual: Amounts, worst: Amounts) -> Amounts:
    """The part of ``actual`` that exceeds ``worst``, unit by unit."""
    pairs = zip(in_units(actual), in_units(worst), strict=True)
    return Amounts(*(max(billed - held, 0) for billed, held in pairs))


def minus(amounts: Amounts, taken: Amounts) -> Amounts:
    """What is left of ``amounts`` without ``taken``, unit by unit."""
    return Amounts(
        amounts.microusd - taken.microusd,
        amounts.tokens - taken.tokens,
        amounts.requests - taken.requests,
    )


def in_units(amounts: Amounts) -> tuple[int, int, int]:
    """Micro-dollars, tokens, requests: the order of units everywhere."""
    return amounts.microusd, amounts.tokens, amounts.requests


def caps_in_units(caps: Caps) -> tuple[int | None, int | None, int | None]:
    """The caps in the order of :func:`in_units`."""
    return caps.microusd, caps.tokens, caps.requests


def entry_of(row: tuple[Any, ...]) -> HoldEntry:
    """The line of a row of :data:`HOLD_COLUMNS`."""
    return HoldEntry(
        *row[0:6],
        worst=Amounts(*row[6:9]),
        actual=Amounts(*row[9:12]),
        breached=bool(row[12]),
        breach_accepted=bool(row[13]),
        by_hand=bool(row[14]),
        why=row[15],
        held_at=row[16],
        ended_at=row[17],
        attempt=row[18],
        batch=row[19],
    )
