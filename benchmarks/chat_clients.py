"""Clients without books that ask one question after another, for benchmarks to compare with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import httpx2
import openai

from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._client import ChatClient

Ask = Callable[[Any], Awaitable[Any]]
Client = Callable[[str, int], AbstractAsyncContextManager[Ask]]


def ask_all(client: Client, url: str, sent: Sequence[Any], in_flight: int) -> None:
    """Sends everything in ``sent`` to the endpoint at ``url``, ``in_flight`` at a time."""
    left = iter(sent)

    async def lane(ask: Ask) -> None:
        for each in left:
            await ask(each)

    async def lanes() -> None:
        async with client(url, in_flight) as ask:
            await asyncio.gather(*(lane(ask) for _ in range(in_flight)))

    asyncio.run(lanes())


@asynccontextmanager
async def bare(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """Ready bytes and unread answers over aiohttp: the ceiling."""
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(body: bytes) -> None:
            async with session.post(f"{url}/chat/completions", data=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

        yield ask


@asynccontextmanager
async def by_hand(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """JSON in and out over aiohttp, as one writes it by hand."""
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(body: dict[str, Any]) -> None:
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"]

        yield ask


@asynccontextmanager
async def by_sdk(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """``openai.AsyncOpenAI`` over aiohttp, its retries off; the answer is not made a model."""
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with openai.AsyncOpenAI(
        api_key="none",
        base_url=url,
        max_retries=0,
        http_client=openai.DefaultAioHttpClient(limits=limits),
    ) as sdk:

        async def ask(body: dict[str, Any]) -> None:
            answer = await sdk.post("/chat/completions", body=body, cast_to=httpx2.Response)
            assert answer.json()["choices"][0]["message"]["content"]

        yield ask


@asynccontextmanager
async def by_own(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """The annotator's own client, without the rest of it."""
    async with ChatClient(Endpoint(url, url, ""), in_flight) as client:

        async def ask(body: dict[str, Any]) -> None:
            assert (await client.ask(body)).text

        yield ask


CLIENTS: dict[str, Client] = {"bare": bare, "plain": by_hand, "sdk": by_sdk, "client": by_own}
