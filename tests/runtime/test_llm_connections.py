"""What became of one request, against connections that end, stall, redirect or cannot be trusted.

The servers speak raw HTTP, so that each byte, and each request that arrives, is known.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from yarl import URL

from alkd_ray import __version__
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.llm_teachers._client import (
    ChatClient,
    NotBilledError,
    OutcomeUnknownError,
    api_key,
    headers_of,
    proxy_for,
    root_cause,
)

ANSWER = json.dumps({"choices": [{"message": {"content": "héllo"}, "finish_reason": "stop"}]})
BODY = {"messages": [{"role": "user", "content": "é"}]}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(ANSWER.encode()) + ANSWER.encode()

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def talking(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that treats each connection as ``talk`` says, and then closes it."""
    talks: set[asyncio.Task[None] | None] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        try:
            await talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talks - {None}:
            task.cancel()  # type: ignore[union-attr]


async def request_of(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Head and body of the next request; IncompleteReadError when the client has closed."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lengths = [line[15:] for line in head.lower().split("\r\n") if line[:15] == "content-length:"]
    return head, await reader.readexactly(int(lengths[0]) if lengths else 0)


def endpoint_at(url: str, timeout_seconds: float = 20.0) -> Endpoint:
    return Endpoint(url, url, "m", timeout_seconds=timeout_seconds)


def outcome_of(talk: Talk, timeout_seconds: float = 20.0, scheme: str = "http") -> str:
    """The text of the answer to one request; raises what the client does."""

    async def main() -> str:
        async with talking(talk) as port:
            endpoint = endpoint_at(f"{scheme}://127.0.0.1:{port}/v1", timeout_seconds)
            async with ChatClient(endpoint) as client:
                return (await client.ask(BODY)).text

    return asyncio.run(main())


def test_a_request_is_one_post_of_its_json_without_a_key() -> None:
    seen: list[tuple[str, bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(WHOLE)
        await writer.drain()

    assert outcome_of(talk) == "héllo"
    [(head, body)] = seen
    assert body == '{"messages":[{"role":"user","content":"é"}]}'.encode()
    lines = head.lower().split("\r\n")
    assert lines[0] == "post /v1/chat/completions http/1.1"
    assert "content-type: application/json" in lines
    assert f"user-agent: alkd_ray/{__version__}" in lines
    assert not [line for line in lines if line.startswith(("authorization", "cookie"))]


def test_a_connection_that_ended_between_two_requests_is_replaced() -> None:
    async def main() -> list[str]:
        noticed = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request_of(reader)
            writer.write(WHOLE)
            writer.write_eof()
            assert await reader.read() == b""  # the client has closed its side as well
            noticed.set()

        async with (
            talking(talk) as port,
            ChatClient(endpoint_at(f"http://127.0.0.1:{port}/v1")) as client,
        ):
            first = (await client.ask(BODY)).text
            await noticed.wait()
            return [first, (await client.ask(BODY)).text]

    assert asyncio.run(main()) == ["héllo", "héllo"]


def test_a_request_that_was_read_and_dropped_is_never_sent_again() -> None:
    async def main() -> list[int]:
        arrived: list[int] = []  # requests by connection

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.append(0)
            mine = len(arrived) - 1
            while True:
                await request_of(reader)
                arrived[mine] += 1
                if arrived[mine] == 2:
                    return
                writer.write(WHOLE)

        async with (
            talking(talk) as port,
            ChatClient(endpoint_at(f"http://127.0.0.1:{port}/v1")) as client,
        ):
            await client.ask(BODY)
            with pytest.raises(OutcomeUnknownError, match="without a whole answer"):
                await client.ask(BODY)  # on the same connection
            await client.ask(BODY)
        return arrived

    assert asyncio.run(main()) == [2, 1]


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 2", HEAD, WHOLE[:-9], HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{\"c"],
    ids=["nothing", "half a head", "no body", "half a body", "half a chunk"],
)  # fmt: skip
def test_an_answer_that_breaks_off_or_stalls_may_have_been_billed(sent: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(sent)
        await writer.drain()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)
        await reader.read()

    with pytest.raises(OutcomeUnknownError, match="without a whole answer"):
        outcome_of(talk)
    with pytest.raises(OutcomeUnknownError, match=r"no whole answer within 0\.3 s"):
        outcome_of(stall, timeout_seconds=0.3)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_ends_the_pass(status: int) -> None:
    seen: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await request_of(reader))[0].split()[1])
        head = f"HTTP/1.1 {status} X\r\nLocation: /v2/elsewhere\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()

    with pytest.raises(NotBilledError, match=f"HTTP {status} .*moved to /v2/elsewhere") as raised:
        outcome_of(talk)
    assert raised.value.is_hopeless
    assert seen == ["/v1/chat/completions"]


