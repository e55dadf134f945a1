"""Contract of the room: an LLM teacher ranks candidates, live over HTTP or from a recording.

A chat teacher only says where its endpoint is; asking, retrying and paying are the business of
:mod:`alkd_ray.annotation`, so that the cost cap holds whatever the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

from alkd_ray.types import IntArray

StructuredOutput = Literal["auto", "schema", "object", "json", "off"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where chat completions are asked for, and on what terms. Can be sent to other processes.

    Attributes:
        identity: stable name of the endpoint for request keys; two endpoints with one identity
            give interchangeable answers.
        base_url: address up to and including ``/v1``; "" where it is not known before the start.
        model: the model's name, as the endpoint knows it.
        api_key_env: name of the environment variable that holds the key, "" for no key.
        api_key_file: file that holds the key, "" for none; read by whoever sends.
        rates: ``input_usd_per_million``, ``output_usd_per_million`` and, optionally,
            ``cached_input_usd_per_million``, ``batch_input_usd_per_million`` and
            ``batch_output_usd_per_million``; None = look the model's prices up.
        temperature: sampling temperature; None = leave it to the endpoint.
        timeout_seconds: longest wait for one answer.
        structured_output: ``schema`` asks for a JSON schema, ``object`` for a JSON object with
            the schema beside it (llama.cpp's form), ``json`` for any JSON object, ``off`` for
            nothing; ``auto`` tries them in that order, once, and keeps what is accepted.
        output_limit_field: name of the request's field that limits the output.
        extra_body: further fields of each request.
    """

    identity: str
    base_url: str
    model: str
    api_key_env: str = ""
    api_key_file: str = ""
    rates: Mapping[str, float] | None = None
    temperature: float | None = None
    timeout_seconds: float = 120.0
    structured_output: StructuredOutput = "auto"
    output_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)


def is_openai(base_url: str) -> bool:
    """Whether an address is OpenAI's own, for which its environment variables are meant."""
    host = urlsplit(base_url).hostname or ""
    return host == "openai.com" or host.endswith(".openai.com")


@runtime_checkable
class ChatTeacher(Protocol):
    """An LLM behind a chat-completions endpoint."""

    def describe(self) -> Endpoint:
        """The endpoint, without starting or asking anything."""
        ...

    def check(self) -> None:
        """Refuses what cannot work on this machine, without starting or asking anything.

        Raises:
            InputError: a key is missing.
        """
        ...

    def endpoint(self) -> AbstractContextManager[Endpoint]:
        """The endpoint, ready to be asked; a server that was started for it ends on exit."""
        ...


@runtime_checkable
class RecordedTeacher(Protocol):
    """Rankings that were recorded earlier; nothing is sent, nothing is paid.

    Attributes:
        fingerprint: content hash of the recording.
    """

    fingerprint: str

    def recorded_ids(self) -> IntArray:
        """``[R]`` int64, the sessions with a recorded ranking."""
        ...

    def ranking(self, session_id: int) -> IntArray | None:
        """The ranking of one session as it was recorded, unrepaired; None if there is none."""
        ...
