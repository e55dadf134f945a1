"""The simulated endpoint: chat completions over real HTTP, with usage, faults and its own bill."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from alkd_ray.errors import InputError
from alkd_ray.llm_teachers._answers import Completions, Draw, RefusedError, read_request
from alkd_ray.llm_teachers._batches import Batches, DroppedError
from alkd_ray.llm_teachers._behaviour import MODEL, Behaviour
from alkd_ray.llm_teachers._bill import Bill
from alkd_ray.llm_teachers._files import Files

LARGEST_BODY_BYTES = 4 * 2**20
_SHUTDOWN_SECONDS = 2.0
_WINDOW_SECONDS = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that was let in: the moment (monotonic seconds) and its tokens, answer included."""

    moment: float
    tokens: int


class SimulatedEndpoint:
    """Answers ``/v1/chat/completions`` from the prompt's text alone; holds no dataset.

    An answer is billed when it has been generated, whether or not it arrives. One event loop;
    requests overlap in their waits, never in their bookkeeping.

    Beside OpenAI's routes, files and batches among them, there are three without a key: ``/bill``
    (totals), ``/bill/log`` (each answer) and ``/admissions``, a list of ``[seconds since the start,
    prompt tokens, completion tokens]`` of each live request that was let in, whatever became of it
    then.
    """

    def __init__(self, behaviour: Behaviour, bill: Bill, reasoning_tokens: int = 0) -> None:
        """Reads the key to demand from the environment, where there is one.

        Args:
            behaviour: how it answers.
            bill: what it charges to.
            reasoning_tokens: see :class:`~alkd_ray.llm_teachers._answers.Completions`.

        Raises:
            InputError: ``api_key_env`` names a variable that is not set.
        """
        self.behaviour = behaviour
        self.bill = bill
        self.key = os.environ.get(behaviour.api_key_env, "") if behaviour.api_key_env else ""
        if behaviour.api_key_env and not self.key:
            raise InputError(
                f"api_key_env names {behaviour.api_key_env}, which is not set in the environment; "
                "set it or leave the option out"
            )
        self._completions = Completions(behaviour, bill, reasoning_tokens)
        self._started = time.monotonic()
        self._admitted: deque[_Admitted] = deque()  # the last minute's
        self._admitted_tokens = 0  # the sum of theirs
        self._admissions_log: list[tuple[float, int, int]] = []

    def application(self) -> web.Application:
        """The routes, for aiohttp to serve."""
        application = web.Application(
            client_max_size=LARGEST_BODY_BYTES, middlewares=[_errors_as_json, self._with_key]
        )
        application.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/bill", self._bill),
                web.get("/bill/log", self._bill_log),
                web.get("/admissions", self._admissions),
            ]
        )
        if self.behaviour.batches:
            files = Files()
            batches = Batches(self._completions, files)
            application.add_routes([*files.routes(), *batches.routes()])
            application.cleanup_ctx.append(batches.running)
        return application

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = read_request(_parsed(await request.read()), self.behaviour)
        completions = self._completions
        completions.check_quota()
        # A request beyond a limit costs no answer; one that might fit needs its answer's length.
        self._refuse_beyond_limits(asked.prompt_tokens)
        draw = completions.next_draw(asked)
        generated = completions.generate(asked, draw)
        self._refuse_beyond_limits(asked.prompt_tokens + generated.tokens)
        self._admit(asked.prompt_tokens, generated.tokens)
        completions.count(asked)
        self._fail_at_times(draw)
        await asyncio.sleep(self._wait_seconds(draw))
        if draw.happens("drop before", self.behaviour.drop_before_share):
            raise DroppedError
        body = completions.charge(asked, generated)
        if draw.happens("drop after", self.behaviour.drop_after_share):
            raise DroppedError
        return web.json_response(body)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "alkd_ray"}
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _bill(self, request: web.Request) -> web.Response:
        return web.json_response(self.bill.totals())

    async def _bill_log(self, request: web.Request) -> web.Response:
        return web.json_response([asdict(entry) for entry in self.bill.entries])

    async def _admissions(self, request: web.Request) -> web.Response:
        return web.json_response(self._admissions_log)

    @web.middleware
    async def _with_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        is_guarded = bool(self.key) and request.path.startswith("/v1/")
        if is_guarded and not hmac.compare_digest(
            given.encode(errors="surrogateescape"), self.key.encode()
        ):
            raise RefusedError(401, "Incorrect API key provided.", "invalid_api_key")
        return await handler(request)

    def _refuse_beyond_limits(self, tokens: int) -> None:
        """Refuses a request that the requests or the tokens of the last minute leave no room for.

        Args:
            tokens: what the request needs.
        """
        now = time.monotonic()
        while self._admitted and now - self._admitted[0].moment >= _WINDOW_SECONDS:
            self._admitted_tokens -= self._admitted.popleft().tokens
        rate = self.behaviour.requests_per_minute
        if rate is not None and len(self._admitted) >= rate:
            raise _rate_limited("requests", rate, self._admitted[0].moment - now)
        limit = self.behaviour.tokens_per_minute
        if limit is None:
            return
        if tokens > limit:
            raise RefusedError(
                429,
                f"Request too large: {tokens} tokens, but the limit is {limit} tokens per minute.",
                "rate_limit_exceeded",
            )
        missing = self._admitted_tokens + tokens - limit
        for admitted in self._admitted:
            if missing <= 0:
                return
            missing -= admitted.tokens
            if missing <= 0:
                raise _rate_limited("tokens", limit, admitted.moment - now)

    def _admit(self, prompt_tokens: int, completion_tokens: int) -> None:
        now = time.monotonic()
        self._admitted.append(_Admitted(now, prompt_tokens + completion_tokens))
        self._admitted_tokens += prompt_tokens + completion_tokens
        self._admissions_log.append((now - self._started, prompt_tokens, completion_tokens))

    def _fail_at_times(self, draw: Draw) -> None:
        if draw.happens("rate limited", self.behaviour.rate_limited_share):
            raise RefusedError(
                429,
                "Rate limit reached.",
                "rate_limit_exceeded",
                {"Retry-After": f"{self.behaviour.retry_after_seconds:g}"},
            )
        if draw.happens("server error", self.behaviour.server_error_share):
            raise RefusedError(500, "The server had an error while processing your request.")

    def _wait_seconds(self, draw: Draw) -> float:
        behaviour = self.behaviour
        seconds = behaviour.latency_seconds + behaviour.jitter_seconds * draw.uniform("jitter")
        if draw.happens("slow", behaviour.slow_share):
            seconds += behaviour.slow_seconds
        return seconds


