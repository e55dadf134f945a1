"""A server of chat completions that costs next to nothing, and notes when it was asked.

    python benchmarks/lean_server.py --latency 0.1 --wanted 25

Each request is answered with a valid ranking after ``--latency`` seconds, whatever it says. No
JSON is parsed, so that on a small machine the server takes little from those who ask it. It ends
with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Times:
    """What the server saw: answers, and the first request and the last answer (monotonic)."""

    answers: int = 0
    first: float = 0.0
    last: float = 0.0


class Answering(asyncio.Protocol):
    """One connection of the server: HTTP/1.1, keep-alive, bodies with a Content-Length.

    A POST is answered after ``latency`` seconds. A GET returns, and resets, the times.
    """

    def __init__(self, answer: bytes, latency: float, times: Times) -> None:
        self.answer = answer
        self.latency = latency
        self.times = times
        self.received = bytearray()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the connection."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Takes whole requests off what was received."""
        self.received += data
        while (head_end := self.received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.received[:head_end]).lower()
            _, found, length = head.partition(b"content-length:")
            end = head_end + 4 + (int(length.partition(b"\r\n")[0]) if found else 0)
            if len(self.received) < end:
                return
            del self.received[:end]
            if head.startswith(b"get"):
                self.send(response(asdict(self.times)))
                self.times.answers, self.times.first = 0, 0.0
            else:
                self.times.first = self.times.first or time.monotonic()
                asyncio.get_running_loop().call_later(self.latency, self.send_answer)

    def send_answer(self) -> None:
        """The answer, and its time."""
        self.send(self.answer)
        self.times.answers += 1
        self.times.last = time.monotonic()

    def send(self, data: bytes) -> None:
        """Writes, unless the client has gone."""
        if not self.transport.is_closing():
            self.transport.write(data)


def response(content: dict[str, Any]) -> bytes:
    """A whole HTTP response of 200 with JSON."""
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def serve(latency: float, wanted: int) -> None:
    """Serves until standard input ends, which it does when the benchmark's process does."""
    content = json.dumps({"ranking": list(range(wanted, 0, -1))})
    message = {"role": "assistant", "content": content}
    answer = response(
        {
            "id": "chatcmpl-benchmark",
            "object": "chat.completion",
            "created": 0,
            "model": "lean",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 900, "completion_tokens": 75, "total_tokens": 975},
        }
    )
    loop = asyncio.get_running_loop()
    make = functools.partial(Answering, answer, latency, Times())
    server = await loop.create_server(make, "127.0.0.1", 0, backlog=1024)
    print(f"serving at http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


@contextlib.contextmanager
def serving(words: Sequence[str]) -> Iterator[str]:
    """The address of a server that ``words`` start, a process of its own; ended on exit."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, *words], stdin=pipe, stdout=pipe, text=True)
    try:
        line = server.stdout.readline() if server.stdout else ""
        yield next(word for word in line.split() if word.startswith("http"))
    finally:
        server.communicate()  # closes its standard input


def lean_server(latency: float, wanted: int) -> contextlib.AbstractContextManager[str]:
    """This server, with rankings of ``wanted`` numbers after ``latency`` seconds."""
    return serving([__file__, "--latency", str(latency), "--wanted", str(wanted)])


def times(url: str) -> Times:
    """The server's times since they were asked for last."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - our own address
        return Times(**json.load(answer))


def main() -> None:
    """Serves."""
    parser = argparse.ArgumentParser(description="A lean server of chat completions.")
    parser.add_argument("--latency", type=float, default=0.1, help="of each answer, seconds")
    parser.add_argument("--wanted", type=int, default=25, help="numbers in a ranking")
    given = parser.parse_args()
    asyncio.run(serve(given.latency, given.wanted))


if __name__ == "__main__":
    main()
