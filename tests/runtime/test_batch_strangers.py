"""The client of batch APIs against servers that fail, say little, or say something strange."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.llm_teachers._batch_results import BatchLine, BatchStatus, read_line, read_status
from alkd_ray.llm_teachers._client import NotBilledError, OutcomeUnknownError
from tests.simulated_server import PATIENCE_SECONDS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def against(handler: Handler, use: Callable[[BatchClient], Awaitable[None]]) -> None:
    """Runs ``use`` against a server that leaves each request to ``handler``."""

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            async with BatchClient(Endpoint(url, url, "m", timeout_seconds=5)) as client:
                await use(client)
        finally:
            await runner.cleanup()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (400, '{"error": {"message": "no"}}', NotBilledError),
        (429, "slow down", NotBilledError),
        (500, "oops", OutcomeUnknownError),
        (503, "oops", OutcomeUnknownError),
        (504, "gateway", OutcomeUnknownError),
        (408, "gateway", OutcomeUnknownError),
        (200, "not json", OutcomeUnknownError),
        (200, "[]", OutcomeUnknownError),
        (200, '{"status": "validating"}', OutcomeUnknownError),
    ],
)
def test_whether_there_can_be_a_batch(status: int, text: str, error: type[Exception]) -> None:
    sent = []

    async def handler(request: web.Request) -> web.Response:
        sent.append((request.method, request.path, await request.json()))
        return web.Response(status=status, text=text)

    async def use(client: BatchClient) -> None:
        with pytest.raises(error) as caught:
            await client.create("file-1", "my label")
        assert caught.type is error

    against(handler, use)
    body = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions",
            "completion_window": "24h", "metadata": {"alkd": "my label"}}  # fmt: skip
    assert sent == [("POST", "/v1/batches", body)]  # once: nobody retries


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_what_costs_nothing_may_be_done_again(status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=status, headers={"Retry-After": "3"})

    async def use(client: BatchClient) -> None:
        for call in (client.upload(b"{}", "x"), client.status("x"), client.find("x", 0),
                     client.cancel("x"), client.delete("x"), anext(client.lines("x"))):  # fmt: skip
            with pytest.raises(NotBilledError) as caught:
                await call
            assert caught.value.status == status
            assert not caught.value.is_permanent

    against(handler, use)


def test_answers_that_are_not_what_was_asked_for() -> None:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="<html>hello</html>")

    async def use(client: BatchClient) -> None:
        for call in (client.upload(b"{}", "x"), client.status("x"), client.find("x", 0)):
            with pytest.raises(NotBilledError, match="hello"):
                await call

    against(handler, use)


def test_an_endpoint_that_does_not_page_is_not_asked_for_ever() -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.query.get("after"))
        return web.json_response({"data": [{"id": "b1"}, None, {"id": "b2", "metadata": None}]})

    async def use(client: BatchClient) -> None:
        assert await client.find("x", 0) is None

    against(handler, use)
    assert asked == [None, "b2"]


def test_lines_come_while_the_file_is_still_being_sent() -> None:
    goes_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"custom_id": "a"}\n{"cust')
        await goes_on.wait()
        await response.write(b'om_id": "b"}\n\n{"custom_id": "c"}')
        return response

    async def use(client: BatchClient) -> None:
        seen = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in client.lines("x"):
                seen.append(line.custom_id)
                goes_on.set()
        assert seen == ["a", "b", "c"]

    against(handler, use)


@pytest.mark.parametrize("told_length", [True, False])
def test_a_file_that_breaks_off_is_an_error_after_its_good_lines(told_length: bool) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if told_length:
            response.content_length = 10_000
        await response.prepare(request)
        await response.write(b'{"custom_id": "a"}\n{"custom')
        assert request.transport is not None
        request.transport.close()
        return response

    async def use(client: BatchClient) -> None:
        seen = []

        async def read() -> None:
            async for line in client.lines("x"):
                seen.append(line.custom_id)

        with pytest.raises(NotBilledError, match="file of results"):
            await read()
        assert seen == ["a"]

    against(handler, use)


def status_of(**fields: Any) -> BatchStatus:
    status = read_status({"id": "b", **fields})
    assert status is not None
    return status


def test_a_batch_of_an_endpoint_that_says_little() -> None:
    assert status_of(status="completed") == BatchStatus("b", "completed", "", "", 0, 0, 0, ())
    strange = status_of(status="running", request_counts=[], errors=7, output_file_id=None, more=1)
    assert (strange.state, strange.is_over, strange.total) == ("in_progress", False, 0)
    assert "running" in strange.problems[0]
    assert status_of(status="failed", errors={"data": None}).problems == ()
    assert status_of(status="failed", errors="too bad").problems == ("too bad",)
    told = [{"message": "m"}, {"code": "c", "line": 3}, None, {}]
    assert status_of(status="failed", errors={"data": told}).problems == ("m", "line 3: c")
    assert status_of(status="expired", request_counts={"total": -1, "failed": "2"}).failed == 0
    assert read_status({"status": "completed"}) is None


BODY = '{"b":[1,"\\u00e9"],"a":null}'
CANONICAL = '{"a":null,"b":[1,"\\u00e9"]}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"custom_id":"i","response":{"status_code":200,"body":' + BODY + '},"error":null,"x":1}',
         BatchLine("i", CANONICAL, 200, "")),
        ('{"custom_id":"i","response":{"body":' + BODY + "}}", BatchLine("i", CANONICAL, 200, "")),
        ('{"custom_id":"i","response":{"status_code":200,"body":{}},"error":{}}',
         BatchLine("i", "{}", 200, "")),
        ('{"custom_id":"i","response":null,"error":{"code":"batch_expired","message":"Too  late"}}',
         BatchLine("i", "", 0, "batch_expired: Too late")),
        ('{"custom_id":"i","response":{"status_code":400,"body":{"error":{"message":"No."}}}}',
         BatchLine("i", '{"error":{"message":"No."}}', 400, "HTTP 400 No.")),
        ('{"custom_id":"i","response":{"status_code":500}}', BatchLine("i", "", 500, "HTTP 500")),
        ('{"custom_id":"i","response":{"status_code":200}}',
         BatchLine("i", "", 200, "the response has no body")),
        ('{"custom_id":"i"}', BatchLine("i", "", 0, "there is no response")),
        ('{"custom_id":"i","response":7,"error":"bad"}', BatchLine("i", "", 0, "bad")),
    ],
)  # fmt: skip
def test_lines_as_endpoints_write_them(text: str, expected: BatchLine) -> None:
    assert read_line(text.encode()) == expected


@pytest.mark.parametrize(
    "line", [b"", b"{", b"\xff", b"[]", b"{}", b'{"custom_id": 7}', b"[" * 99_999]
)
def test_lines_that_nobody_can_assign(line: bytes) -> None:
    read = read_line(line)
    assert (read.custom_id, read.raw, read.status_code) == ("", "", 0)
    assert "file of results" in read.error


def test_half_a_character_can_be_stored() -> None:
    read = read_line(b'{"custom_id":"i","response":{"status_code":200,"body":"\\ud800"}}')
    assert json.loads(read.raw.encode()) == "\ud800"