def run(
    behaviour: Behaviour, *, host: str, port: int, bill_file: Path | None, until_stdin_closes: bool
) -> None:
    """Serves until SIGTERM or SIGINT; the first line on stdout tells the address.

    Args:
        behaviour: how.
        host: address to listen on.
        port: 0 = a free one.
        bill_file: where the bill is kept beyond this process; None = nowhere.
        until_stdin_closes: also end when standard input reaches its end, which happens when the
            process that holds the other end of the pipe ends, in whatever way.

    Raises:
        InputError: the address or the bill's file cannot be used.
    """
    bill = Bill(bill_file, behaviour.input_usd_per_million, behaviour.output_usd_per_million)
    try:
        asyncio.run(_serve(SimulatedEndpoint(behaviour, bill), host, port, until_stdin_closes))
    finally:
        bill.close()


async def _serve(
    endpoint: SimulatedEndpoint, host: str, port: int, until_stdin_closes: bool
) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    if until_stdin_closes:
        threading.Thread(target=_wait_for_stdin, args=(loop, over), daemon=True).start()
    runner = web.AppRunner(
        endpoint.application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another "
                "--host or --port (0 = a free one)"
            ) from error
        number = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"serving {MODEL} at http://{shown}:{number}/v1\n")
        sys.stdout.flush()
        await over.wait()
    finally:
        await runner.cleanup()


def _wait_for_stdin(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    # Not sys.stdin: a thread that waits in it would hold its lock when the interpreter ends.
    while os.read(0, 1024):
        pass
    loop.call_soon_threadsafe(over.set)


def _rate_limited(what: str, limit: int, since_seconds: float) -> RefusedError:
    """The refusal by a limit; what is in the way was let in at ``since_seconds`` (negative)."""
    milliseconds = math.ceil((_WINDOW_SECONDS + since_seconds) * 1000)
    wait = f"{milliseconds / 1000:.3f}"
    return RefusedError(
        429,
        f"Rate limit reached: {limit} {what} per minute. Try again in {wait} s.",
        "rate_limit_exceeded",
        {"Retry-After": wait, f"x-ratelimit-limit-{what}": str(limit)},
    )


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"We could not parse the JSON body: {error}") from error


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except DroppedError:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()
    except RefusedError as error:
        refused = error
    except web.HTTPException as error:
        refused = RefusedError(error.status, error.text or error.reason)
    return web.json_response(refused.body(), status=refused.status, headers=refused.headers)
