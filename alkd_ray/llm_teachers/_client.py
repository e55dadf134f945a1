"""Asks a chat-completions endpoint one question, once, and says exactly what became of it.

No retries here: whoever pays decides about them. What matters to the ledger is whether a request
can have been billed, so every outcome is one of three: an :class:`Answer` (billed), a
:class:`NotBilledError` (the endpoint refused it, or it never left), an
:class:`OutcomeUnknownError` (the bytes were sent and no answer came; it may have been billed).

This one call, which a pass makes for every row, goes by aiohttp alone: through ``openai`` the same
request takes several times the processor time of this process (``python benchmarks/annotation.py``
prints both). Files and batches, a few calls a pass, go through the SDK.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from time import time
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from alkd_ray import __version__
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import Endpoint, is_openai
from alkd_ray.llm_teachers._completions import Answer, read_answer

# Responses that mean "no request of this run can succeed", not "this request is bad".
HOPELESS_STATUS = frozenset({401, 402, 403, 404})
# A proxy gave up waiting, or got half an answer: what stands behind it may have generated, and
# billed, one.
GATEWAY_STATUS = frozenset({408, 502, 504, 520, 522, 524})
# A shorter key ("none", "ollama") is no secret, and its letters may stand in any answer.
SHORTEST_SECRET = 12
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"})
# Anthropic says so with 400, as of a bad request.
NO_MONEY = re.compile(r"(credit|account) balance|insufficient (balance|credit|funds)")
# OpenRouter's 403 of one input, which says nothing of the others.
MODERATED = re.compile(r"moderat|flagged|content.(policy|filter)")
LOGIN = re.compile(r"://[^\s/]*@")  # in a URL
MOST_SAID = 300  # characters of what an endpoint says
# Raised before the first byte of a request is written, and at no later time.
NEVER_SENT = (
    aiohttp.ClientConnectorError,  # no address, no connection, no valid certificate
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,  # the proxy opened no tunnel
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
)
CONNECT_SECONDS = 30.0
# uvicorn and Node end idle connections after 5 s. One that ends while a request is written to it
# leaves a hold that nobody can settle, so ours end first.
KEEP_ALIVE_SECONDS = 4.0


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
    """One endpoint, asked by ``POST {base_url}/chat/completions``.

    Nothing is sent twice: no retries, no redirects, and aiohttp repeats no POST. Cookies are not
    kept. Belongs to one event loop. Use as an async context manager.
    """

    def __init__(self, endpoint: Endpoint, connections: int = 1024) -> None:
        """Prepares the client; nothing is sent.

        Args:
            endpoint: who is asked; ``timeout_seconds`` is the longest wait for a whole answer.
            connections: most connections open at once.

        Raises:
            InputError: there is no such address, the key cannot be read or sent, or the proxy
                cannot be used.
        """
        self.endpoint = endpoint
        self._connections = connections
        try:
            self._url = URL(f"{endpoint.base_url}/chat/completions")
        except ValueError as error:
            raise InputError(f"llm.options.base_url: {endpoint.base_url} ({error})") from None
        self._key = api_key(endpoint)
        self._headers = headers_of(endpoint, self._key)
        self._proxy = proxy_for(self._url)
        if self._proxy and self._url.scheme == "http":  # the request is what the proxy reads
            self._headers |= self._proxy.headers
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ChatClient:
        whole = self.endpoint.timeout_seconds
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=KEEP_ALIVE_SECONDS
            ),
            headers=self._headers,
            # Connecting must time out first, or nobody could tell whether the request was sent.
            timeout=aiohttp.ClientTimeout(total=whole, connect=min(CONNECT_SECONDS, whole / 2)),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=self._proxy and self._proxy.url,
            # By itself aiohttp would look for proxies anew, in a thread, at every request, and
            # refuse a key where .netrc names the host as well.
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, body: Mapping[str, Any]) -> Answer:
        """Sends ``body`` once.

        Raises:
            NotBilledError: refused or not sent.
            OutcomeUnknownError: sent, and no whole answer came.
        """
        if self._session is None:
            raise RuntimeError("ChatClient is an async context manager")
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        try:
            async with self._session.post(
                self._url,
                data=data,
                allow_redirects=False,
                proxy_headers=self._proxy and self._proxy.headers,
            ) as response:
                status, headers = response.status, response.headers
                text = (await response.read()).decode("utf-8", "replace")
                text = without_key(text, self._key)
        except NEVER_SENT as error:
            raise NotBilledError(
                f"no connection to {self.endpoint.base_url}: {root_cause(error, self._key)}"
            ) from None
        except TimeoutError:
            raise OutcomeUnknownError(
                f"no whole answer within {self.endpoint.timeout_seconds:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise OutcomeUnknownError(
                f"the connection ended without a whole answer: {root_cause(error, self._key)}"
            ) from None
        if not 200 <= status < 300:
            raise _no_answer(status, text, headers, self._key)
        answer = read_answer(text)
        if answer.is_completion:
            return answer
        error = _object_in(text).get("error")
        if error and answer.usage is None:
            raise _no_answer(_status_of(error), text, headers, self._key)
        said = " ".join(text.split())[:MOST_SAID]
        raise OutcomeUnknownError(f"HTTP {status} without a completion: {said}")


def headers_of(endpoint: Endpoint, key: str) -> dict[str, str]:
    """The headers of a request; the key is in them, so they are for sending only."""
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": f"alkd_ray/{__version__}",
    }
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if is_openai(endpoint.base_url):
        named = (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID"))
        headers.update((name, os.environ[given]) for name, given in named if os.environ.get(given))
    return headers


def api_key(endpoint: Endpoint) -> str:
    """The key, from a file or the environment; "" where there is none, as local servers need none.

    Raises:
        InputError: the file cannot be read, or no header can hold what is in it.
    """
    if endpoint.api_key_file:
        where = f"llm.options.api_key_file: {endpoint.api_key_file}"
        try:
            key = Path(endpoint.api_key_file).read_bytes().strip().decode("utf-8", "replace")
        except OSError as error:
            raise InputError(
                f"{where} cannot be read ({error.strerror}); give a file that holds the key"
            ) from None
    else:
        where = f"llm.options.api_key_env: {endpoint.api_key_env}"
        key = os.environ.get(endpoint.api_key_env, "").strip() if endpoint.api_key_env else ""
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{where} holds characters that no key has, such as a line break")
    return key


def without_key(text: str, key: str) -> str:
    """``text`` with ``[key]`` for the key, also where JSON writes it with escapes.

    Some endpoints repeat the key in their complaints, and what they say is kept for good.
    """
    if len(key) < SHORTEST_SECRET:
        return text
    quoted = json.dumps(key)[1:-1]
    for written in {key, quoted, quoted.replace("/", "\\/")}:
        text = text.replace(written, "[key]")
    return text


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy: its address, without a login, and the headers that log in."""

    url: URL
    headers: dict[str, str] = field(default_factory=dict[str, str], repr=False)


