"""No key in any file, output or command line of a run, whatever the endpoint does with it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import secrets
import sqlite3
import ssl
import subprocess
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.llm_teachers._batch_client import BatchClient
from alkd_ray.llm_teachers._client import ChatClient, NotBilledError, OutcomeUnknownError
from tests.e2e.conftest import TINY, CommandLine

KEY = "sk-" + secrets.token_hex(24)
WRONG_KEY = "sk-" + secrets.token_hex(24)
FILE_KEY = "sk-" + secrets.token_hex(24)
PART = 16  # characters: a text that was cut may hold the beginning of a key, or its end
RATES = "{input_usd_per_million: 0.15, output_usd_per_million: 0.6}"
pytestmark = pytest.mark.timeout(1800)  # processes take long to start on a busy machine
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def needles(key: str) -> list[bytes]:
    """What betrays ``key``: its beginning, its end, and its middle in base64."""
    shifted = [base64.b64encode(b" " * by + key.encode())[8:-8] for by in range(3)]
    return [key[:PART].encode(), key[-PART:].encode(), *shifted]


NEEDLES = [needle for key in (KEY, WRONG_KEY, FILE_KEY) for needle in needles(key)]


def is_found(content: bytes) -> bool:
    return any(needle in content for needle in NEEDLES)


def contents(file: Path) -> Iterator[bytes]:
    """The file's bytes, and what it holds packed: gzip, zip, Parquet's columns, SQLite's rows."""
    yield (raw := file.read_bytes())
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            yield from (packed.read(name) for name in packed.namelist())
    if raw[:4] == b"PAR1":
        yield repr(pq.read_table(file).to_pydict()).encode()
    if raw[:15] == b"SQLite format 3":  # a long row lies on several pages, and may be cut anywhere
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            yield "\n".join(database.iterdump()).encode(errors="replace")


def places(*folders: Path) -> list[str]:
    """Files below the folders that hold a key."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files if any(map(is_found, contents(file)))]


@contextmanager
def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """An HTTP server in a thread; gives its address."""

    async def start() -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        runners.append(runner)
        return f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}/v1"

    runners: list[web.AppRunner] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    finally:
        for runner in runners:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def repeating(request: web.Request) -> web.Response:
    """An endpoint that says the key again: in its complaints, hints and rankings."""
    said = request.headers.get("Authorization", "")
    if WRONG_KEY in said:
        problem = {"message": f"Incorrect API key provided: {said}", "code": "invalid_api_key"}
        return web.json_response({"error": problem}, status=401)
    prompt = (await request.json())["messages"][-1]["content"]
    if "<candidates>" in prompt and zlib.crc32(prompt.encode()) % 3 == 0:
        # So long before it that a reason cut to 300 characters holds the key's beginning.
        problem = {"message": f"{'x' * (300 - PART - 9)} {said}", "code": "strange"}
        return web.json_response({"error": problem}, status=400)
    content = f"Later volumes come next, says {said}."
    if "<candidates>" in prompt:
        content = json.dumps({"ranking": list(range(1, 16)), "asked by": said})
    message = {"message": {"content": content, "role": "assistant"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 60}
    return web.json_response({"choices": [message], "usage": usage, "by": said})


@dataclass(frozen=True)
class Watched(CommandLine):
    """A command line whose children's arguments and outputs are kept."""

    folder: Path
    seen: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        own = {name: text for name, text in super().environment.items() if name != "RAY_ADDRESS"}
        keys = {"ALKD_TEST_KEY": KEY, "ALKD_WRONG_KEY": WRONG_KEY, "OPENAI_LOG": "debug"}
        return own | keys | {"RAY_TMPDIR": str(self.folder), "HOME": str(self.folder)}

    def __call__(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                self.command(*words), env=self.environment, stdout=out, stderr=err
            )
            while process.poll() is None:
                for other in psutil.process_iter(["cmdline"]):
                    self.seen.add(" ".join(other.info["cmdline"] or ()))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            texts = [file.seek(0) or file.read() for file in (out, err)]
        self.said.extend(texts)
        assert process.returncode == status, f"{words}: {process.returncode}\n{texts}"
        return subprocess.CompletedProcess(words, process.returncode, *texts)

    def llm(self, url: str, key: str, *words: str, status: int = 0) -> dict:
        """A run against the endpoint at ``url``; ``key`` says where its key is."""
        verb = [word for word in words if "=" not in word]
        options = f"{{base_url: '{url}', model: simulated-title-reader, rates: {RATES}, {key}}}"
        given = ["llm.teacher=openai-chat", f"llm.options={options}", *words[len(verb) :]]
        return json.loads(self(*verb, str(self.config), *given, "--json", status=status).stdout)


