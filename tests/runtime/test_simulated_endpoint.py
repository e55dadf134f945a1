"""The simulated endpoint over real HTTP: in a thread, and where processes matter in its own."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest
import typer
from aiohttp import web

from alkd_ray import registry
from alkd_ray.annotation import prompts
from alkd_ray.cli import llm
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.llm_teachers._behaviour import MODEL, Behaviour, identity_of
from alkd_ray.llm_teachers._bill import Bill
from alkd_ray.llm_teachers._server import SimulatedEndpoint

PATIENCE_SECONDS = 60.0
SERIES = [f"The Ember Archive, Vol. {volume} - fantasy - Mira Kestrel" for volume in range(1, 9)]
OTHERS = [f"Book {name} - crime - Jon Vale" for name in ("Oak", "Elm", "Ash", "Fir", "Yew", "Bay")]
CANDIDATES = [*OTHERS, SERIES[6], SERIES[3], SERIES[2]]
WANTED = 6


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def text(self) -> str:
        return self.body["choices"][0]["message"]["content"]

    @property
    def ranking(self) -> list:
        return json.loads(self.text)["ranking"]

    @property
    def usage(self) -> dict[str, int]:
        return self.body["usage"]


@dataclass(frozen=True)
class Server:
    host: str
    port: int

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        connection = HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.headers), json.loads(answer.read()))
        finally:
            connection.close()

    def ask(self, messages: list[dict[str, Any]], key: str = "", **fields: Any) -> Reply:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": MODEL, "messages": messages, **fields}
        return self.call("POST", "/v1/chat/completions", json.dumps(body).encode(), **headers)

    def rank(self, number: int = 0, **fields: Any) -> Reply:
        """A ranking; each ``number`` is another question."""
        return self.ask(question(number), **fields)

    def bill(self) -> dict[str, int]:
        return self.call("GET", "/bill").body


def question(number: int = 0) -> list[dict[str, str]]:
    return prompts.rank_messages(SERIES[:2], CANDIDATES, WANTED, f"Note {number}.", "books")


@contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """The endpoint in a thread of this process; starting a process takes seconds."""
    behaviour = Behaviour(**settings)
    bill = Bill(None, behaviour.input_usd_per_million, behaviour.output_usd_per_million)
    runner = web.AppRunner(SimulatedEndpoint(behaviour, bill).application(), access_log=None)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[str, int]:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner.addresses[0][:2]

    try:
        yield Server(*asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_SECONDS))
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)
        loop.close()


@contextmanager
def running(*options: str) -> Iterator[tuple[Server, subprocess.Popen[str]]]:
    """``alkd llm serve`` in a process."""
    process = subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield server_of(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "alkd_ray", "llm", "serve", *options]


def server_of(line: str) -> Server:
    found = re.search(r"http://([\d.]+):(\d+)/v1$", line.strip())
    assert found, f"no address in {line!r}"
    return Server(found[1], int(found[2]))


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    with serving(noise=0.0) as server:
        yield server


def test_the_next_volume_ranks_first(plain: Server) -> None:
    reply = plain.rank()
    titles = [CANDIDATES[number - 1] for number in reply.ranking]
    assert titles[:3] == [SERIES[2], SERIES[3], SERIES[6]]
    assert len(set(reply.ranking)) == WANTED
    assert reply.body["choices"][0]["finish_reason"] == "stop"
    assert reply.body["model"] == MODEL


def test_one_question_gets_one_answer_even_with_noise() -> None:
    with serving(noise=5, seed=3) as first, serving(noise=5, seed=4) as second:
        answers = [first.rank(number).ranking for number in range(8)]
        assert answers == [first.rank(number).ranking for number in range(8)]
        assert answers != [second.rank(number).ranking for number in range(8)]
        assert len(set(map(tuple, answers))) > 1


def test_usage_follows_from_the_text(plain: Server) -> None:
    reply = plain.rank()
    prompt = "\n".join(message["content"] for message in question())
    assert reply.usage["prompt_tokens"] == math.ceil(len(prompt.encode()) / 4)
    assert reply.usage["completion_tokens"] == math.ceil(len(reply.text.encode()) / 4)
    assert reply.usage["total_tokens"] == sum(
        reply.usage[name] for name in ("prompt_tokens", "completion_tokens")
    )


def test_the_output_limit_cuts(plain: Server) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = plain.rank(**{field: 3})
        assert reply.body["choices"][0]["finish_reason"] == "length"
        assert reply.usage["completion_tokens"] == 3
        assert plain.rank().text.startswith(reply.text)
        assert len(reply.text.encode()) == 12


def test_hints_are_general_and_come_from_the_examples(plain: Server) -> None:
    in_order = prompts.hints_messages([prompts.HintExample(SERIES[:3], SERIES[3:5])], "books")
    mixed = prompts.hints_messages([prompts.HintExample(OTHERS[:3], OTHERS[3:])], "books")
    texts = [plain.ask(messages).text for messages in (in_order, mixed)]
    assert "next volume" in texts[0]
    assert "next volume" not in texts[1]
    assert "genre" in texts[1]
    assert not any(word in text for text in texts for word in ("Ember", "Oak", "Kestrel", "Vale"))
    assert all(len(line.split()) <= 25 for text in texts for line in text.splitlines())


def test_a_prompt_that_is_something_else_gets_a_polite_answer(plain: Server) -> None:
    reply = plain.ask([{"role": "user", "content": "Good morning!"}])
    assert "simulated" in reply.text
    in_parts = [{"role": "user", "content": [{"type": "text", "text": question()[-1]["content"]}]}]
    assert plain.ask(in_parts).ranking == plain.rank().ranking


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        (b"[]", 400),
        (b'{"model": "simulated-title-reader"}', 400),
        (b'{"model": "simulated-title-reader", "messages": []}', 400),
        (b'{"model": "simulated-title-reader", "messages": [{"role": "user"}]}', 400),
        (b'{"model": "simulated-title-reader", "messages": ["text"]}', 400),
        (b'{"model": "simulated-title-reader", "messages": [7], "stream": true}', 400),
        (b'{"model": "simulated-title-reader", "messages": [7], "max_tokens": 0}', 400),
        (b'{"model": "simulated-title-reader", "messages": [7], "response_format": {}}', 400),
        (b'{"model": "another", "messages": [7]}', 404),
        (b"\xff\xfe", 400),
        (b" " * (5 * 2**20), 413),
    ],
)
def test_a_bad_request_is_refused_in_the_usual_shape(
    plain: Server, body: bytes, status: int
) -> None:
    billed = plain.bill()
    reply = plain.call("POST", "/v1/chat/completions", body)
    assert reply.status == status
    assert set(reply.body["error"]) == {"message", "type", "param", "code"}
    assert reply.body["error"]["message"]
    assert plain.bill() == billed


def test_the_other_addresses(plain: Server) -> None:
    assert plain.call("GET", "/v1/models").body["data"][0]["id"] == MODEL
    assert plain.call("GET", "/health").status == 200
    assert plain.call("GET", "/v1/nothing").body["error"]["type"] == "invalid_request_error"


def test_json_schema_is_accepted_or_refused(plain: Server) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "ranking", "schema": {}}}
    assert plain.rank(response_format=wanted).status == 200
    with serving(json_schema=False) as old:
        assert old.rank(response_format=wanted).status == 400
        assert old.rank(response_format={"type": "json_object"}).status == 200


def test_a_key_is_demanded_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_KEY", "open sesame")
    with serving(api_key_env="SIMULATED_KEY") as server:
        for key in ("", "wrong"):
            refused = server.rank(key=key)
            assert refused.status == 401
            assert refused.body["error"]["code"] == "invalid_api_key"
            assert "sesame" not in json.dumps(refused.body)
        assert server.rank(key="open sesame").status == 200


def test_a_rate_limit_and_a_quota() -> None:
    with serving(requests_per_minute=3, quota_requests=3) as server:
        assert [server.rank(number).status for number in range(3)] == [200] * 3
        assert server.rank(9).body["error"]["code"] == "insufficient_quota"
    with serving(requests_per_minute=3) as server:
        replies = [server.rank(number) for number in range(5)]
        assert [reply.status for reply in replies] == [200] * 3 + [429] * 2
        assert 0 < float(replies[-1].headers["Retry-After"]) <= 60
        assert server.bill()["requests"] == 3


def _is_truncated(text: str) -> bool:
    return text.startswith('{"ranking"') and not text.endswith("}")


def _has_prose(text: str) -> bool:
    return not text.startswith("{") and '{"ranking"' in text


def _numbers(text: str) -> list:
    return json.loads(text)["ranking"]


@pytest.mark.parametrize(
    ("setting", "shows"),
    [
        ("truncated_share", _is_truncated),
        ("prose_share", _has_prose),
        ("as_titles_share", lambda text: set(_numbers(text)) <= set(CANDIDATES)),
        ("repeated_share", lambda text: len(set(_numbers(text))) < WANTED),
        ("too_many_share", lambda text: len(_numbers(text)) == len(CANDIDATES)),
        ("out_of_range_share", lambda text: max(_numbers(text)) > len(CANDIDATES)),
    ],
)
def test_malformed_answers(setting: str, shows: Callable[[str], bool]) -> None:
    """At probability .5 some answers are malformed and the others are not."""
    with serving(**{setting: 0.5}, noise=0) as server:
        good = json.dumps({"ranking": [9, 8, 7, 1, 2, 3]})
        texts = [server.rank(number).text for number in range(30)]
        assert 5 <= sum(text == good for text in texts) <= 25
        assert all(shows(text) for text in texts if text != good)
        retried = [server.rank(0).text for _ in range(12)]
        assert good in retried
        assert any(shows(text) for text in retried if text != good)


def test_refusals_and_failures_are_not_billed() -> None:
    with serving(
        rate_limited_share=0.3, retry_after_seconds=0.25, server_error_share=0.3
    ) as server:
        replies = [server.rank(number) for number in range(40)]
        by_status = {reply.status: reply for reply in replies}
        assert set(by_status) == {200, 429, 500}
        assert float(by_status[429].headers["Retry-After"]) == 0.25
        assert server.bill()["requests"] == sum(reply.status == 200 for reply in replies)
        assert any(server.rank(replies.index(by_status[500])).status == 200 for _ in range(20))


def test_dropped_connections_are_billed_when_the_answer_was_generated() -> None:
    """The bill is the sum of the usages seen, and of those that never arrived."""
    with serving(drop_after_share=0.4) as server:
        seen, lost = _ask_many(server, 40)
        assert lost > 3
        log = server.call("GET", "/bill/log").body
        assert server.bill()["requests"] == len(seen) + lost == len(log)
        same_prompt = seen[0].usage["prompt_tokens"]  # all these questions are of one length
        assert server.bill()["prompt_tokens"] == 40 * same_prompt
        expected = sum(
            math.ceil(entry["prompt_tokens"] * 0.15 + entry["completion_tokens"] * 0.6 - 1e-9)
            for entry in log
        )
        assert server.bill()["microusd"] == expected
    with serving(drop_before_share=0.4) as server:
        seen, lost = _ask_many(server, 40)
        assert lost > 3
        assert server.bill()["requests"] == len(seen)
        assert server.bill()["completion_tokens"] == sum(
            reply.usage["completion_tokens"] for reply in seen
        )


def _ask_many(server: Server, count: int) -> tuple[list[Reply], int]:
    seen, lost = [], 0
    for number in range(10, 10 + count):
        try:
            seen.append(server.rank(number))
        except (RemoteDisconnected, ConnectionError):
            lost += 1
    return seen, lost


def test_an_answer_beyond_the_limit_is_billed_in_full() -> None:
    with serving(ignore_max_tokens_share=1) as server:
        reply = server.rank(max_tokens=30)
        assert reply.usage["completion_tokens"] > 30
        assert reply.usage["completion_tokens"] == math.ceil(len(reply.text.encode()) / 4)
        assert server.bill()["completion_tokens"] == reply.usage["completion_tokens"]


def test_waits() -> None:
    with serving(latency_seconds=0.2, slow_share=0.3, slow_seconds=0.5) as server:
        seconds = []
        for number in range(12):
            started = time.perf_counter()
            server.rank(number)
            seconds.append(time.perf_counter() - started)
        assert min(seconds) >= 0.2
        assert 1 <= sum(value >= 0.7 for value in seconds) <= 8


def test_the_bill_outlives_kill_9(tmp_path: Path) -> None:
    file = tmp_path / "bill.jsonl"
    with running("--bill", str(file), "--drop-after-share", "0.3") as (server, process):
        seen, lost = _ask_many(server, 20)
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


def test_a_port_in_use_is_one_sentence(plain: Server) -> None:
    done = subprocess.run(
        command("--port", str(plain.port)), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert f"127.0.0.1:{plain.port}" in done.stderr
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


def test_the_identity_names_what_shapes_answers() -> None:
    identity = identity_of(Behaviour())
    assert identity == identity_of(Behaviour(latency_seconds=3, rate_limited_share=0.5))
    changed = [{"noise": 0.1}, {"seed": 2}, {"prose_share": 0.1}, {"repeated_share": 0.1}]
    assert len({identity, *(identity_of(Behaviour(**fields)) for fields in changed)}) == 5


def test_the_command_line_has_an_option_for_every_setting() -> None:
    command = typer.main.get_command(llm.app)
    options = {option.name: option.default for option in command.commands["serve"].params}  # type: ignore[attr-defined]
    settings = {name: field.default for name, field in Behaviour.model_fields.items()}
    assert settings.items() <= options.items()
