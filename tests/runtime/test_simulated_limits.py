"""Tokens a minute at the simulated endpoint, and its own account of what it let in."""

from __future__ import annotations

import time

import pytest

from alkd_ray.llm_teachers import _server
from tests.simulated_server import Server, serving

SHORT = [{"role": "user", "content": "Good morning!"}]


def tokens_of_a_ranking() -> int:
    with serving() as server:
        return server.rank().usage["total_tokens"]


def admissions(server: Server) -> list[list[float]]:
    return server.call("GET", "/admissions").body


def test_tokens_a_minute_count_the_prompt_and_the_answer() -> None:
    each = tokens_of_a_ranking()
    with serving(tokens_per_minute=3 * each + 70) as server:
        replies = [server.rank(number) for number in range(5)]
        assert [reply.status for reply in replies] == [200] * 3 + [429] * 2
        refused = replies[-1]
        assert refused.body["error"]["code"] == "rate_limit_exceeded"
        assert "tokens per minute" in refused.body["error"]["message"]
        assert 0 < float(refused.headers["Retry-After"]) <= 60
        assert refused.headers["x-ratelimit-limit-tokens"] == str(3 * each + 70)
        assert server.ask(SHORT).status == 200  # there is room for a smaller one
        assert server.bill()["requests"] == 4


def test_the_answer_alone_can_be_what_does_not_fit() -> None:
    each = tokens_of_a_ranking()
    with serving(tokens_per_minute=2 * each - 1) as server:
        assert [server.rank(number).status for number in range(2)] == [200, 429]
        assert len(admissions(server)) == 1


def test_room_comes_back_when_retry_after_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "_WINDOW_SECONDS", 2.0)
    each = tokens_of_a_ranking()
    with serving(tokens_per_minute=2 * each) as server:
        first = [server.rank(number).status for number in range(2)]
        assert first == [200, 200]
        refused = server.rank(2)
        while refused.status == 429:
            time.sleep(float(refused.headers["Retry-After"]))  # what the endpoint asks for
            refused = server.rank(2)
        assert refused.status == 200
        seconds = [moment for moment, _, _ in admissions(server)]
        assert seconds[2] - seconds[0] >= 2.0


def test_a_request_beyond_the_whole_limit_is_told_so() -> None:
    with serving(tokens_per_minute=20) as server:
        refused = server.rank()
        assert refused.status == 429
        assert "too large" in refused.body["error"]["message"]
        assert "Retry-After" not in refused.headers


def test_a_refused_request_does_not_count_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults go by how often a request came; a refusal by a limit must not change that."""
    monkeypatch.setattr(_server, "_WINDOW_SECONDS", 0.5)
    with serving(prose_share=0.5, seed=5) as free:
        replies = [free.rank() for _ in range(5)]
    expected = [reply.text for reply in replies]
    assert len(set(expected)) == 2
    limit = max(reply.usage["total_tokens"] for reply in replies)
    with serving(prose_share=0.5, seed=5, tokens_per_minute=limit) as limited:
        texts: list[str] = []
        refusals = 0
        while len(texts) < 5:
            reply = limited.rank()
            if reply.status == 200:
                texts.append(reply.text)
            else:
                refusals += 1
        assert texts == expected
        assert refusals >= 4


def test_admissions_tell_when_and_how_much() -> None:
    with serving(server_error_share=0.5, requests_per_minute=10) as server:
        begun = time.monotonic()
        replies = [server.rank(number) for number in range(14)]
        took = time.monotonic() - begun
        assert {reply.status for reply in replies} == {200, 500, 429}
        seen = admissions(server)
        assert len(seen) == 10  # with those that failed afterwards, without those beyond the rate
        seconds = [moment for moment, _, _ in seen]
        assert seconds == sorted(seconds)
        assert 0 <= seconds[-1] - seconds[0] <= took
        usages = [reply.usage for reply in replies if reply.status == 200]
        counted = {(prompt, completion) for _, prompt, completion in seen}
        assert {(u["prompt_tokens"], u["completion_tokens"]) for u in usages} <= counted
