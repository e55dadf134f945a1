"""The simulated endpoint as a process: how it starts, ends, and what outlives it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alkd_ray import registry
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.llm_teachers._bill import Bill
from tests.simulated_server import (
    CANDIDATES,
    PATIENCE_SECONDS,
    ask_many,
    command,
    running,
    server_of,
    serving,
)


def test_the_bill_outlives_kill_9(tmp_path: Path) -> None:
    file = tmp_path / "bill.jsonl"
    with running("--bill", str(file), "--drop-after-share", "0.3") as (server, process):
        seen, lost = ask_many(server, 20)
        assert lost
        before = server.bill()
        assert before["requests"] == len(seen) + lost == 20
        with pytest.raises(InputError, match="in use"):
            Bill(file, 0.15, 0.6)
        process.send_signal(signal.SIGKILL)
    with file.open("a") as opened:
        opened.write('{"number": 21, "requ')  # what a full disk or a power cut may leave
    with running("--bill", str(file)) as (server, _):
        assert server.bill() == before
        server.rank(7)
        assert server.bill()["requests"] == 21
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, 22))
    assert sum(line["microusd"] for line in lines[:20]) == before["microusd"]


def test_a_file_that_is_no_bill_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes\n")
    with pytest.raises(InputError, match="line 1"):
        Bill(file, 0.15, 0.6)
    assert file.read_text() == "my notes\n"
    with pytest.raises(InputError, match="cannot be opened"):
        Bill(tmp_path / "no folder" / "bill", 0.15, 0.6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told(number: signal.Signals) -> None:
    with running() as (server, process):
        assert server.bill()["requests"] == 0
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0


def test_a_port_in_use_is_one_sentence() -> None:
    with serving() as other:
        done = subprocess.run(
            command("--port", str(other.port)),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 2
        assert f"127.0.0.1:{other.port}" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_teacher_starts_and_ends_its_server() -> None:
    teacher = registry.build("llm_teachers", "simulated", {"noise": 0.0, "json_schema": False})
    described = teacher.describe()
    assert described.base_url == ""
    with teacher.endpoint() as endpoint:
        server = server_of(endpoint.base_url)
        assert server.rank().ranking[0] == len(CANDIDATES)
        assert server.rank(response_format={"type": "json_schema"}).status == 400
    assert (endpoint.identity, endpoint.rates) == (described.identity, described.rates)
    with pytest.raises(ConnectionError):
        server.bill()


def test_an_error_of_the_server_is_told() -> None:
    teacher = registry.build("llm_teachers", "simulated", {"api_key_env": "NO_SUCH_KEY"})
    with pytest.raises(AlkdError, match="NO_SUCH_KEY"), teacher.endpoint():
        pass


def test_the_server_ends_with_a_killed_parent() -> None:
    program = (
        "import time; from alkd_ray import registry\n"
        "with registry.build('llm_teachers', 'simulated', {}).endpoint() as endpoint:\n"
        "    print(endpoint.base_url, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = server_of(parent.stdout.readline())
    assert server.bill()["requests"] == 0
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            server.bill()
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the server outlives the process that started it")
