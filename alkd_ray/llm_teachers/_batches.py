"""OpenAI's ``/v1/batches`` of the simulated endpoint: requests in a file, answers in a file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from alkd_ray.llm_teachers._answers import Completions, Draw, RefusedError, read_request
from alkd_ray.llm_teachers._batch_lines import (
    ENDPOINT,
    left_out,
    lines_of,
    problem,
    problems_of,
    result,
)
from alkd_ray.llm_teachers._behaviour import MODEL
from alkd_ray.llm_teachers._files import Files, StoredFile, page

WINDOW_SECONDS = 24 * 3600.0
_EDGE_SHARE = 0.05  # of a batch's time, for validating and for finalizing
_MOST_PROBLEMS = 100
_LINES_PER_TURN = 64  # read in one go, before other requests have their turn


class DroppedError(Exception):
    """The connection shall end without an answer."""


@dataclass(slots=True)
class _Batch:
    """One batch as it goes on; the attributes are those of OpenAI's object where not said."""

    id: str
    input_file_id: str
    content: bytes  # of the input file, which may be deleted meanwhile
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None
    draw: Draw
    deadline: float  # monotonic seconds; infinite for none
    status: str = "validating"
    stamps: dict[str, int] = field(default_factory=dict)  # status -> when it was entered
    problems: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    output: bytearray = field(default_factory=bytearray)
    refused: bytearray = field(default_factory=bytearray)
    output_file_id: str | None = None
    error_file_id: str | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, status: str) -> None:
        self.status = status
        self.stamps[status] = int(time.time())

    def end(self, status: str) -> None:
        """Enters the last status, and lets go of what was only needed on the way."""
        self.content, self.output, self.refused = b"", bytearray(), bytearray()
        self.enter(status)

    def described(self) -> dict[str, Any]:
        entered = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "model": MODEL,
            "errors": {"object": "list", "data": self.problems} if self.problems else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": self.stamps.get(name) for name in (*entered, "cancelled")},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
            "metadata": self.metadata,
        }


