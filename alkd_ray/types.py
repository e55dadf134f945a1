"""The records that flow between the rooms of the platform. numpy only, no behaviour beyond access.

Orientation everywhere: row = session, column = item or position. Items are ints in ``[0, N)``;
padding is the mask, never an item. Money is integer micro-dollars and its names end in
``_microusd``; other names carry their unit as well (``_tokens``, ``_seconds``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

SPLITS = ("train", "valid", "test")
SplitName = Literal["train", "valid", "test"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items, by index.

    Attributes:
        source_ids: ``[N]`` the ids of the data's owner, as text.
        titles: ``[N]`` the titles, as text ("" where the source gives none).
    """

    source_ids: NDArray[np.object_]
    titles: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.source_ids)


@dataclass(frozen=True, slots=True)
class SessionSet:
    """Sessions in compressed-row form.

    Attributes:
        ids: ``[S]`` int64, unique session ids.
        flat_items: ``[sum of lengths]`` int64, the input items of all sessions, oldest first.
        offsets: ``[S + 1]`` int64, session ``r`` holds ``flat_items[offsets[r]:offsets[r + 1]]``.
        targets: ``[S]`` int64, the item that followed the input.
        split: ``[S]`` int8, index into :data:`SPLITS`.
        fingerprint: hash of the content, set where the set is read or made.
    """

    ids: IntArray
    flat_items: IntArray
    offsets: IntArray
    targets: IntArray
    split: NDArray[np.int8]
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def items_of(self, row: int) -> IntArray:
        """The input items of one row, oldest first, ``[length]`` int64."""
        return self.flat_items[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """``[S]`` int64, number of input items."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a source yields.

    Attributes:
        name: short name, used in reports.
        catalogue: the N items.
        sessions: the S sessions, with their split.
        split_rule: one sentence on how the split was made.
        source: where the data came from (a path, a generator and its settings).
        damaged_lines: input lines left out because they could not be read.
    """

    name: str
    catalogue: Catalogue
    sessions: SessionSet
    split_rule: str
    source: str
    damaged_lines: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of sessions, right-aligned: the latest item stands in the last column.

    Attributes:
        items: ``[B, L]`` int64; masked positions hold 0 and mean nothing.
        mask: ``[B, L]`` bool, True where ``items`` is an item.
        targets: ``[B]`` int64.
    """

    items: IntArray
    mask: BoolArray
    targets: IntArray

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class DifficultyScores:
    """How hard each session is for the teacher; larger = harder.

    Attributes:
        session_ids: ``[S]`` int64.
        difficulty: ``[S]`` float64 (df_s of the paper for kind ``consistency``).
        ranks: ``[S]`` int64, a permutation of 1..S; the direction says which end is 1.
        kind: ``consistency`` or ``overlap``.
        direction: ``hardest_first`` (rank 1 = hardest) or ``easiest_first``.
    """

    session_ids: IntArray
    difficulty: FloatArray
    ranks: IntArray
    kind: Literal["consistency", "overlap"]
    direction: Literal["hardest_first", "easiest_first"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A distribution over difficulty ranks, in closed form (no array over sessions).

    Attributes:
        kind: ``paper`` (Definition 1) or ``exact`` (the max-min solution).
        population: number of ranks N.
        support: k, the ranks 1..k have positive probability; for kind ``exact`` without a positive
            guarantee and k = 1, the last rank alone (:func:`alkd_ray.active.policy.first_rank`).
        log_min_gain: log of the gain guaranteed against every assignment of effects,
            ``-inf`` when the guarantee is not positive (then see ``min_gain``).
        min_gain: the guaranteed gain itself; may underflow to 0 when ``log_min_gain`` does not.
    """

    kind: Literal["paper", "exact"]
    population: int
    support: int
    log_min_gain: float
    min_gain: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Which sessions to pay for.

    Attributes:
        session_ids: ``[B]`` int64, in the order of picking.
        strategy: name of the strategy.
        seed: the seed of the draw.
        notes: facts for the reader: guaranteed gains, support, where the picks lie.
    """

    session_ids: IntArray
    strategy: str
    seed: int
    notes: dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One question to an LLM teacher: rank these candidates for this session.

    Attributes:
        session_id: the session.
        history: ``[l]`` int64, its input items, oldest first.
        candidates: ``[C]`` int64, in the order in which they are numbered in the prompt.
        wanted: how many of them the ranking shall have.
        hints: the hints' text ("" for none).
    """

    session_id: int
    history: IntArray
    candidates: IntArray
    wanted: int
    hints: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer as the endpoint billed them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Annotation:
    """An accepted ranking, or the reason why there is none.

    Attributes:
        row: number of the request in the pass.
        key: SHA-256 of the canonical request, hex.
        session_id: the session.
        ranking: ``[<= wanted]`` int64 distinct candidates, best first; empty when failed.
        repairs: what had to be repaired, by name, in order.
        prompt_tokens, completion_tokens: as billed.
        cost_microusd: what it cost.
        failure: "" or the reason.
    """

    row: int
    key: str
    session_id: int
    ranking: IntArray
    repairs: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    cost_microusd: int
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Amounts:
    """Money, tokens and requests together, as the ledger counts them."""

    microusd: int = 0
    tokens: int = 0
    requests: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.microusd + other.microusd,
            self.tokens + other.tokens,
            self.requests + other.requests,
        )


@dataclass(frozen=True, slots=True)
class Caps:
    """Upper limits; None = no limit of that kind."""

    microusd: int | None = None
    tokens: int | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class LedgerState:
    """A budget at one instant. settled + held + unresolved <= cap, for each capped unit."""

    settled: Amounts
    held: Amounts
    unresolved: Amounts
    caps: Caps
    breached_microusd: int = 0


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank of each session's target among all items; every metric derives from it.

    Attributes:
        session_ids: ``[S]`` int64.
        ranks: ``[S]`` int64, 1 = best; N + 1 where the target cannot be recommended.
        num_items: N.
    """

    session_ids: IntArray
    ranks: IntArray
    num_items: int


RunStatus = Literal["complete", "partial", "stopped", "breached"]


@dataclass(frozen=True, slots=True)
class AnnotationOutcome:
    """What a pass of annotation ended with.

    Attributes:
        annotations: one per request, in the order of the requests; requests that were never
            answered (stopped by the cap) are absent.
        status: ``complete``; ``partial`` (rows failed for good); ``stopped`` (by the cap, or the
            endpoint's quota); ``breached`` (the endpoint billed more than was held).
        reason: why, for a person; "" when complete.
        sent: requests sent by this pass (answers found in the store are not sent again).
        reused: answers found in the store.
        ledger: the budget at the end.
        seconds: wall time.
    """

    annotations: tuple[Annotation, ...]
    status: RunStatus
    reason: str
    sent: int
    reused: int
    ledger: LedgerState
    seconds: float
