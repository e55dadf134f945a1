"""The simulated endpoint: chat completions over real HTTP, with usage, faults and its own bill."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from alkd_ray.errors import InputError
from alkd_ray.llm_teachers._answers import Draw, answer, tokens_of
from alkd_ray.llm_teachers._behaviour import MODEL, Behaviour
from alkd_ray.llm_teachers._bill import Bill

LARGEST_BODY_BYTES = 4 * 2**20
DEFAULT_MAX_TOKENS = 4_096
_SHUTDOWN_SECONDS = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _RefusedError(Exception):
    """A request that is answered with an error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    def response(self) -> web.Response:
        kind = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
        error = {
            "message": str(self),
            "type": self.code or kind.get(self.status, "invalid_request_error"),
            "param": None,
            "code": self.code,
        }
        return web.json_response({"error": error}, status=self.status, headers=self.headers)


class SimulatedEndpoint:
    """Answers ``/v1/chat/completions`` from the prompt's text alone; holds no dataset.

    An answer is billed when it has been generated, whether or not it arrives. One event loop;
    requests overlap in their waits, never in their bookkeeping.
    """

    def __init__(self, behaviour: Behaviour, bill: Bill) -> None:
        """Reads the key to demand from the environment, where there is one.

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
        self._seen: Counter[str] = Counter()
        self._admitted: deque[float] = deque()  # monotonic seconds, the last minute's

    def application(self) -> web.Application:
        """The routes, for aiohttp to serve."""
        application = web.Application(
            client_max_size=LARGEST_BODY_BYTES, middlewares=[_errors_as_json]
        )
        application.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/bill", self._bill),
                web.get("/bill/log", self._bill_log),
            ]
        )
        return application

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request)
        body = _checked_body(await request.read(), self.behaviour)
        self._admit()
        contents = [_text_of(message) for message in body["messages"]]
        digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:16]
        draw = Draw(self.behaviour.seed, digest, self._seen[digest])
        self._seen[digest] += 1
        self._fail_at_times(draw)
        await asyncio.sleep(self._wait_seconds(draw))
        if draw.happens("drop before", self.behaviour.drop_before_share):
            return _dropped(request)
        prompt = "\n".join(contents)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS
        generated = answer(prompt, limit, self.behaviour, draw)
        entry = self.bill.add(digest, tokens_of(prompt), generated.tokens)
        if draw.happens("drop after", self.behaviour.drop_after_share):
            return _dropped(request)
        return web.json_response(
            {
                "id": f"chatcmpl-{digest}-{entry.number}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": MODEL,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": generated.text},
                        "logprobs": None,
                        "finish_reason": "length" if generated.is_cut else "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": entry.prompt_tokens,
                    "completion_tokens": entry.completion_tokens,
                    "total_tokens": entry.prompt_tokens + entry.completion_tokens,
                    "prompt_tokens_details": {"cached_tokens": 0},
                },
            }
        )

    async def _models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "alkd_ray"}
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _bill(self, request: web.Request) -> web.Response:
        return web.json_response(self.bill.totals())

    async def _bill_log(self, request: web.Request) -> web.Response:
        return web.json_response([asdict(entry) for entry in self.bill.entries])

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and not hmac.compare_digest(given.encode(), self.key.encode()):
            raise _RefusedError(401, "Incorrect API key provided.", "invalid_api_key")

    def _admit(self) -> None:
        """Refuses what goes beyond the quota or the rate."""
        quota, rate = self.behaviour.quota_requests, self.behaviour.requests_per_minute
        if quota is not None and len(self.bill.entries) >= quota:
            raise _RefusedError(429, "You exceeded your current quota.", "insufficient_quota")
        if rate is None:
            return
        now = time.monotonic()
        while self._admitted and now - self._admitted[0] >= 60:
            self._admitted.popleft()
        if len(self._admitted) >= rate:
            wait = f"{60 - (now - self._admitted[0]):.3f}"
            raise _RefusedError(
                429,
                f"Rate limit reached: {rate} requests per minute. Try again in {wait} s.",
                "rate_limit_exceeded",
                {"Retry-After": wait, "x-ratelimit-limit-requests": str(rate)},
            )
        self._admitted.append(now)

    def _fail_at_times(self, draw: Draw) -> None:
        if draw.happens("rate limited", self.behaviour.rate_limited_share):
            raise _RefusedError(
                429,
                "Rate limit reached.",
                "rate_limit_exceeded",
                {"Retry-After": f"{self.behaviour.retry_after_seconds:g}"},
            )
        if draw.happens("server error", self.behaviour.server_error_share):
            raise _RefusedError(500, "The server had an error while processing your request.")

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


def _checked_body(raw: bytes, behaviour: Behaviour) -> dict[str, Any]:
    """The request as an object, or a refusal that says what is wrong with it."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise _RefusedError(400, f"We could not parse the JSON body: {error}") from error
    if not isinstance(body, dict):
        raise _RefusedError(400, "The body must be a JSON object.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _RefusedError(400, "'messages' must be a list of at least one message.")
    if body.get("model") != MODEL:
        raise _RefusedError(
            404, f"The model {body.get('model')!r} does not exist; {MODEL} does.", "model_not_found"
        )
    if body.get("stream") or body.get("n", 1) != 1:
        raise _RefusedError(400, "'stream' and 'n' above 1 are not supported.")
    for field in ("max_tokens", "max_completion_tokens"):
        value = body.get(field)
        if value is not None and (type(value) is not int or value < 1):
            raise _RefusedError(400, f"'{field}' must be a whole number above 0, not {value!r}.")
    _check_format(body.get("response_format"), behaviour)
    return body


def _check_format(wanted: Any, behaviour: Behaviour) -> None:
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind == "json_schema" and not behaviour.json_schema:
        raise _RefusedError(400, "'response_format.type' must be 'text' or 'json_object'.")
    if kind not in (None, "text", "json_object", "json_schema"):
        raise _RefusedError(400, f"'response_format.type' is unknown: {kind!r}.")


def _text_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "\n".join(
            part.get("text", "") if isinstance(part, dict) else "" for part in content
        )
    if not isinstance(content, str):
        raise _RefusedError(400, "Each message needs a 'content' that is text.")
    return content


def _dropped(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except _RefusedError as refused:
        return refused.response()
    except web.HTTPException as error:
        return _RefusedError(error.status, error.text or error.reason).response()
