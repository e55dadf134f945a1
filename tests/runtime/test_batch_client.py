"""The client of batch APIs against the simulated endpoint."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.llm_teachers._batch_results import BatchLine, BatchStatus
from alkd_ray.llm_teachers._behaviour import MODEL
from alkd_ray.llm_teachers._client import NotBilledError, OutcomeUnknownError
from alkd_ray.llm_teachers._completions import read_answer
from tests.simulated_batches import file_of
from tests.simulated_server import PATIENCE_SECONDS, Server, serving


def client_of(server: Server, **fields: Any) -> BatchClient:
    url = f"http://{server.host}:{server.port}/v1"
    return BatchClient(Endpoint(url, url, MODEL, **fields))


async def wait(
    client: BatchClient, batch_id: str, until: Callable[[BatchStatus], bool]
) -> BatchStatus:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            status = await client.status(batch_id)
            if until(status):
                return status
            await asyncio.sleep(0.02)


async def over(client: BatchClient, batch_id: str) -> BatchStatus:
    return await wait(client, batch_id, lambda status: status.is_over)


async def all_lines(client: BatchClient, file_id: str) -> list[BatchLine]:
    return [line async for line in client.lines(file_id)]


def test_two_thousand_lines() -> None:
    async def main(server: Server) -> None:
        async with client_of(server) as client:
            file_id = await client.upload(file_of(2_000), "input.jsonl")
            started = await client.create(file_id, "all of them")
            assert started.state == "validating"
            assert not started.is_over
            status = await over(client, started.id)
            assert (status.state, status.error_file_id, status.problems) == ("completed", "", ())
            assert (status.total, status.completed, status.failed) == (2_000, 2_000, 0)
            lines = await all_lines(client, status.output_file_id)
            assert [line.custom_id for line in lines] == [f"row {n}" for n in range(2_000)]
            assert {(line.status_code, line.error) for line in lines} == {(200, "")}
            answers = [read_answer(line.raw) for line in lines]
            usages = [answer.usage for answer in answers if answer.usage is not None]
            bill = server.bill()
            assert bill["requests"] == len(usages) == 2_000
            assert bill["completion_tokens"] == sum(usage.completion_tokens for usage in usages)
            assert bill["prompt_tokens"] == sum(usage.prompt_tokens for usage in usages)
            live = server.rank(1_999)
            assert answers[1_999].text == live.text
            for name in (file_id, status.output_file_id):
                await client.delete(name)
                await client.delete(name)  # once more is no error
            assert server.call("GET", "/v1/files").body["data"] == []

    with serving(noise=2.0) as server:
        asyncio.run(main(server))


def test_lines_that_failed_say_why() -> None:
    async def main(server: Server) -> None:
        async with client_of(server) as client:
            started = await client.create(await client.upload(file_of(40), "x"), "some fail")
            status = await over(client, started.id)
            assert status.state == "completed"
            failed = await all_lines(client, status.error_file_id)
            assert (status.completed, status.failed) == (40 - len(failed), len(failed))
            assert {line.status_code for line in failed} == {400, 500}
            for line in failed:
                assert line.error.startswith(f"HTTP {line.status_code} ")
                assert json.loads(line.raw)["error"]["message"] in line.error

    with serving(batch_line_error_share=0.3, batch_line_refused_share=0.3) as server:
        asyncio.run(main(server))


def test_a_batch_that_failed_says_why() -> None:
    async def main(server: Server) -> None:
        async with client_of(server) as client:
            content = file_of(1) + file_of(1) + b"{"
            status = await over(
                client, (await client.create(await client.upload(content, "x"), "")).id
            )
            assert (status.state, status.output_file_id) == ("failed", "")
            twice, broken = status.problems
            assert twice.startswith("line 2: duplicate_custom_id: ")
            assert broken.startswith("line 3: invalid_json_line: ")

    with serving() as server:
        asyncio.run(main(server))


def test_cancelled_and_expired_batches() -> None:
    async def main(server: Server, cancels: bool) -> None:
        async with client_of(server) as client:
            started = await client.create(await client.upload(file_of(200), "x"), "long")
            if cancels:
                await wait(client, started.id, lambda status: status.completed >= 2)
                assert (await client.cancel(started.id)).state == "cancelling"
            status = await over(client, started.id)
            end = "cancelled" if cancels else "expired"
            assert status.state == end
            left = await all_lines(client, status.error_file_id)
            done = await all_lines(client, status.output_file_id)
            assert (len(done), len(done) + len(left)) == (server.bill()["requests"], 200)
            assert {line.error.split(":")[0] for line in left} == {f"batch_{end}"}
            assert {(line.raw, line.status_code) for line in left} == {("", 0)}
            assert await client.cancel(started.id) == status  # over is over

    with serving(batch_seconds=20) as server:
        asyncio.run(main(server, True))
    with serving(batch_seconds=20, batch_expire_after_seconds=3) as server:
        asyncio.run(main(server, False))


def test_a_batch_that_is_completed_is_left_alone_by_cancel() -> None:
    async def main(server: Server) -> None:
        async with client_of(server) as client:
            started = await client.create(await client.upload(file_of(1), "x"), "short")
            done = await over(client, started.id)
            assert await client.cancel(started.id) == done
            assert done.state == "completed"
            with pytest.raises(NotBilledError) as caught:
                await client.cancel("batch_nothing")
            assert caught.value.status == 404

    with serving() as server:
        asyncio.run(main(server))


def test_a_batch_whose_creation_was_not_answered_is_found_again() -> None:
    async def main(server: Server) -> None:
        since = time.time() - 60
        async with client_of(server) as client:
            file_id = await client.upload(file_of(3), "x")
            assert await client.find("lost", since) is None
            with pytest.raises(OutcomeUnknownError, match="without a whole answer"):
                await client.create(file_id, "lost")
            found = await client.find("lost", since)
            assert found is not None
            assert (await over(client, found.id)).completed == 3
            assert await client.find("another", since) is None

    with serving(batch_drop_share=1) as server:
        asyncio.run(main(server))


def test_a_batch_is_found_on_a_later_page_unless_it_is_too_old() -> None:
    async def main(server: Server) -> None:
        now = time.time()
        async with client_of(server) as client:
            file_id = await client.upload(file_of(1), "x")
            wanted = await client.create(file_id, "the first")
            for number in range(100):
                await client.create(file_id, f"later {number}")
            last = await client.create(file_id, "later 0")
            found = await client.find("the first", now - 60)
            assert found is not None
            assert found.id == wanted.id
            assert await client.find("the first", now + 3600) is None  # ends with the first page
            newest = await client.find("later 0", now - 60)
            assert newest is not None
            assert newest.id == last.id

    with serving() as server:
        asyncio.run(main(server))


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIMULATED_KEY", "open sesame")
    (tmp_path / "key").write_text("open sesame\n")

    async def main(server: Server) -> None:
        for fields in ({"api_key_env": "SIMULATED_KEY"}, {"api_key_file": str(tmp_path / "key")}):
            async with client_of(server, **fields) as client:
                started = await client.create(await client.upload(file_of(1), "x"), "with a key")
                status = await over(client, started.id)
                assert len(await all_lines(client, status.output_file_id)) == 1
        async with client_of(server) as client:
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: client.upload(b"", "x"),
                lambda: client.create("x", "x"),
                lambda: client.status("x"),
                lambda: client.find("x", 0),
                lambda: client.cancel("x"),
                lambda: client.delete("x"),
                lambda: all_lines(client, "x"),
            ]
            for call in calls:
                with pytest.raises(NotBilledError) as caught:
                    await call()
                assert (caught.value.status, caught.value.is_hopeless) == (401, True)
                assert "sesame" not in str(caught.value)

    with serving(api_key_env="SIMULATED_KEY") as server:
        asyncio.run(main(server))


def test_what_an_endpoint_without_batches_or_without_a_server_says() -> None:
    async def main(server: Server, status: int) -> None:
        async with client_of(server) as client:
            for call in (client.upload(b"", "x"), client.create("x", "x"), client.status("x")):
                with pytest.raises(NotBilledError) as caught:
                    await call
                assert caught.value.status == status

    with serving(batches=False) as server:
        asyncio.run(main(server, 404))
    asyncio.run(main(server, 0))  # nobody listens there any more


def test_a_reader_may_stop_early() -> None:
    async def main(server: Server) -> None:
        async with client_of(server) as client:
            started = await client.create(await client.upload(file_of(300), "x"), "read in part")
            status = await over(client, started.id)
            for _ in range(20):  # more often than there are connections
                async with aclosing(client.lines(status.output_file_id)) as lines:
                    assert (await anext(lines)).custom_id == "row 0"

    with serving() as server:
        asyncio.run(main(server))


def test_a_line_ends_at_a_newline_and_nowhere_else() -> None:
    """JSON texts may hold characters that Python's ``splitlines`` takes for ends of lines."""

    async def main(server: Server) -> None:
        async with client_of(server) as client:
            prefix = "one\u2028two\u2029three\u0085four\u000bfive\u001csix\r\n"
            started = await client.create(await client.upload(file_of(2, prefix), "x"), "strange")
            status = await over(client, started.id)
            lines = await all_lines(client, status.output_file_id)
            assert [line.custom_id for line in lines] == [f"{prefix} 0", f"{prefix} 1"]
            assert all(line.raw for line in lines)

    with serving() as server:
        asyncio.run(main(server))
