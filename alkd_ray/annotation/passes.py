"""A pass over many questions: what is known already, what is left to ask, and how it ended.

Raw answers in the store are the truth; readings are made from them anew, so that a better parser
reads old answers for nothing, and a pass that was killed goes on with what was received.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from alkd_ray.annotation import planning
from alkd_ray.annotation.asking import Questions
from alkd_ray.annotation.database import now
from alkd_ray.annotation.experience import Experience
from alkd_ray.annotation.operations import RowRequest, Standing
from alkd_ray.annotation.planning import Plan, Size
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.questions import (
    Question,
    Reading,
    as_json,
    body_in_bytes,
    size_around,
)
from alkd_ray.annotation.store import Spent, Store, StoredAnswer
from alkd_ray.llm_teachers._completions import read_answer
from alkd_ray.types import Annotation, AnnotationOutcome, Caps, LedgerState, RunStatus

ATTEMPTS = 2  # the question, and asking again once
ROWS_AT_ONCE = 500  # 5 kB each


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass is, for people.

    Attributes:
        done: rows with a reading, those found in the store included.
        total: rows.
        failed: rows that failed for good.
        in_flight: requests sent and not settled.
        sent: requests sent by this pass.
        ledger: the budget.
    """

    done: int
    total: int
    failed: int
    in_flight: int
    sent: int
    ledger: LedgerState


class PendingRows:
    """Rows that are to be asked, each rendered when it is looked at: a body takes 5 kB.

    Sent to another process, it is only their indexes and keys; the questions go there by
    themselves, once for all.
    """

    def __init__(self, questions: Questions | None, keys: Mapping[int, str]) -> None:
        """Keeps the rows.

        Args:
            questions: those of the pass; None: the rows can be counted, but not rendered.
            keys: index -> key, in order.
        """
        self.keys = keys
        self._questions = questions

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[RowRequest]:
        if self._questions is None:
            raise RuntimeError("pending rows without their questions cannot be rendered")
        for index in self.keys:
            question = self._questions[index]
            yield RowRequest(
                index,
                question.key,
                question.kind,
                question.prompt_version,
                question.session_id,
                as_json(question.body),
            )

    def __reduce__(self) -> tuple[type[PendingRows], tuple[None, Mapping[int, str]]]:
        return PendingRows, (None, self.keys)


@dataclass(slots=True)
class Pass:
    """The rows of a pass; made by :func:`begin`.

    Attributes:
        keys: each row's key.
        pending: rows to be asked; of rows with equal keys, the first.
        first_answers: raw first attempts of those that must only be asked again.
        sizes: of the pending rows.
        last_hold: number of the last hold before the pass, so that its own can be counted.
        began_at: when, UTC, ISO 8601.
        started: when, on this process's clock.
    """

    keys: list[str]
    pending: PendingRows = field(default_factory=lambda: PendingRows(None, {}))
    first_answers: dict[int, str] = field(default_factory=dict)
    sizes: list[Size] = field(default_factory=list)
    last_hold: int = 0
    began_at: str = field(default_factory=now)
    started: float = field(default_factory=time.perf_counter)

    @property
    def unique(self) -> int:
        """Different questions."""
        return len(set(self.keys))

    def plan(self, rates: Rates, left: Caps, experience: Experience) -> Plan:
        """What the pending rows will cost, and what the cap leaves."""
        return planning.plan(self.sizes, self.unique, rates, left, experience)

    def progress(self, standing: Standing) -> Progress:
        """How far it is; a desk that was started again counts only what was left then."""
        return Progress(
            done=self.unique - standing.rows + standing.done,
            total=self.unique,
            failed=standing.failed,
            in_flight=standing.in_flight,
            sent=standing.sent,
            ledger=standing.ledger,
        )


def begin(questions: Questions, store: Store | None) -> Pass:
    """Finds what the store has; without a store everything is to be asked."""
    found = Pass([])
    pending: dict[int, str] = {}
    seen: set[str] = set()
    # Some at a time: rendering is the dear part, and all rows at once may not fit in memory.
    for start in range(0, len(questions), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(questions)))
        new: dict[int, Question] = {}
        for index in rows:
            question = questions[index]
            found.keys.append(question.key)
            if question.key not in seen:
                seen.add(question.key)
                new[index] = question
        left = _unsettled(new, {index: question.key for index, question in new.items()}, store)
        for index, first_answer in left.items():
            question = new[index]
            if first_answer is not None:
                found.first_answers[index] = first_answer
            pending[index] = question.key
            found.sizes.append(
                Size(
                    body_in_bytes(question.body),
                    size_around(question.body, question.schema),
                    question.wanted,
                    question.max_output_tokens,
                    question.kind,
                )
            )
    found.pending = PendingRows(questions, pending)
    return found


