"""A pass in this process: one worker, one event loop, no Ray. The other form is in ``runtime``."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alkd_ray import registry
from alkd_ray.annotation import entries, parse, passes, planning, pricing
from alkd_ray.annotation.asking import Asker, AskingSettings, Questions
from alkd_ray.annotation.batches import Batches
from alkd_ray.annotation.database import Database, books_of
from alkd_ray.annotation.desk import Desk
from alkd_ray.annotation.experience import learned
from alkd_ray.annotation.grouping import Grouped
from alkd_ray.annotation.operations import Stop
from alkd_ray.annotation.passes import Pass, Progress
from alkd_ray.annotation.planning import Speed
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.questions import RankQuestions
from alkd_ray.annotation.store import Store
from alkd_ray.annotation.turns import Limits, Turns
from alkd_ray.config import AnnotationConfig, LLMConfig, canonical_hash
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import ChatTeacher, Endpoint, RecordedTeacher
from alkd_ray.types import Annotation, AnnotationOutcome, Caps, Catalogue, RankRequest

if TYPE_CHECKING:
    from alkd_ray.annotation.batching import BatchAsker

PROGRESS_SECONDS = 0.5
# The actors of a killed run need a moment to notice; until then one of them writes the books.
WRITER_SECONDS = 15.0

Tell = Callable[[Progress], None]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AnnotationJob:
    """What a pass needs to know; can be sent to other processes.

    Attributes:
        requests: what to rank; equal ones stand once.
        catalogue: the titles.
        domain: what the items are.
        llm: who ranks.
        annotation: how rankings are bought.
        budget_name: the budget that is held against.
        caps: its cap.
        folder: where the store and the ledger lie, unless they are on a server.
        run_id: the run on whose behalf it is.
        books_url: the server's database with store and ledger; "" = what the environment names,
            else a file in ``folder``. Holds no password.
    """

    requests: Sequence[RankRequest]
    catalogue: Catalogue
    domain: str
    llm: LLMConfig
    annotation: AnnotationConfig
    budget_name: str
    caps: Caps
    folder: Path
    run_id: str
    books_url: str = ""

    @property
    def books(self) -> Path | str:
        """The file of ledger and store, or their URL."""
        return books_of(self.books_url, self.folder)


def annotate(job: AnnotationJob, progress: Tell | None = None) -> AnnotationOutcome:
    """Buys, or replays, the rankings of ``job`` that the store does not have.

    Raises:
        InputError: the price is unknown, or the recording does not fit.
        BudgetError: the cap cannot cover the requests and ``annotation.partial`` is not set.
        BooksError: another process writes the store.
    """
    teacher = teacher_of(job.llm)
    if isinstance(teacher, RecordedTeacher):
        return replay(job, teacher)
    questions = rank_questions(job, teacher.describe())
    return ask_all(job, teacher, questions, progress)


def rank_questions(job: AnnotationJob, endpoint: Endpoint) -> RankQuestions:
    """The ranking questions of ``job``, for ``endpoint``."""
    limit = job.annotation.max_output_tokens
    return RankQuestions(job.requests, job.catalogue, job.domain, endpoint, limit)


def teacher_of(llm: LLMConfig) -> Any:
    """The teacher that a config names."""
    return registry.build("llm_teachers", llm.teacher, llm.options)


def rates_of(endpoint: Endpoint, *, in_batches: bool = False) -> Rates:
    """Its rates, from the config or the price list; those of batches where asked for.

    Raises:
        InputError: the price is not known.
    """
    return pricing.rates_of(
        endpoint.model,
        endpoint.base_url,
        endpoint.rates,
        service_tier=str(endpoint.extra_body.get("service_tier", "")),
        in_batches=in_batches,
    )


def limits_of(annotation: AnnotationConfig) -> Limits:
    """The rate that all who ask keep to together."""
    return Limits(annotation.requests_per_minute, annotation.tokens_per_minute)


def asking_settings(annotation: AnnotationConfig, worker: str, seed: int = 0) -> AskingSettings:
    """How a worker of that name asks."""
    takes_turns = not limits_of(annotation).is_unlimited
    return AskingSettings(worker, annotation.in_flight, annotation.tries, seed, takes_turns)


def speed_of(annotation: AnnotationConfig) -> Speed:
    """How fast a pass may go, for its plan."""
    in_flight = annotation.in_flight * (annotation.actors if annotation.engine == "ray" else 1)
    return Speed(in_flight, annotation.requests_per_minute, annotation.tokens_per_minute)


def ask_all(
    job: AnnotationJob, teacher: ChatTeacher, questions: Questions, progress: Tell | None = None
) -> AnnotationOutcome:
    """Asks ``questions`` in this process; see :func:`annotate`."""
    in_batches = job.annotation.mode == "batch"
    with Database(job.books, wait_seconds=WRITER_SECONDS) as database:
        described = teacher.describe()
        desk, at, rates = open_desk(job, described, questions, database)
        left_over = in_batches and Batches(database).under_way(described.identity, described.model)

        def by_batches(endpoint: Endpoint) -> BatchAsker:
            return _batch_asker(job, questions, endpoint, rates, desk, at, progress)

        if at.pending:
            with teacher.endpoint() as endpoint:
                asyncio.run(
                    by_batches(endpoint).run()
                    if in_batches
                    else _work(job, questions, endpoint, rates, desk, at, progress)
                )
        elif left_over:
            _collect_left_over(teacher, by_batches)
        return passes.outcome(questions, at, desk.store, desk.standing())


def open_desk(
    job: AnnotationJob,
    endpoint: Endpoint,
    questions: Questions,
    database: Database,
    *,
    begun: Pass | None = None,
) -> tuple[Desk, Pass, Rates]:
    """The desk with the rows that are left to ask, once the cap is known to cover them.

    Args:
        job: the pass.
        endpoint: who is asked.
        questions: its rows.
        database: the books, open for writing.
        begun: the pass, when this opens its desk again: its cap was compared with the cost then.

    Raises:
        InputError: the price is not known.
        BudgetError: the cap cannot cover them and ``annotation.partial`` is not set.
    """
    rates = rates_of(endpoint, in_batches=job.annotation.mode == "batch")
    kind = questions[0].kind if len(questions) else ""
    experience = learned(database, endpoint.identity, endpoint.model, kind)
    desk = Desk(
        database,
        job.budget_name,
        job.caps,
        job.run_id,
        last_hold=begun.last_hold if begun else None,
        turns=Turns(database, endpoint.identity, limits_of(job.annotation)),
        experience=experience,
    )
    if begun is not None:
        in_doubt = desk.ledger.unresolved_keys(job.budget_name, begun.last_hold)
        rows, first_answers = passes.still_pending(questions, begun, desk.store, in_doubt)
        at = begun
    else:
        at = passes.begin(questions, desk.store)
        at.last_hold = desk.last_hold
        rows, first_answers = at.pending, at.first_answers
        sizes = dict(zip(at.pending.keys.values(), at.sizes, strict=True))
        collecting = job.budget_name if job.annotation.mode == "batch" else ""
        held = Batches(database).all_held()
        waiting = planning.in_batches(sizes, held, collecting, rates, experience)
        left = entries.left(waiting.collected(desk.ledger.state(job.budget_name)))
        to_send = [size for key, size in sizes.items() if key not in waiting.keys]
        planned = replace(at, sizes=to_send).plan(rates, left, experience)
        planning.check(planned, job.annotation.partial)
        desk.ledger.note_rates(job.budget_name, endpoint.model, rates)
    desk.add(rows, first_answers, endpoint=endpoint.identity, model=endpoint.model)
    return desk, at, rates


def replay(job: AnnotationJob, teacher: RecordedTeacher) -> AnnotationOutcome:
    """Serves recorded rankings through the store; nothing is sent and nothing is paid.

    The recorded items need not be among the candidates, which are another teacher's; any distinct
    items of the catalogue are accepted.
    """
    started = time.perf_counter()
    with Database(job.books, wait_seconds=WRITER_SECONDS) as database:
        desk = Desk(database, job.budget_name, job.caps, job.run_id)
        with database.transaction():
            rows = [_replayed(job, teacher, row, desk.store) for row in range(len(job.requests))]
        state = desk.ledger.state(job.budget_name)
    failed = sum(bool(row.failure) for row in rows)
    reason = f"{failed} of {len(rows)} recorded rankings cannot be used" if failed else ""
    return AnnotationOutcome(
        annotations=tuple(rows),
        status="partial" if failed else "complete",
        reason=reason,
        sent=0,
        reused=len(rows),
        ledger=state,
        seconds=time.perf_counter() - started,
    )


class LocalDesk:
    """The desk for workers of this process: groups of operations, in a thread of their own."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="books")
        self._grouped = Grouped(self._apply)

    async def do(self, operation: Any) -> Any:
        """See :class:`alkd_ray.annotation.asking.DeskFace`."""
        return await self._grouped.do(operation)

    async def do_all(self, operations: Sequence[Any]) -> list[Any]:
        """Several operations, of another process's group."""
        return await self._grouped.do_all(operations)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call that touches the books, between two groups."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Waits for the last group."""
        self._thread.shutdown()

    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        return await self.call(self.desk.apply, operations)