@dataclass(frozen=True)
class Ran:
    """A folder in which was run all that is told of here, and what each run ended with."""

    alkd: Watched
    records: dict[str, dict]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    key_file = tmp_path_factory.mktemp("keys") / "key"
    key_file.write_text(FILE_KEY + "\n")
    good, wrong = "api_key_env: ALKD_TEST_KEY", "api_key_env: ALKD_WRONG_KEY"
    buy = ("annotate", "run")
    alone = ("hints.enabled=false", "annotation.engine=local")
    batch = ("annotation.mode=batch", "annotation.batch_poll_seconds=0.1")
    new = "annotation.wanted=14"  # other questions than those that are answered already
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="alkd-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "tiny.yaml").write_text(TINY)
        alkd = Watched(folder / "home", folder / "tiny.yaml", folder)
        bill = str(folder / "bill.jsonl")
        serve = ["llm", "serve", "--bill", bill, "--api-key-env", "ALKD_TEST_KEY"]
        with listening(repeating) as repeats, _serving(alkd, serve) as demands:
            by_file = f"api_key_file: '{key_file}'"
            yield Ran(
                alkd,
                {
                    "ray": alkd.llm(demands, good, *buy, "annotation.actors=2"),
                    "batch": alkd.llm(demands, good, *buy, *alone, *batch),
                    "wrong": alkd.llm(demands, wrong, *buy, *alone, new, status=4),
                    "file": alkd.llm(repeats, by_file, *buy, *alone, status=3),
                    "refused": alkd.llm(repeats, wrong, *buy, *alone, new, status=4),
                    "repeated": alkd.llm(
                        repeats, good, "run", "tracking.trace_requests=true", status=3
                    ),
                },
            )


@contextmanager
def _serving(alkd: Watched, words: list[str]) -> Iterator[str]:
    server = subprocess.Popen(
        alkd.command(*words), env=alkd.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield next(word for word in server.stdout.readline().split() if word.startswith("http"))
    finally:
        server.terminate()
        server.communicate()


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "plain").write_text(f"x{KEY}")
    (tmp_path / "cut").write_text(KEY[:PART])
    (tmp_path / "base64").write_bytes(base64.b64encode(f"Bearer {KEY}".encode()))
    (tmp_path / "gz").write_bytes(gzip.compress(KEY.encode()))
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner", KEY * 9)
    pd.DataFrame({"raw": [KEY * 9] * 9}).to_parquet(tmp_path / "parquet", compression="zstd")
    with closing(sqlite3.connect(tmp_path / "sqlite")) as database, database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (?)", ("y" * 9999 + KEY,))
    (tmp_path / "other").write_text("sk-" + secrets.token_hex(24))
    found = {Path(name).name for name in places(tmp_path)}
    assert found == {"plain", "cut", "base64", "gz", "zip", "parquet", "sqlite"}


def test_the_runs_used_their_keys(ran: Ran) -> None:
    statuses = {name: record["status"] for name, record in ran.records.items()}
    assert statuses == {
        "ray": "complete", "batch": "complete", "wrong": "stopped", "file": "partial",
        "refused": "stopped", "repeated": "partial",
    }  # fmt: skip
    assert "HTTP 401" in ran.records["wrong"]["reason"]
    assert "Incorrect API key provided: Bearer [key]" in ran.records["refused"]["reason"]
    assert ran.records["repeated"]["tracking"]["uri"].startswith(f"sqlite:///{ran.alkd.home}")
    assert any("default_worker.py" in line or "_Annotator" in line for line in ran.alkd.seen)
    assert list(ran.alkd.folder.glob("ray/session_*/logs/raylet.out"))


def test_a_key_that_comes_back_is_blacked_out(ran: Ran, tmp_path: Path) -> None:
    ran.alkd("annotate", "export", str(tmp_path / "answers"))
    ran.alkd("ledger", "export", str(tmp_path / "holds.csv"))
    failures = pq.read_table(tmp_path / "answers" / "failures.parquet").to_pydict()["reason"]
    answers = pq.read_table(tmp_path / "answers" / "answers.parquet").to_pydict()["raw"]
    assert failures
    assert all("xxx Bearer [key]" in reason for reason in failures)
    assert sum("Bearer [key]" in answer for answer in answers) > 40
    assert not places(tmp_path)


