"""The simulated endpoint for tests: in a thread, or as ``alkd llm serve``, and a client of it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, RemoteDisconnected
from typing import Any

from aiohttp import web

from alkd_ray.annotation import prompts
from alkd_ray.llm_teachers._behaviour import MODEL, Behaviour
from alkd_ray.llm_teachers._bill import Bill
from alkd_ray.llm_teachers._server import SimulatedEndpoint

PATIENCE_SECONDS = 60.0
SERIES = [f"The Ember Archive, Vol. {volume} - fantasy - Mira Kestrel" for volume in range(1, 9)]
OTHERS = [f"Book {name} - crime - Jon Vale" for name in ("Oak", "Elm", "Ash", "Fir", "Yew", "Bay")]
CANDIDATES = [*OTHERS, SERIES[6], SERIES[3], SERIES[2]]
WANTED = 6

# What is sent instead of the endpoint's answer to the n-th question, n from 1; None = its answer.
Instead = Callable[[int], Awaitable[web.Response | None]]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def text(self) -> str:
        return self.body["choices"][0]["message"]["content"]

    @property
    def ranking(self) -> list:
        return json.loads(self.text)["ranking"]

    @property
    def usage(self) -> dict[str, int]:
        return self.body["usage"]


@dataclass(frozen=True)
class Server:
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        connection = HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.headers), json.loads(answer.read()))
        finally:
            connection.close()

    def ask(self, messages: list[dict[str, Any]], key: str = "", **fields: Any) -> Reply:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": MODEL, "messages": messages, **fields}
        return self.call("POST", "/v1/chat/completions", json.dumps(body).encode(), **headers)

    def rank(self, number: int = 0, **fields: Any) -> Reply:
        """A ranking; each ``number`` is another question."""
        return self.ask(question(number), **fields)

    def bill(self) -> dict[str, int]:
        return self.call("GET", "/bill").body


def question(number: int = 0) -> list[dict[str, str]]:
    return prompts.rank_messages(SERIES[:2], CANDIDATES, WANTED, f"Note {number}.", "books")


@contextmanager
def serving(
    *, reasoning_tokens: int = 0, instead: Instead | None = None, **settings: Any
) -> Iterator[Server]:
    """The endpoint in a thread of this process; starting a process takes seconds."""
    behaviour = Behaviour(**settings)
    bill = Bill(None, behaviour.input_usd_per_million, behaviour.output_usd_per_million)
    application = SimulatedEndpoint(behaviour, bill, reasoning_tokens).application()
    if instead is not None:
        application.middlewares.append(_between(instead))
    runner = web.AppRunner(application, access_log=None)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[str, int]:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner.addresses[0][:2]

    try:
        yield Server(*asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_SECONDS))
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)
        loop.close()


def _between(instead: Instead) -> Any:
    """A server in front of the endpoint, which sometimes speaks for it."""
    questions = 0

    @web.middleware
    async def between(request: web.Request, handler: Any) -> web.StreamResponse:
        nonlocal questions
        if request.path != "/v1/chat/completions":
            return await handler(request)
        questions += 1
        return await instead(questions) or await handler(request)

    return between


@contextmanager
def running(*options: str) -> Iterator[tuple[Server, subprocess.Popen[str]]]:
    """``alkd llm serve`` in a process."""
    process = subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield server_of(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "alkd_ray", "llm", "serve", *options]


def server_of(line: str) -> Server:
    found = re.search(r"http://([\d.]+):(\d+)/v1$", line.strip())
    assert found, f"no address in {line!r}"
    return Server(found[1], int(found[2]))


def ask_many(server: Server, count: int) -> tuple[list[Reply], int]:
    """Replies that arrived, and how many did not."""
    seen, lost = [], 0
    for number in range(10, 10 + count):
        try:
            seen.append(server.rank(number))
        except (RemoteDisconnected, ConnectionError):
            lost += 1
    return seen, lost
