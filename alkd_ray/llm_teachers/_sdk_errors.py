"""The SDK's errors in the terms of :mod:`alkd_ray.llm_teachers._client`."""

from __future__ import annotations

import httpx2
import openai

from alkd_ray.llm_teachers._client import NEVER_SENT, NotBilledError, causes, refusal


def refused(error: openai.APIStatusError, key: str) -> NotBilledError:
    """What an error status means, for a request that was not billed; ``key`` is not shown."""
    return refusal(error.status_code, error.response.text, error.response.headers, key)


def never_sent(error: BaseException) -> bool:
    """Whether no byte of the request can have reached the endpoint.

    The SDK's transport reports a connection that the server closed as a failed one, so the
    answer is in the cause, aiohttp's own error.
    """
    kinds = (*NEVER_SENT, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
    return any(isinstance(cause, kinds) for cause in causes(error))
