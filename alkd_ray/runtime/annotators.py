"""A pass by Ray actors: one desk that keeps the books, k annotators that ask.

Guarantees. The desk is the only writer; a hold is on disk before its request leaves, and a raw
answer before it is read. An annotator that dies leaves its holds unresolved, and its rows go to
another one. A desk that dies is started again on the same books: what was held is unresolved, and
answers that annotators have in hand are settled late. Work is pulled, so a slow row delays nobody.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayActorError, RayTaskError

from alkd_ray.annotation import passes, worker
from alkd_ray.annotation.asking import Asker, AskingSettings
from alkd_ray.annotation.database import BOOKS_ENVIRONMENT, Database, is_url
from alkd_ray.annotation.grouping import Grouped
from alkd_ray.annotation.operations import Hold, Release, Standing, Verdict
from alkd_ray.annotation.passes import Pass
from alkd_ray.annotation.pricing import Rates
from alkd_ray.annotation.questions import RankQuestions
from alkd_ray.annotation.worker import AnnotationJob, LocalDesk, Tell
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.llm_teachers import Endpoint, RecordedTeacher
from alkd_ray.runtime.cluster import ensure_ray, this_node
from alkd_ray.runtime.tasks import said_by_ours
from alkd_ray.types import AnnotationOutcome

# Asking is waiting; an annotator must not keep a CPU from others.
ACTOR_CPUS = 0.1
ANNOTATOR_DEATHS_BORNE = 5
POLL_SECONDS = 0.5
DESK_RESTARTS = 10
DESK_PATIENCE_SECONDS = 120.0
DESK_RETRY_SECONDS = 0.3
DESK_ANSWER_SECONDS = 10.0


def annotate(job: AnnotationJob, progress: Tell | None = None) -> AnnotationOutcome:
    """Buys the rankings of ``job`` that the store does not have, with Ray actors.

    Raises:
        InputError, BudgetError, BooksError: as :func:`alkd_ray.annotation.worker.annotate`; also
            for a job in batches, which would be asked live at the price of batches.
        AlkdError: annotators keep dying.
    """
    if job.annotation.mode == "batch":
        raise InputError(
            "annotation.mode is batch, which annotators do not ask in: it would be asked live, "
            "against a cap that holds the price of batches; annotation.engine=local asks so"
        )
    teacher = worker.teacher_of(job.llm)
    if isinstance(teacher, RecordedTeacher):
        return worker.replay(job, teacher)
    described = teacher.describe()
    questions = worker.rank_questions(job, described)
    # The books are opened here first: what cannot be paid, or is there already, needs no actors.
    with Database(job.books, wait_seconds=worker.WRITER_SECONDS) as database:
        desk, at, rates = worker.open_desk(job, described, questions, database)
        if not at.pending:
            return passes.outcome(questions, at, desk.store, desk.standing())
    with teacher.endpoint() as endpoint:
        return _Driver(job, questions, endpoint, rates, at, progress).run()


@dataclass(frozen=True, slots=True)
class _Secrets:
    """Environment variables for an actor of a Ray that was started without them.

    An argument, not a runtime environment: Ray writes the variables of those into its logs.
    """

    variables: Mapping[str, str] = field(repr=False)

    def set(self) -> None:
        """Sets them in this process; an actor has one to itself."""
        os.environ.update(self.variables)


class _Desk:
    """The desk as an actor; see :class:`alkd_ray.annotation.desk.Desk`.

    The driver says :meth:`begin`, again after each restart; until then everything else waits.
    """

    def __init__(self, secrets: _Secrets) -> None:
        secrets.set()
        self._begun = asyncio.Event()
        self._opening = asyncio.Lock()

    async def begin(self, job: AnnotationJob, questions: RankQuestions, at: Pass) -> None:
        """Opens the books; says nothing new to a desk that has begun."""
        async with self._opening:
            if self._begun.is_set():
                return
            await asyncio.get_running_loop().run_in_executor(None, self._open, job, questions, at)
            self._local = LocalDesk(self._desk)
            self._begun.set()

    def _open(self, job: AnnotationJob, questions: RankQuestions, at: Pass) -> None:
        # The driver has just closed the books, or the process that had them has just died.
        self._database = Database(job.books, wait_seconds=worker.WRITER_SECONDS)
        self._questions = questions
        self._at = at
        self._desk, _, _ = worker.open_desk(
            job, questions.endpoint, questions, self._database, begun=at
        )

    async def has_begun(self) -> bool:
        """Whether the books are open; False after a restart."""
        return self._begun.is_set()

    async def apply(self, operations: Sequence[Any]) -> list[Any]:
        """Carries out a group of one annotator's operations, together with those of others."""
        await self._begun.wait()
        return await self._local.do_all(operations)

    async def standing(self) -> Standing:
        """How the pass stands."""
        await self._begun.wait()
        return await self._local.call(self._desk.standing)

    async def return_rows(self, name: str) -> int:
        """Takes back the rows of a dead annotator."""
        await self._begun.wait()
        return await self._local.call(self._desk.return_rows, name)

    async def outcome(self) -> AnnotationOutcome:
        """What the pass ended with."""
        await self._begun.wait()

        def read() -> AnnotationOutcome:
            return passes.outcome(
                self._questions, self._at, self._desk.store, self._desk.standing()
            )

        return await self._local.call(read)

    async def close(self) -> None:
        """Gives the books back."""
        await self._begun.wait()
        self._local.close()
        self._database.close()