async def _work(
    job: AnnotationJob,
    questions: Questions,
    endpoint: Endpoint,
    rates: Rates,
    desk: Desk,
    at: Pass,
    progress: Tell | None,
) -> None:
    local = LocalDesk(desk)
    settings = asking_settings(job.annotation, "local")
    asker = Asker(questions, endpoint, rates, local, settings)
    worker = asyncio.create_task(asker.run())
    try:
        while not worker.done():
            await asyncio.wait({worker}, timeout=PROGRESS_SECONDS)
            standing = await local.call(desk.standing)
            if standing.stop_status:
                asker.end()  # lanes that wait for the endpoint would not hear of it
            if progress is not None:
                progress(at.progress(standing))
        await worker
    except asyncio.CancelledError:
        # Ctrl-C: what is in flight is waited for no longer, its holds are left unresolved.
        await local.do(Stop("stopped", "interrupted"))
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        raise
    finally:
        local.close()


def _collect_left_over(teacher: ChatTeacher, by_batches: Callable[[Endpoint], BatchAsker]) -> None:
    """Collects other passes' batches for one that has all it wants: it fails for none of them."""
    from alkd_ray.annotation.batch_looks import UnreachableError

    try:
        with teacher.endpoint() as endpoint:
            asyncio.run(by_batches(endpoint).collect_left_over())
    except (InputError, UnreachableError) as error:
        _LOG.warning("batches of other passes are left where they are: %s", error)