def test_no_file_holds_a_key(ran: Ran) -> None:
    ran.alkd("config", "show", str(ran.alkd.config), "llm.teacher=openai-chat",
             "llm.options={model: m, api_key_env: ALKD_TEST_KEY}")  # fmt: skip
    ran.alkd("annotate", "status")
    ran.alkd("ledger", "show")
    assert len(list(ran.alkd.folder.rglob("*"))) > 200
    assert not places(ran.alkd.folder)


def test_no_output_and_no_command_line_shows_a_key(ran: Ran) -> None:
    assert any("complete" in text for text in ran.alkd.said)
    assert not [text for text in ran.alkd.said if is_found(text.encode())]
    assert not [line for line in ran.alkd.seen if is_found(line.encode())]


async def _asked(endpoint: Endpoint) -> None:
    async with ChatClient(endpoint) as client:
        await client.ask({"model": "m", "messages": []})


async def _uploaded(endpoint: Endpoint) -> None:
    async with BatchClient(endpoint) as client:
        await client.upload(b"{}\n", "batch.jsonl")


async def _read(endpoint: Endpoint) -> list[str]:
    async with BatchClient(endpoint) as client:
        return [f"{line.raw} {line.error}" async for line in client.lines("file")]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY)
    return file


@pytest.mark.parametrize("call", [_asked, _uploaded])
def test_errors_do_not_show_the_key(call: Callable[[Endpoint], Awaitable[None]], key_file: Path):
    async def complaining(request: web.Request) -> web.Response:
        text = f"{'x' * (300 - PART - 9)} {request.headers['Authorization']}"
        return web.Response(status=400, text=text)

    with listening(complaining) as url, pytest.raises(NotBilledError) as raised:
        asyncio.run(call(Endpoint(url, url, "m", api_key_file=str(key_file))))  # type: ignore[arg-type]
    assert str(raised.value).endswith("x Bearer [key]")


def test_lines_of_batches_do_not_show_the_key(key_file: Path) -> None:
    async def results(request: web.Request) -> web.Response:
        said = request.headers["Authorization"]
        good = {"custom_id": "1", "response": {"status_code": 200, "body": {"x": said}}}
        bad = {"custom_id": "2", "response": None, "error": {"message": "x" * 270 + said}}
        return web.Response(text="\n".join(map(json.dumps, (good, bad))))

    with listening(results) as url:
        good, bad = asyncio.run(_read(Endpoint(url, url, "m", api_key_file=str(key_file))))
    assert good == '{"x":"Bearer [key]"} '
    assert "xBearer [key]" in bad
    assert not is_found(bad.encode())


@pytest.mark.parametrize(
    "text",
    [f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY}\x00", f"{KEY}\u200b"],
    ids=["two lines", "not ASCII", "a zero", "an invisible space"],
)
def test_what_cannot_be_a_key_is_an_error_that_does_not_show_it(text: str, key_file: Path) -> None:
    key_file.write_text(text, "utf-8")
    with pytest.raises(InputError, match="api_key_file") as raised:
        asyncio.run(_asked(Endpoint("x", "http://127.0.0.1:9/v1", "m", api_key_file=str(key_file))))
    assert not is_found(repr(raised.value).encode())
    assert raised.value.__cause__ is None


def test_the_key_goes_to_its_endpoint_alone(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    came: list[str] = []

    async def stranger(request: web.Request) -> web.Response:
        came.append(str(dict(request.headers)))
        return web.json_response({"id": "file"})

    with listening(stranger) as other:

        async def moved(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{other}/{KEY}"})

        with listening(moved) as url:
            for call in (_asked, _uploaded):
                with suppress(NotBilledError):
                    asyncio.run(call(Endpoint(url, url, "m", api_key_file=str(key_file))))
        with suppress(OutcomeUnknownError):  # what the stranger says is no completion
            asyncio.run(_asked(Endpoint(other, other, "m", api_key_env="")))
    assert came
    assert not is_found("".join(came).encode())


def test_a_server_that_nobody_vouches_for_is_sent_nothing(tmp_path: Path, key_file: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "pem").write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(pem)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "pem")
    came: list[str] = []

    async def stranger(request: web.Request) -> web.Response:
        came.append(request.path)
        return web.json_response({})

    with listening(stranger, tls) as url, pytest.raises(NotBilledError, match="no connection"):
        asyncio.run(_asked(Endpoint(url, url, "m", api_key_file=str(key_file))))
    assert not came
