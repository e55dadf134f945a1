"""Outputs in buckets, by the protocols of S3 and Google: real servers, real HTTP, real kills."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs

from alkd_ray import artifacts
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.storage import Storage
from tests.unit.test_storage import content, written_output

ID, SECRET = "AKIATEST", "not-to-be-seen"
PATIENCE_SECONDS = 60.0
# More than an S3 client opens (31) before it gives up a call.
MORE_THAN_A_CALL = 40


@dataclass(frozen=True)
class Server:
    """A server of buckets, one of them called ``bucket``."""

    scheme: str
    port: int

    def url(self, port: int | None = None) -> str:
        """A prefix that nobody else uses."""
        place = f"prefix/{uuid.uuid4().hex[:8]}?endpoint_override=127.0.0.1:{port or self.port}"
        bucket = "bucket" if self.scheme == "s3" else "anonymous@bucket"
        return f"{self.scheme}://{bucket}/{place}&scheme=http"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def started(module: str, words: list[str], port: int, log: Path) -> Iterator[None]:
    """``python -m module``, which listens at ``port`` when the block begins."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words], stdout=written, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("a server that speaks S3 is needed: pip install 'moto[server]'")
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log.txt"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", ID)
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "ALKD_STORAGE"):
            environment.delenv(name, raising=False)
        with started("moto.server", ["-H", "127.0.0.1", "-p", str(port)], port, log):
            fs.S3FileSystem(
                endpoint_override=f"http://127.0.0.1:{port}", allow_bucket_creation=True
            ).create_dir("bucket")
            yield Server("s3", port)


@pytest.fixture(scope="module")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("a server that speaks Google's protocol: pip install gcp-storage-emulator")
    port, log = free_port(), tmp_path_factory.mktemp("gs") / "log.txt"
    words = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    words.append("--default-bucket=bucket")
    with started("gcp_storage_emulator", words, port, log):
        yield Server("gs", port)


@pytest.fixture(params=["s3", "gs"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


class Gate:
    """A relay to a server, by TCP; it can refuse the first connections, or stop at a text.

    Attributes:
        port: where it listens.
        connections: so many were opened.
        stopped: set when the text was about to be passed on; it never is.
    """

    def __init__(self, server: Server, refuse: int = 0, stop_at: bytes = b"\0never") -> None:
        self.stopped = threading.Event()
        self.connections = 0
        self._server, self._refuse, self._stop_at = server, refuse, stop_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                if self.connections <= self._refuse:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._server.port))
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._stop_at in data:
                    self.stopped.set()
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_an_output_comes_back_from_a_bucket_as_it_was(server: Server, tmp_path: Path) -> None:
    """13 MB make S3 take a file in several parts."""
    folder = written_output(tmp_path / "made", record=True, large_bytes=13_000_000)
    storage = Storage(server.url())
    there = tmp_path / "root" / "stage" / "key"
    assert not storage.has("stage", "key")
    assert not storage.fetch("stage", "key", there)
    storage.keep("stage", "key", folder)
    other = Storage(storage.url)
    assert other.has("stage", "key")
    assert other.fetch("stage", "key", there)
    assert content(there) == content(folder)


def test_a_bucket_saves_the_work_of_another_machine(server: Server, tmp_path: Path) -> None:
    url, made = server.url(), []

    def make(folder: Path) -> None:
        made.append(folder)
        written_output(folder)

    outputs = [
        artifacts.produce(
            tmp_path / root, "stage", make, version=1, inputs={}, settings={}, storage=Storage(url)
        )
        for root in ("here", "there")
    ]
    assert [output.reused for output in outputs] == [False, True]
    assert len(made) == 1
    found = artifacts.found(tmp_path / "third", "stage", outputs[0].key, Storage(url))
    assert content(found.folder) == content(outputs[0].folder)
    with pytest.raises(InputError, match="no such output"):
        artifacts.found(tmp_path / "third", "stage", "nothing", Storage(url))


def test_uploads_to_a_bucket_at_once_never_mix(server: Server, tmp_path: Path) -> None:
    url = server.url()
    folders = [written_output(tmp_path / f"{n}", record=True, text=f"{n}") for n in range(4)]
    code = (
        "import sys; from pathlib import Path; from alkd_ray.storage import Storage\n"
        "storage = Storage(sys.argv[1]); storage.has('stage', 'key'); print('ready', flush=True)\n"
        "sys.stdin.readline(); storage.keep('stage', 'key', Path(sys.argv[2]))\n"
    )
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    for program in programs:
        program.communicate(timeout=PATIENCE_SECONDS)
        assert program.returncode == 0
    assert Storage(url).fetch("stage", "key", tmp_path / "there")
    assert content(tmp_path / "there") in [content(folder) for folder in folders]