def test_a_certificate_that_nobody_signed_is_named_and_nothing_is_sent(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]
    words += ["/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words, *files], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    received: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1))

    async def main() -> None:
        async with (
            talking(talk, tls) as port,
            ChatClient(endpoint_at(f"https://127.0.0.1:{port}/v1")) as client,
        ):
            await client.ask(BODY)

    with pytest.raises(NotBilledError, match=r"certificate verify failed: self.signed") as raised:
        asyncio.run(main())
    assert raised.value.status == 0
    assert b"".join(received) == b""


def test_a_connection_that_is_not_made_in_time_was_not_used() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # says nothing to the client's greeting

    with pytest.raises(NotBilledError, match=r"no connection to https.*[Tt]imeout"):
        outcome_of(talk, timeout_seconds=0.6, scheme="https")


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await request_of(reader)
        seen.append(head)
        refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        writer.write(refusal if head.startswith("CONNECT") else WHOLE)
        await writer.drain()

    async def ask(url: str) -> str:
        async with ChatClient(endpoint_at(url)) as client:
            return (await client.ask(BODY)).text

    async def main() -> str:
        async with talking(talk) as port:
            monkeypatch.setenv("http_proxy", f"me:secret@127.0.0.1:{port}")
            monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{port}")
            monkeypatch.delenv("no_proxy", raising=False)
            with pytest.raises(NotBilledError, match="no connection to https://there") as refused:
                await ask("https://there.invalid/v1")
            assert "secret" not in str(refused.value)
            async with BatchClient(endpoint_at("https://there.invalid/v1")) as client:
                with pytest.raises(
                    NotBilledError, match="no connection to https://there"
                ) as refused:
                    await client.upload(b"{}\n", "batch.jsonl")
            assert "secret" not in str(refused.value)
            return await ask("http://there.invalid/v1")

    assert asyncio.run(main()) == "héllo"
    tunnel, _, plain = seen
    assert tunnel.startswith("CONNECT there.invalid:443 ")
    assert plain.startswith("POST http://there.invalid/v1/chat/completions ")
    for head in (tunnel, plain):
        assert "Proxy-Authorization: Basic bWU6c2VjcmV0" in head
    for here in ("http://localhost/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1"):
        assert proxy_for(URL(here)) is None
    monkeypatch.setenv("no_proxy", "there.invalid")
    assert proxy_for(URL("http://there.invalid/v1")) is None


def test_an_error_is_told_without_the_login_of_an_address() -> None:
    error = OSError("407 from http://me:se%40cret@proxy:80/ for https://there/v1?to=a@b")
    assert root_cause(error, "") == "OSError 407 from http://proxy:80/ for https://there/v1?to=a@b"


def test_a_proxy_that_cannot_be_used_is_an_error_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    # No header can hold a name with a colon.
    for proxy in ("socks5://me:secret@127.0.0.1:9", "http://m%3Ae:secret@127.0.0.1:9"):
        monkeypatch.setenv("all_proxy", proxy)
        with pytest.raises(InputError, match="no http or https address") as raised:
            ChatClient(endpoint_at("http://there.invalid/v1"))
        assert "secret" not in str(raised.value)


def test_names_of_an_account_go_to_openai_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project")
    monkeypatch.setenv("TEST_KEY", " key\n")
    for url, named in (
        ("https://api.openai.com/v1", ["org", "project"]),
        ("https://openai.com.evil.example/v1", [None, None]),
        ("https://notopenai.com/v1", [None, None]),
    ):
        endpoint = Endpoint(url, url, "m", api_key_env="TEST_KEY")
        headers = headers_of(endpoint, api_key(endpoint))
        assert headers["Authorization"] == "Bearer key"
        assert [headers.get(f"OpenAI-{name}") for name in ("Organization", "Project")] == named


def test_a_key_that_no_header_can_hold_is_an_error_that_does_not_tell_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xffsecret")
    monkeypatch.setenv("TEST_KEY", "one\nsecret")
    for given in ({"api_key_env": "TEST_KEY"}, {"api_key_file": str(file)}):
        with pytest.raises(InputError, match="characters that no key has") as raised:
            api_key(Endpoint("x", "http://x/v1", "m", **given))
        assert "secret" not in str(raised.value)


def test_an_impossible_address_is_an_error_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match=r"base_url: http://host:99999/v1"):
        ChatClient(endpoint_at("http://host:99999/v1"))