class _RemoteDesk:
    """The desk as an annotator sees it: one message at a time, with all that waits.

    While the desk is down, what must be reported waits and is said again; nothing can be held, so
    nothing is sent.
    """

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self._grouped = Grouped(self._apply)

    async def do(self, operation: Any) -> Any:
        """See :class:`alkd_ray.annotation.asking.DeskFace`."""
        return await self._grouped.do(operation)

    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        patience_ends = time.monotonic() + DESK_PATIENCE_SECONDS
        lost_holds: set[str] = set()
        while True:
            said = [_said_again(operation, lost_holds) for operation in operations]
            try:
                results = list(await self._desk.apply.remote(said))
            except RayActorError:
                if time.monotonic() > patience_ends:
                    raise
                # Whether these were held is not known, but nothing was sent under them.
                lost_holds |= {o.hold_id for o in operations if isinstance(o, Hold)}
                await asyncio.sleep(DESK_RETRY_SECONDS)
                continue
            return [
                Verdict(False, reason="the desk was started again")
                if isinstance(operation, Hold) and operation.hold_id in lost_holds
                else result
                for operation, result in zip(operations, results, strict=True)
            ]


def _said_again(operation: Any, lost_holds: set[str]) -> Any:
    if isinstance(operation, Hold) and operation.hold_id in lost_holds:
        return Release(operation.hold_id)
    return operation


class _Annotator:
    """A worker as an actor; see :class:`alkd_ray.annotation.asking.Asker`."""

    def __init__(
        self,
        questions: RankQuestions,
        endpoint: Endpoint,
        rates: Rates,
        desk: Any,
        settings: AskingSettings,
        secrets: _Secrets,
    ) -> None:
        secrets.set()
        self._asker = Asker(questions, endpoint, rates, _RemoteDesk(desk), settings)

    async def run(self) -> None:
        """Works until there is no more to do."""
        await self._asker.run()

    async def end(self) -> None:
        """Has :meth:`run` come to its end, waiting for no pause of the endpoint."""
        self._asker.end()


