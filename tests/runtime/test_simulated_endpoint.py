"""The simulated endpoint over real HTTP."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator

import pytest
import typer

from alkd_ray.annotation import prompts
from alkd_ray.cli import llm
from alkd_ray.llm_teachers._behaviour import MODEL, Behaviour, identity_of
from tests.simulated_server import (
    CANDIDATES,
    OTHERS,
    SERIES,
    WANTED,
    Server,
    ask_many,
    question,
    serving,
)


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
        seen, lost = ask_many(server, 40)
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
        seen, lost = ask_many(server, 40)
        assert lost > 3
        assert server.bill()["requests"] == len(seen)
        assert server.bill()["completion_tokens"] == sum(
            reply.usage["completion_tokens"] for reply in seen
        )


def test_an_answer_beyond_the_limit_is_billed_in_full() -> None:
    with serving(ignore_max_tokens_share=1) as server:
        reply = server.rank(max_tokens=30)
        assert reply.usage["completion_tokens"] > 30
        assert reply.usage["completion_tokens"] == math.ceil(len(reply.text.encode()) / 4)
        assert server.bill()["completion_tokens"] == reply.usage["completion_tokens"]


def test_reasoning_is_billed_and_only_the_total_counts_it() -> None:
    with serving(reasoning_tokens=500) as server:
        reply = server.rank()
        usage = reply.usage
        assert usage["completion_tokens"] == math.ceil(len(reply.text.encode()) / 4)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] + 500
        assert server.bill()["completion_tokens"] == usage["completion_tokens"] + 500


def test_waits() -> None:
    with serving(latency_seconds=0.2, slow_share=0.3, slow_seconds=0.5) as server:
        seconds = []
        for number in range(12):
            started = time.perf_counter()
            server.rank(number)
            seconds.append(time.perf_counter() - started)
        assert min(seconds) >= 0.2
        assert 1 <= sum(value >= 0.7 for value in seconds) <= 8


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