class Batches:
    """Runs batches, each in a task of its own that needs no client.

    They live in memory: those under way are lost when the process ends, though what they
    generated is on the bill. Rates and the faults of live requests do not touch them.
    """

    def __init__(self, completions: Completions, files: Files) -> None:
        self._completions = completions
        self._behaviour = completions.behaviour
        self._files = files
        self._batches: dict[str, _Batch] = {}
        self._submitted: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        """For aiohttp to serve."""
        return [
            web.post("/v1/batches", self._create),
            web.get("/v1/batches", self._list),
            web.get("/v1/batches/{id}", self._show),
            web.post("/v1/batches/{id}/cancel", self._cancel),
        ]

    async def running(self, application: web.Application) -> AsyncIterator[None]:
        """Ends what is under way when the application ends."""
        yield
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _create(self, request: web.Request) -> web.Response:
        try:
            asked = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, f"We could not parse the JSON body: {error}") from error
        source, metadata = self._checked(asked)
        content = hashlib.sha256(source.content).hexdigest()[:16]
        draw = Draw(self._behaviour.seed, content, self._submitted[content])
        self._submitted[content] += 1
        now, lasts = int(time.time()), self._behaviour.batch_expire_after_seconds
        batch = _Batch(
            f"batch_{uuid.uuid4().hex}",
            source.id,
            source.content,
            now,
            now + int(WINDOW_SECONDS if lasts is None else lasts),
            metadata,
            draw,
            math.inf if lasts is None else time.monotonic() + lasts,
        )
        self._batches[batch.id] = batch
        task = asyncio.create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if draw.happens("batch drop", self._behaviour.batch_drop_share):
            raise DroppedError
        return web.json_response(batch.described())

    def _checked(self, asked: Any) -> tuple[StoredFile, dict[str, str] | None]:
        """File and metadata of a batch to create."""
        if not isinstance(asked, dict):
            raise RefusedError(400, "The body must be a JSON object.")
        if asked.get("endpoint") != ENDPOINT:
            raise RefusedError(400, f"'endpoint' must be {ENDPOINT!r}.")
        if asked.get("completion_window") != "24h":
            raise RefusedError(400, "'completion_window' must be '24h'.")
        file_id = asked.get("input_file_id")
        source = self._files.find(file_id) if isinstance(file_id, str) else None
        if source is None or source.purpose != "batch":
            raise RefusedError(400, f"'input_file_id' names no file of a batch: {file_id!r}.")
        metadata = asked.get("metadata")
        if metadata is not None and not _is_metadata(metadata):
            raise RefusedError(
                400, "'metadata' has at most 16 texts of 512 characters, named by 64 or fewer."
            )
        return source, metadata

    async def _list(self, request: web.Request) -> web.Response:
        newest_first = [batch.described() for batch in reversed(self._batches.values())]
        return web.json_response(page(newest_first, request.query, default=20, most=100))

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._named(request).described())

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._named(request)
        if batch.status in ("validating", "in_progress"):
            batch.enter("cancelling")
            batch.cancelled.set()
        elif batch.status not in ("cancelling", "cancelled"):
            raise RefusedError(409, f"Cannot cancel a batch with status '{batch.status}'.")
        return web.json_response(batch.described())

    def _named(self, request: web.Request) -> _Batch:
        batch_id = request.match_info["id"]
        if batch_id not in self._batches:
            raise RefusedError(404, f"No batch found with id '{batch_id}'.")
        return self._batches[batch_id]

    async def _run(self, batch: _Batch) -> None:
        begun, seconds = time.monotonic(), self._behaviour.batch_seconds
        await _goes_on(batch, begun + seconds * _EDGE_SHARE)
        batch.problems = await self._validate(batch)
        if batch.problems:
            batch.end("failed")
            return
        if not batch.cancelled.is_set():
            batch.enter("in_progress")
        if await self._answer_all(batch, begun + seconds * _EDGE_SHARE):
            batch.enter("finalizing")
            await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
            end = "completed"
        else:
            end = "cancelled" if batch.cancelled.is_set() else "expired"
        self._write(batch)
        batch.end(end)

    async def _validate(self, batch: _Batch) -> list[dict[str, Any]]:
        """Counts the lines; what is wrong with them, or with the whole."""
        behaviour = self._behaviour
        if batch.draw.happens("batch fails", behaviour.batch_fail_share):
            return [problem("server_error", "The batch could not be validated; submit it again.")]
        try:
            self._completions.check_quota()
        except RefusedError as refused:
            return [problem("billing_hard_limit_reached", str(refused))]
        if len(batch.content) > (limit := behaviour.batch_bytes_limit):
            return [problem("file_too_large", f"The file has more than {limit} bytes.")]
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        for number, line in lines_of(batch.content):
            batch.total += 1
            if batch.total > (limit := behaviour.batch_lines_limit):
                return [problem("too_many_tasks", f"The file has more than {limit} requests.")]
            found += problems_of(number, line, seen)
            if number % _LINES_PER_TURN == 0:
                await asyncio.sleep(0)
        if not batch.total:
            found.append(problem("empty_file", "The file has no requests."))
        return found[:_MOST_PROBLEMS]

    async def _answer_all(self, batch: _Batch, begun: float) -> bool:
        """Answers line by line, evenly spread over the batch's time from ``begun`` (monotonic).

        Returns:
            whether all were reached; those that were not are noted as such.
        """
        span = self._behaviour.batch_seconds * (1 - 2 * _EDGE_SHARE)
        goes_on = True
        for number, line in lines_of(batch.content):
            asked = json.loads(line)
            if goes_on:
                done = batch.completed + batch.failed
                goes_on = await _goes_on(batch, begun + span * (done + 1) / batch.total)
            elif number % _LINES_PER_TURN == 0:
                await asyncio.sleep(0)
            if goes_on:
                self._answer(batch, asked)
            else:
                why = "cancelled" if batch.cancelled.is_set() else "expired"
                batch.refused += left_out(asked["custom_id"], why)
        return goes_on

    def _answer(self, batch: _Batch, asked: dict[str, Any]) -> None:
        behaviour, completions = self._behaviour, self._completions
        try:
            request = read_request(asked["body"], behaviour)
            completions.check_quota()
            draw = completions.next_draw(request)
            completions.count(request)
            if draw.happens("batch line error", behaviour.batch_line_error_share):
                raise RefusedError(500, "The server had an error while processing this request.")
            if draw.happens("batch line refused", behaviour.batch_line_refused_share):
                raise RefusedError(400, "This request was refused.", "invalid_prompt")
            body = completions.charge(request, completions.generate(request, draw), in_batch=True)
        except RefusedError as refused:
            batch.failed += 1
            batch.refused += result(asked["custom_id"], refused.status, refused.body())
            return
        batch.completed += 1
        batch.prompt_tokens += body["usage"]["prompt_tokens"]
        batch.completion_tokens += body["usage"]["completion_tokens"]
        batch.output += result(asked["custom_id"], 200, body)

    def _write(self, batch: _Batch) -> None:
        """Makes files of the results; one without lines is not written."""
        if batch.output:
            name, content = f"{batch.id}_output.jsonl", bytes(batch.output)
            batch.output_file_id = self._files.add(name, "batch_output", content).id
        if batch.refused:
            name, content = f"{batch.id}_error.jsonl", bytes(batch.refused)
            batch.error_file_id = self._files.add(name, "batch_output", content).id


async def _goes_on(batch: _Batch, moment: float) -> bool:
    """Waits until ``moment`` (monotonic seconds); False once the batch is cancelled or expired."""
    wait = min(moment, batch.deadline) - time.monotonic()
    if wait > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(batch.cancelled.wait(), wait)
    else:
        await asyncio.sleep(0)  # others have their turn
    return not batch.cancelled.is_set() and max(moment, time.monotonic()) < batch.deadline


def _is_metadata(given: Any) -> bool:
    return (
        isinstance(given, dict)
        and len(given) <= 16
        and all(len(name) <= 64 for name in given)
        and all(isinstance(text, str) and len(text) <= 512 for text in given.values())
    )