class _Driver:
    """Starts the actors of one pass, watches them, and ends them."""

    def __init__(
        self,
        job: AnnotationJob,
        questions: RankQuestions,
        endpoint: Endpoint,
        rates: Rates,
        at: Pass,
        progress: Tell | None,
    ) -> None:
        ensure_ray()
        self.job = job
        self.at = at
        self.endpoint = endpoint
        self.rates = rates
        self.progress = progress
        self.deaths = 0
        self.started = 0
        self.secrets = _Secrets(_keys_environment(endpoint))
        # An endpoint of this machine is not to be found from another node.
        is_local = urlsplit(endpoint.base_url).hostname in ("127.0.0.1", "localhost", "::1")
        self.placed: dict[str, Any] = {"scheduling_strategy": this_node()} if is_local else {}
        self.questions = ray.put(questions)
        self.desk: Any = (
            ray.remote(_Desk)
            .options(
                num_cpus=ACTOR_CPUS,
                max_restarts=DESK_RESTARTS,
                max_task_retries=0,
                scheduling_strategy=this_node(),
            )
            .remote(_Secrets(_books_environment(job)))
        )
        self.desk_job = ray.put(job)
        self.desk_pass = ray.put(at)
        self.running: dict[Any, tuple[str, Any]] = {}

    def run(self) -> AnnotationOutcome:
        started = time.perf_counter()
        try:
            self._from_desk("standing")
            for _ in range(min(self.job.annotation.actors, len(self.at.pending))):
                self._start()
            while self.running:
                done, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
                for reference in done:
                    self._ended(reference)
                standing = self._from_desk("standing")  # also begins a desk that was restarted
                if standing.stop_status:
                    for _, actor in self.running.values():
                        actor.end.remote()
                if self.progress is not None:
                    self.progress(self.at.progress(standing))
            outcome: AnnotationOutcome = self._from_desk("outcome")
            self._from_desk("close")
        finally:
            for _, actor in self.running.values():
                ray.kill(actor)
            ray.kill(self.desk)
        return AnnotationOutcome(
            outcome.annotations,
            outcome.status,
            outcome.reason,
            outcome.sent,
            outcome.reused,
            outcome.ledger,
            time.perf_counter() - started,
        )

    def _from_desk(self, method: str, *arguments: Any) -> Any:
        """A call of the desk, begun first, and said again while it is being started again."""
        patience_ends = time.monotonic() + DESK_PATIENCE_SECONDS
        while True:
            try:
                # Only then are all rows sent along: reading them takes the desk a while.
                if not ray.get(self.desk.has_begun.remote()):
                    ray.get(self.desk.begin.remote(self.desk_job, self.questions, self.desk_pass))
                said = getattr(self.desk, method).remote(*arguments)
                while not ray.wait([said], timeout=DESK_ANSWER_SECONDS)[0]:
                    # A desk that died in between waits to be begun, and the call with it.
                    if not ray.get(self.desk.has_begun.remote()):
                        break
                else:
                    return ray.get(said)
            except RayActorError as error:
                if time.monotonic() > patience_ends:
                    raise AlkdError(
                        "the ledger's actor cannot be reached, so nothing is sent: "
                        f"{' '.join(str(error).split())[:300]}; what was received is kept, the "
                        "same command goes on"
                    ) from error
                time.sleep(DESK_RETRY_SECONDS)
            except RayTaskError as error:
                raise said_by_ours(error) from error

    def _start(self) -> None:
        self.started += 1
        name = f"annotator-{self.started}"
        settings = worker.asking_settings(self.job.annotation, name, self.started)
        actor: Any = (
            ray.remote(_Annotator)
            .options(num_cpus=ACTOR_CPUS, **self.placed)
            .remote(self.questions, self.endpoint, self.rates, self.desk, settings, self.secrets)
        )
        self.running[actor.run.remote()] = (name, actor)

    def _ended(self, reference: Any) -> None:
        name, actor = self.running.pop(reference)
        try:
            ray.get(reference)
        except RayActorError as error:
            self.deaths += 1
            self._from_desk("return_rows", name)
            if self.deaths > ANNOTATOR_DEATHS_BORNE:
                raise AlkdError(
                    f"annotators died {self.deaths} times, the last one with: "
                    f"{' '.join(str(error).split())[:300]}; what was received is kept, the same "
                    "command goes on"
                ) from error
            self._start()
        except RayTaskError as error:
            raise said_by_ours(error) from error
        else:
            ray.kill(actor)


def _books_environment(job: AnnotationJob) -> dict[str, str]:
    """What PostgreSQL's client takes from the environment, password included, for the desk.

    Ray may have been started without it.
    """
    if not is_url(job.books):
        return {}
    names = [name for name in os.environ if name.startswith("PG") or name == BOOKS_ENVIRONMENT]
    return {name: os.environ[name] for name in names}


def _keys_environment(endpoint: Endpoint) -> dict[str, str]:
    """The key's variable, for annotators of a Ray that was started without it."""
    name = endpoint.api_key_env
    return {name: os.environ[name]} if name and name in os.environ else {}
