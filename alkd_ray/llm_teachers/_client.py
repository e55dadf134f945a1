"""Asks a chat-completions endpoint one question, once, and says exactly what became of it.

No retries here: whoever pays decides about them. What matters to the ledger is whether a request
can have been billed, so every outcome is one of three: an :class:`Answer` (billed), a
:class:`NotBilledError` (the endpoint refused it, or it never left), an
:class:`OutcomeUnknownError` (the bytes were sent and no answer came; it may have been billed).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import Any

import aiohttp
import httpx2
import openai

from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._completions import Answer, read_answer

# Responses that mean "the whole run is misconfigured", not "this request is bad".
HOPELESS_STATUS = frozenset({401, 403, 404})
# A proxy gave up waiting: what stands behind it may have generated, and billed, an answer.
GATEWAY_STATUS = frozenset({408, 502, 504, 522, 524})
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"})


class NotBilledError(Exception):
    """The request was refused, or never left this machine.

    Attributes:
        status: HTTP status, 0 when no connection could be made.
        retry_after_seconds: what the endpoint asks to wait; None when it does not say.
        is_permanent: asking the same again cannot help.
        is_hopeless: no request of this run can succeed (key, model, address, quota).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after_seconds: float | None = None,
        is_permanent: bool = False,
        is_hopeless: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.is_permanent = is_permanent
        self.is_hopeless = is_hopeless


class OutcomeUnknownError(Exception):
    """The request was sent, but no whole answer came back; it may have been billed."""


class ChatClient:
    """One endpoint, asked through ``openai.AsyncOpenAI`` over aiohttp; the SDK's retries are off.

    Belongs to one event loop. Use as an async context manager.
    """

    def __init__(self, endpoint: Endpoint, connections: int = 1024) -> None:
        """Prepares the connection pool; nothing is sent.

        Raises:
            InputError: the key's file cannot be read.
        """
        self.endpoint = endpoint
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._sdk = openai.AsyncOpenAI(
            api_key=api_key(endpoint) or "none",
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=httpx2.Timeout(endpoint.timeout_seconds, connect=30.0),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sdk.close()

    async def ask(self, body: Mapping[str, Any]) -> Answer:
        """Sends ``body`` once.

        Raises:
            NotBilledError: refused or not sent.
            OutcomeUnknownError: sent, and no whole answer came.
        """
        try:
            response = await self._sdk.post(
                "/chat/completions", body=dict(body), cast_to=httpx2.Response
            )
            raw = response.text
        except openai.APIStatusError as error:
            if error.status_code in GATEWAY_STATUS:
                raise OutcomeUnknownError(
                    f"HTTP {error.status_code} from a gateway; the endpoint may have answered"
                ) from None
            raise refused(error) from None
        except openai.APIConnectionError as error:
            if never_sent(error):
                raise NotBilledError(
                    f"no connection to {self.endpoint.base_url}: {root_cause(error)}"
                ) from None
            raise OutcomeUnknownError(
                f"the connection ended without an answer: {root_cause(error)}"
            ) from None
        except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise OutcomeUnknownError(f"the answer broke off: {root_cause(error)}") from None
        return read_answer(raw)


def api_key(endpoint: Endpoint) -> str:
    """The key, from a file or the environment; "" where there is none, as local servers need none.

    Raises:
        InputError: the file cannot be read.
    """
    if endpoint.api_key_file:
        try:
            return Path(endpoint.api_key_file).read_text("utf-8").strip()
        except OSError as error:
            raise InputError(
                f"llm.options.api_key_file: {endpoint.api_key_file} cannot be read "
                f"({error.strerror}); give a file that holds the key"
            ) from None
    return os.environ.get(endpoint.api_key_env, "").strip() if endpoint.api_key_env else ""


def refused(error: openai.APIStatusError) -> NotBilledError:
    """What a response with an error status means, for a request that was not billed."""
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    code = str(body.get("code") or body.get("type") or "")
    said = " ".join(str(body.get("message") or error.response.text).split())[:300]
    is_quota = code in QUOTA_CODES
    retryable = status in (409, 425, 429) or status >= 500
    return NotBilledError(
        f"HTTP {status} {said}".strip(),
        status=status,
        retry_after_seconds=_retry_after(error.response.headers.get("retry-after")),
        is_permanent=not retryable or is_quota,
        is_hopeless=status in HOPELESS_STATUS or is_quota,
    )


def _retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except (TypeError, ValueError):
        return None


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def never_sent(error: BaseException) -> bool:
    """Whether no byte of the request can have reached the endpoint.

    The SDK's transport reports a connection that the server closed as a failed one, so the
    answer is in the cause, aiohttp's own error.
    """
    kinds = (
        aiohttp.ClientConnectorError,
        aiohttp.ConnectionTimeoutError,
        aiohttp.InvalidURL,
        httpx2.PoolTimeout,
        httpx2.UnsupportedProtocol,
    )
    return any(isinstance(cause, kinds) for cause in _causes(error))


def root_cause(error: BaseException) -> str:
    """The first of the errors that led to this one, in words."""
    last = _causes(error)[-1]
    return f"{type(last).__name__} {last}".strip()
