"""What workers say to the desk, and what it answers: records that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alkd_ray.types import Amounts, LedgerState, Usage

StopStatus = Literal["stopped", "breached"]


@dataclass(frozen=True, slots=True)
class Pull:
    """Asks for rows to work on. Result: a tuple of :class:`Row`; empty = there are no more."""

    worker: str
    most: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row to work on; ``first_answer`` is the raw body of a stored first attempt, if any."""

    index: int
    first_answer: str | None


@dataclass(frozen=True, slots=True)
class TakeTurn:
    """Asks when a request may leave. Result: a :class:`~alkd_ray.annotation.turns.Turn`."""

    request_bytes: int
    wanted: int
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Asks to send a request. Result: a :class:`Verdict`."""

    hold_id: str
    key: str
    kind: str
    attempt: int
    worst: Amounts
    worker: str
    batch: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may be sent.

    Attributes:
        granted: it may; its worst case is held.
        stop: the pass is over, nothing more is sent.
        too_dear: this request does not fit into what the cap leaves, others may.
        answer: raw body of the answer that is there already (bought by a worker whose row was
            taken for lost), so that nothing is paid twice.
        reason: why not; unless ``stop`` or ``too_dear`` it may be granted once others are settled.
        elsewhere: the same request is under way: in a ``request`` of its own, or in a ``batch``.
    """

    granted: bool
    stop: bool = False
    too_dear: bool = False
    answer: str | None = None
    reason: str = ""
    elsewhere: Literal["", "request", "batch"] = ""


@dataclass(frozen=True, slots=True)
class Record:
    """An answer came: stores its body and settles its hold.

    ``allowed_tokens`` is the limit of the output that was asked for: an endpoint that does not
    keep to it has no worst case, so the pass ends, whether or not the hold was large enough.
    ``request_bytes`` teaches what a byte costs in tokens (0 = teaches nothing), ``turn_tokens`` is
    what the request's turn was counted with.
    """

    hold_id: str
    key: str
    attempt: int
    raw: str
    finish_reason: str
    usage: Usage | None
    allowed_tokens: int
    actual: Amounts
    request_bytes: int = 0
    turn_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """The request was certainly not billed, or never sent."""

    hold_id: str


@dataclass(frozen=True, slots=True)
class LeaveUnresolved:
    """Whether the request was billed is not known: its hold stays, against the cap."""

    hold_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Finish:
    """A row has its reading: accepted, or failed for good."""

    worker: str
    index: int
    key: str
    ranking: tuple[int, ...]
    repairs: tuple[str, ...]
    failure: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A request gets no answer, for a reason of the endpoint's.

    ``is_permanent`` = never ask again; ``ends_row`` = the row has no earlier answer instead.
    """

    worker: str
    index: int
    key: str
    reason: str
    is_permanent: bool
    ends_row: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """The whole pass must end."""

    status: StopStatus
    reason: str


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What the books note of a row before it is asked."""

    index: int
    key: str
    kind: str
    prompt_version: str
    session_id: int
    body: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How a pass stands.

    Attributes:
        rows: rows to be asked in this pass.
        done: rows of it that have a reading, failed ones included.
        failed: rows that failed.
        in_flight: requests sent and not settled.
        sent: requests sent.
        stop_status: set when the pass must end.
        stop_reason: why it must, or why rows were passed over.
        ledger: the budget.
    """

    rows: int
    done: int
    failed: int
    in_flight: int
    sent: int
    stop_status: StopStatus | None
    stop_reason: str
    ledger: LedgerState