def _batch_asker(
    job: AnnotationJob,
    questions: Questions,
    endpoint: Endpoint,
    rates: Rates,
    desk: Desk,
    at: Pass,
    progress: Tell | None,
) -> BatchAsker:
    # Here, since it brings the SDK along.
    from alkd_ray.annotation.batching import BatchAsker, BatchSettings

    def tell() -> None:
        if progress is not None:
            progress(at.progress(desk.standing()))

    annotation = job.annotation
    settings = BatchSettings(annotation.batch_size, annotation.batch_poll_seconds, annotation.tries)
    return BatchAsker(questions, endpoint, rates, desk, settings, tell)


def _replayed(job: AnnotationJob, teacher: RecordedTeacher, row: int, store: Store) -> Annotation:
    request = job.requests[row]
    identity = ["replay", teacher.fingerprint, request.session_id]
    key = canonical_hash(identity, 64)
    recorded = teacher.ranking(request.session_id)
    if recorded is None:
        nothing = request.candidates[:0]
        return Annotation(
            row, key, request.session_id, nothing, (), 0, 0, 0, "not in the recording"
        )
    found = parse.parse_recorded(recorded, len(job.catalogue), request.wanted)
    if key not in store.answers([key]):
        store.put_request(
            key,
            endpoint=f"replay:{teacher.fingerprint}",
            model="recorded",
            kind="rank",
            prompt_version="",
            session_id=request.session_id,
            body="",
        )
        raw = json.dumps(recorded.tolist())
        store.put_answer(key, 1, raw, usage=None, cost_microusd=0, hold_id="")
    store.put_parsed(
        key,
        parser_version=parse.PARSER_VERSION,
        ranking=found.ranking.tolist(),
        repairs=found.repairs,
        failure=found.failure,
    )
    return Annotation(
        row, key, request.session_id, found.ranking, found.repairs, 0, 0, 0, found.failure
    )
