"""The embedded default: this project's own endpoint, started for as long as it is needed."""

from __future__ import annotations

import dataclasses
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from pydantic import Field

from alkd_ray.errors import AlkdError
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._behaviour import MODEL, Behaviour, identity_of

_STOP_SECONDS = 10.0


class Simulated:
    """A reader of titles behind real HTTP: it knows what titles say, and nothing else.

    The server (``alkd llm serve``) reads the text of a prompt: the next volume of a series that
    was begun ranks first, then other volumes, the same creator and genre, with seeded noise. It
    has no access to the dataset. It reports usage, keeps its own bill and, told so, misbehaves as
    real endpoints do. It stands for an LLM in tests and in the default run; what it is worth on
    real titles was not measured against one.

    The server is a process of its own. It ends when :meth:`endpoint` is left, and also when the
    process that started it is killed, because its standard input then reaches its end.
    """

    class Config(Behaviour):
        """Options."""

        timeout_seconds: float = Field(120.0, gt=0, description="longest wait for one answer")
        startup_seconds: float = Field(120.0, gt=0, description="longest wait for the server")

    def __init__(self, *, timeout_seconds: float, startup_seconds: float, **behaviour: Any) -> None:
        self.behaviour = Behaviour(**behaviour)
        self.timeout_seconds = timeout_seconds
        self.startup_seconds = startup_seconds

    def describe(self) -> Endpoint:
        """See :class:`alkd_ray.llm_teachers.ChatTeacher`."""
        share = self.behaviour.batch_price_share
        return Endpoint(
            identity=identity_of(self.behaviour),
            base_url="",
            model=MODEL,
            api_key_env=self.behaviour.api_key_env,
            rates={
                "input_usd_per_million": self.behaviour.input_usd_per_million,
                "output_usd_per_million": self.behaviour.output_usd_per_million,
                "batch_input_usd_per_million": self.behaviour.input_usd_per_million * share,
                "batch_output_usd_per_million": self.behaviour.output_usd_per_million * share,
            },
            timeout_seconds=self.timeout_seconds,
        )

    def check(self) -> None:
        """See :class:`alkd_ray.llm_teachers.ChatTeacher`; it needs nothing."""

    @contextmanager
    def endpoint(self) -> Iterator[Endpoint]:
        """See :class:`alkd_ray.llm_teachers.ChatTeacher`.

        Raises:
            AlkdError: the server did not start.
        """
        with tempfile.TemporaryFile() as complaints:
            # A session of its own: an interrupt from the keyboard must not end it before its user.
            server = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                start_new_session=True,
            )
            try:
                address = self._address(server.stdout, complaints)
                yield dataclasses.replace(self.describe(), base_url=address)
            finally:
                _end(server)

    def _command(self) -> list[str]:
        words = [sys.executable, "-m", "alkd_ray", "llm", "serve", "--port", "0"]
        words.append("--until-stdin-closes")
        for name, value in self.behaviour.model_dump(exclude_defaults=True).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return words

    def _address(self, output: IO[str] | None, complaints: IO[bytes]) -> str:
        """The address in the server's first line."""
        if output is None:
            raise ValueError("the server's output must be a pipe")
        line = ""
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            if selector.select(self.startup_seconds):
                line = output.readline()
        address = next((word for word in line.split() if word.startswith("http")), "")
        if address:
            return address
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"no word from it within {self.startup_seconds:g} s"
        raise AlkdError(f"the simulated endpoint did not start: {why}")


def _end(server: subprocess.Popen[str]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            pipe.close()
