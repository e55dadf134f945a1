"""What became of one request, against a real HTTP server that answers as it is told."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._client import ChatClient, NotBilledError, OutcomeUnknownError
from alkd_ray.llm_teachers._completions import Answer, read_answer
from alkd_ray.types import Usage

GOOD = {
    "choices": [{"message": {"content": "[1, 2]"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}


async def _respond(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    told = json.loads(body["messages"][0]["content"])
    if told.get("drop"):
        assert request.transport is not None
        request.transport.close()
    await asyncio.sleep(told.get("wait", 0))
    return web.Response(
        status=told.get("status", 200),
        text=told.get("text", json.dumps(GOOD)),
        headers=told.get("headers", {}),
        content_type="application/json",
    )


def ask(told: dict, timeout_seconds: float = 5.0) -> Answer:
    async def main() -> Answer:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", _respond)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        endpoint = Endpoint(url, url, "m", timeout_seconds=timeout_seconds)
        try:
            async with ChatClient(endpoint) as client:
                message = {"role": "user", "content": json.dumps(told)}
                return await client.ask({"model": "m", "messages": [message]})
        finally:
            await runner.cleanup()

    return asyncio.run(main())


def error_body(code: str) -> str:
    said = "no" if code.isidentifier() else code
    return json.dumps({"error": {"message": said, "type": code, "code": code}})


def test_an_answer_is_kept_as_received_and_read() -> None:
    answer = ask({})
    assert answer.raw == json.dumps(GOOD)
    assert (answer.text, answer.finish_reason) == ("[1, 2]", "stop")
    assert answer.usage == Usage(9, 3, 4)


@pytest.mark.parametrize("status", [408, 502, 504, 520, 522, 524])
def test_a_gateway_that_gave_up_may_have_been_billed(status: int) -> None:
    with pytest.raises(OutcomeUnknownError, match=str(status)):
        ask({"status": status})


@pytest.mark.parametrize("told", [{"drop": True}, {"wait": 1.5}], ids=["dropped", "too slow"])
def test_no_answer_after_sending_may_have_been_billed(told: dict) -> None:
    with pytest.raises(OutcomeUnknownError):
        ask(told, timeout_seconds=0.5)


@pytest.mark.parametrize(
    ("status", "code", "is_permanent", "is_hopeless"),
    [
        (400, "bad", True, False),
        (400, "Your credit balance is too low to access the API.", True, True),
        (401, "invalid_api_key", True, True),
        (402, "invalid_request_error", True, True),
        (403, "forbidden", True, True),
        (403, "Your input was flagged for harassment.", True, False),
        (404, "model_not_found", True, True),
        (429, "rate_limit_exceeded", False, False),
        (429, "insufficient_quota", True, True),
        (500, "server_error", False, False),
        (503, "overloaded", False, False),
        (503, "No account balance is known yet.", False, False),
    ],
)
def test_refusals_are_not_billed(
    status: int, code: str, is_permanent: bool, is_hopeless: bool
) -> None:
    with pytest.raises(NotBilledError) as raised:
        ask({"status": status, "text": error_body(code)})
    error = raised.value
    assert (error.status, error.is_permanent, error.is_hopeless) == (
        status,
        is_permanent,
        is_hopeless,
    )


@pytest.mark.parametrize(
    ("error", "status", "is_hopeless"),
    [
        ({"message": "Provider is overloaded", "code": 503}, 503, False),
        ({"message": "Slow down", "code": "429"}, 429, False),
        ({"message": "No such model", "code": 404}, 404, True),
        ({"message": "Used up", "code": "insufficient_quota"}, 500, True),
        ("something went wrong", 500, False),
    ],
)
def test_an_error_that_is_called_a_success_is_an_error(
    error: object, status: int, is_hopeless: bool
) -> None:
    said = error["message"] if isinstance(error, dict) else error
    with pytest.raises(NotBilledError, match=str(said)) as raised:
        ask({"text": json.dumps({"error": error})})
    assert (raised.value.status, raised.value.is_hopeless) == (status, is_hopeless)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html>\n  Back  soon </html>", "HTTP 200 without a completion: <html> Back soon </html>"),
        ("", "HTTP 200 without a completion"),
        ('{"object": "list"}', "without a completion: .*list"),
        ('{"choices": null, "usage": {"prompt_tokens": 9}}', "without a completion"),
        (json.dumps(GOOD | {"error": {"message": "broke off"}}), "without a completion"),
        ('{"error": {"message": "Bad provider", "code": 502}}', "HTTP 502 from a gateway"),
    ],
)
def test_a_success_without_a_completion_may_have_been_billed(text: str, said: str) -> None:
    with pytest.raises(OutcomeUnknownError, match=said):
        ask({"text": text})


def test_no_error_beside_an_answer_is_no_error() -> None:
    assert ask({"text": json.dumps(GOOD | {"error": None})}).text == "[1, 2]"


@pytest.mark.parametrize(
    ("total", "usage"),
    [
        (12, Usage(9, 3)),
        (3_012, Usage(9, 3_003)),  # of which 3,000 were thought and are in no other count
        (5, Usage(9, 3)),
        ("3012", Usage(9, 3)),
        (10**12, None),
    ],
)
def test_what_only_the_total_counts_was_written(total: object, usage: Usage | None) -> None:
    counts = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": total}
    assert read_answer(json.dumps({"choices": [], "usage": counts})).usage == usage


def test_retry_after_is_a_number_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    cases = [("7", 7, 7), (later, 40, 60), ("soon", None, None), ("inf", None, None)]
    for header, least, most in cases:
        with pytest.raises(NotBilledError) as raised:
            ask({"status": 429, "headers": {"Retry-After": header}})
        found = raised.value.retry_after_seconds
        assert found is None if least is None else least <= found <= most  # type: ignore[operator]


def test_nobody_there_is_not_billed() -> None:
    async def main() -> None:
        async with ChatClient(Endpoint("x", "http://127.0.0.1:9/v1", "m")) as client:
            await client.ask({"messages": []})

    with pytest.raises(NotBilledError, match="no connection"):
        asyncio.run(main())


@pytest.mark.parametrize(
    "raw",
    ["", "not json", "[]", "{}", '{"choices": [null]}', '{"choices": [{"message": null}]}',
     '{"usage": {"prompt_tokens": -1, "completion_tokens": 2}}',
     '{"usage": {"prompt_tokens": 1e99, "completion_tokens": 2}}'],
)  # fmt: skip
def test_damaged_bodies_are_read_as_answers_without_text_or_usage(raw: str) -> None:
    answer = read_answer(raw)
    assert (answer.raw, answer.text, answer.usage) == (raw, "", None)