def still_pending(
    questions: Questions, at: Pass, store: Store, in_doubt: Collection[str] = ()
) -> tuple[PendingRows, dict[int, str]]:
    """Rows of a pass that began earlier and are not answered yet, and their first answers.

    Only rows with something in the store are looked at; the others are as they were. Those with
    keys ``in_doubt`` come last: whoever sent them may be alive, and will have reported by then.
    """
    keys = at.pending.keys
    left = _unsettled(questions, keys, store)
    first_answers = {index: raw for index, raw in left.items() if raw is not None}
    ordered = sorted(left, key=lambda index: keys[index] in in_doubt)
    return PendingRows(questions, {index: keys[index] for index in ordered}), first_answers


def outcome(questions: Questions, at: Pass, store: Store, standing: Standing) -> AnnotationOutcome:
    """What the pass ended with, read from the store."""
    annotations = tuple(annotations_of(questions, at.keys, store, at.began_at))
    failed = sum(bool(annotation.failure) for annotation in annotations)
    status, reason = _status(standing, len(questions), len(annotations), failed)
    return AnnotationOutcome(
        annotations=annotations,
        status=status,
        reason=reason,
        sent=standing.sent,
        reused=at.unique - len(at.pending),
        ledger=standing.ledger,
        seconds=time.perf_counter() - at.started,
    )


def annotations_of(
    questions: Questions, keys: Sequence[str], store: Store, began_at: str
) -> Iterator[Annotation]:
    """The annotation of each row that has an answer or failed for good; others are left out.

    A failure that may pass counts only when it is of this pass, one that began at ``began_at``;
    so does an unreadable first answer only once the row was asked again, or could not be.
    """
    answers = store.answers(keys)
    spent = store.spent(keys)
    failures = store.failures(keys)
    nothing = Spent(0, 0, 0, 0)
    for index, key in enumerate(keys):
        question = questions[index]
        stored = answers.get(key, [])
        failed = failures.get(key)
        if failed is not None and not failed.is_permanent and failed.failed_at < began_at:
            failed = None
        best = best_reading(question, stored) if stored else None
        if best is not None and best.failure and best.ask_again and len(stored) < ATTEMPTS:
            best = None if failed is None else best
        if best is not None:
            ranking, repairs, failure = best.ranking, best.repairs, best.failure
        elif failed is not None:
            ranking, repairs, failure = np.zeros(0, np.int64), (), failed.reason
        else:
            continue
        paid = spent.get(key, nothing)
        yield Annotation(
            row=index,
            key=key,
            session_id=question.session_id,
            ranking=ranking,
            repairs=repairs,
            prompt_tokens=paid.prompt_tokens,
            completion_tokens=paid.completion_tokens,
            cost_microusd=paid.cost_microusd,
            failure=failure,
        )


def best_reading(question: Question, stored: Sequence[StoredAnswer]) -> Reading:
    """The better one of the readings of a question's attempts; the first one of equals."""
    readings = [question.read(read_answer(answer.raw).text) for answer in stored]
    return max(readings, key=lambda reading: reading.worth)


def _unsettled(
    questions: Questions | Mapping[int, Question], keys: Mapping[int, str], store: Store | None
) -> dict[int, str | None]:
    """Index -> raw first answer, if any, of the rows that the store has no last word on."""
    answers = store.answers(keys.values()) if store else {}
    failures = store.failures(keys.values()) if store else {}
    left: dict[int, str | None] = {}
    for index, key in keys.items():
        stored = answers.get(key, [])
        failed = failures.get(key)
        if len(stored) >= ATTEMPTS or (failed is not None and failed.is_permanent and not stored):
            continue
        if stored and not best_reading(questions[index], stored).ask_again:
            continue
        left[index] = stored[0].raw if stored else None
    return left


def _status(standing: Standing, wanted: int, found: int, failed: int) -> tuple[RunStatus, str]:
    if standing.stop_status == "breached":
        return "breached", standing.stop_reason
    if found < wanted:
        reason = standing.stop_reason or f"{wanted - found} rows were not asked"
        return "stopped", reason
    if failed:
        return "partial", f"{failed} of {wanted} rows failed"
    return "complete", ""