@pytest.mark.parametrize(
    "stop_at",
    [b"PUT ", b"uploads", b"partNumber=2", b"out.txt", b"/key/stage.json"],
    ids=["first file", "large file", "its second part", "small file", "record"],
)
def test_kill_9_in_an_upload_leaves_nothing_that_is_taken_for_whole(
    stop_at: bytes, s3: Server, tmp_path: Path
) -> None:
    """The process is killed while a relay withholds the request, so the moment is certain."""
    folder = written_output(tmp_path / "made", record=True, large_bytes=13_000_000)
    url = s3.url()
    prefix = url.partition("?")[0].removeprefix("s3://")
    if b"stage.json" in stop_at:
        stop_at = f"PUT /{prefix}/stage{stop_at.decode()}".encode()
    with Gate(s3, stop_at=stop_at) as gate:
        code = (
            "import sys; from pathlib import Path; from alkd_ray.storage import Storage\n"
            "Storage(sys.argv[1]).keep('stage', 'key', Path(sys.argv[2]))\n"
        )
        through = url.replace(str(s3.port), str(gate.port))
        program = subprocess.Popen([sys.executable, "-c", code, through, str(folder)])
        try:
            assert gate.stopped.wait(PATIENCE_SECONDS)
            assert program.poll() is None
        finally:
            program.kill()
        assert program.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    there = tmp_path / "root" / "key"
    assert not Storage(url).has("stage", "key")
    assert not Storage(url).fetch("stage", "key", there)
    Storage(url).keep("stage", "key", folder)
    assert Storage(url).fetch("stage", "key", there)
    assert content(there) == content(folder)


def test_a_server_that_is_away_for_a_while_is_waited_for(s3: Server, tmp_path: Path) -> None:
    """Longer than the S3 client waits by itself."""
    folder = written_output(tmp_path / "made", record=True)
    with Gate(s3, refuse=MORE_THAN_A_CALL) as gate:
        storage = Storage(s3.url(gate.port))
        storage.keep("stage", "key", folder)
        assert gate.connections > MORE_THAN_A_CALL
        assert storage.fetch("stage", "key", tmp_path / "there")
    assert content(tmp_path / "there") == content(folder)


def test_what_is_wrong_is_said_in_one_sentence(server: Server, tmp_path: Path) -> None:
    other = Storage(server.url().replace("bucket/", "nowhere/"))
    with pytest.raises(InputError, match="there is no bucket 'nowhere'") as no_bucket:
        other.fetch("stage", "key", tmp_path / "there")
    assert other.url in str(no_bucket.value)
    assert "\n" not in str(no_bucket.value)


def test_refused_access_says_where_credentials_come_from(s3: Server, tmp_path: Path) -> None:
    def demand_credentials(after_requests: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", s3.port, timeout=PATIENCE_SECONDS)
        connection.request("POST", "/moto-api/reset-auth", after_requests.encode())
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["status"]) == (200, "ok")
        connection.close()

    storage, reached = Storage(s3.url()), Storage(s3.url())
    assert not reached.has("stage", "key")
    folder = written_output(tmp_path / "made", record=True)
    demand_credentials("0")
    try:
        for refused in (
            lambda: storage.fetch("stage", "key", tmp_path / "there"),
            lambda: reached.keep("stage", "key", folder),
        ):
            with pytest.raises(InputError, match="no credentials in the environment") as error:
                refused()
            for hidden in (ID, SECRET, "\n"):
                assert hidden not in str(error.value)
    finally:
        demand_credentials("inf")
    reached.keep("stage", "key", folder)
    assert reached.has("stage", "key")


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_an_error_after_some_tries(tmp_path: Path) -> None:
    made: list[Path] = []
    for scheme, bucket in (("s3", "bucket"), ("gs", "anonymous@bucket")):
        url = f"{scheme}://{bucket}/p?endpoint_override=127.0.0.1:{free_port()}&scheme=http"
        with pytest.raises(AlkdError, match="cannot be reached, tried 3 times") as error:
            artifacts.produce(
                tmp_path, "stage", made.append, version=1, inputs={}, settings={},
                storage=Storage(url),
            )  # fmt: skip
        assert url in str(error.value)
        assert "\n" not in str(error.value)
        assert error.value.exit_status == 1
    assert made == []
    assert list(tmp_path.rglob("*")) == []