def proxy_for(url: URL) -> Proxy | None:
    """The proxy that the environment names for an address; none for this machine's own.

    Raises:
        InputError: it is of a kind that cannot be used.
    """
    host = url.host or ""
    if _is_this_machine(host) or proxy_bypass(host):
        return None
    given = getproxies()
    named = given.get(url.scheme) or given.get("all")
    if not named:
        return None
    try:
        proxy = URL(named if "://" in named else f"http://{named}")
        if proxy.scheme in ("http", "https") and proxy.host:
            if proxy.user is None and proxy.password is None:
                return Proxy(proxy)
            # aiohttp shows the address that it was given in its errors.
            login = aiohttp.encode_basic_auth(proxy.user or "", proxy.password or "")
            return Proxy(proxy.with_user(None), {"Proxy-Authorization": login})
    except ValueError:
        pass
    # The value itself may hold a password.
    raise InputError(
        f"the environment's {url.scheme} proxy is no http or https address that can be used; give "
        f"another in {url.scheme}_proxy, or do without with no_proxy={host}"
    )


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _no_answer(
    status: int, text: str, headers: Mapping[str, str], key: str
) -> NotBilledError | OutcomeUnknownError:
    """What became of a request that was answered with an error; see :func:`refusal`."""
    if status in GATEWAY_STATUS:
        return OutcomeUnknownError(f"HTTP {status} from a gateway; the endpoint may have answered")
    return refusal(status, text, headers, key)


def refusal(status: int, text: str, headers: Mapping[str, str], key: str) -> NotBilledError:
    """What a response that is no answer means, for a request that was not billed.

    Args:
        status: below 200 or from 300 on.
        text: the response's body.
        headers: its headers, looked up in any case.
        key: is not shown.
    """
    told = _error_in(text)
    code = str(told.get("code") or told.get("type") or "")
    message = str(told.get("message") or "")
    said = message or text
    is_redirect = 300 <= status < 400
    if is_redirect:
        said = f"the endpoint has moved to {headers.get('Location', 'an address it does not say')}"
    # The key goes before the text is cut, or its beginning would be left.
    said = " ".join(without_key(said, key).split())[:MOST_SAID]
    retryable = status in (409, 425, 429) or status >= 500
    # Not in the whole body, which may repeat the prompt.
    reason = f"{code} {message}".lower()
    is_moderated = status == 403 and MODERATED.search(reason) is not None
    is_hopeless = (
        code in QUOTA_CODES
        or is_redirect
        or (status in HOPELESS_STATUS and not is_moderated)
        or (not retryable and NO_MONEY.search(reason) is not None)
    )
    return NotBilledError(
        f"HTTP {status} {said}".strip(),
        status=status,
        retry_after_seconds=_retry_after(headers.get("Retry-After")),
        is_permanent=not retryable or is_hopeless,
        is_hopeless=is_hopeless,
    )


def _error_in(text: str) -> Mapping[str, Any]:
    """The error object of a response's body; empty where there is none."""
    body = _object_in(text)
    error = body.get("error", body)
    if isinstance(error, str):  # Ollama's form
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _object_in(text: str) -> Mapping[str, Any]:
    """The JSON object that a response's body is; empty where it is none."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _status_of(error: Any) -> int:
    """The HTTP status that an error names as its code; 500 where it names none."""
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if re.fullmatch(r"[45]\d\d", code) else 500


def _retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def causes(error: BaseException) -> list[BaseException]:
    """An error and those that led to it, the first one last."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def root_cause(error: BaseException, key: str) -> str:
    """The first of the errors that led to this one, in words; no ``key``, no URL's login."""
    # A timeout is a cancellation within, which tells nobody anything.
    told = [each for each in causes(error) if not isinstance(each, asyncio.CancelledError)]
    last = told[-1] if told else error
    said = LOGIN.sub("://", f"{type(last).__name__} {last}".strip())
    return without_key(said, key)
