"""Batches of the simulated endpoint over real HTTP."""

from __future__ import annotations

import json
import math
import signal
import time
from http.client import RemoteDisconnected
from typing import Any

import pytest
from openai.types import Batch, FileObject

from alkd_ray.llm_teachers._behaviour import MODEL
from tests.simulated_batches import (
    URL,
    create,
    file_of,
    finish,
    is_over,
    line,
    results,
    show,
    upload,
    wait,
)
from tests.simulated_server import PATIENCE_SECONDS, question, running, serving


def test_a_batch_answers_as_the_live_path_does_at_half_the_price() -> None:
    settings = {"noise": 3.0, "prose_share": 0.3, "truncated_share": 0.3}
    with serving(**settings) as live, serving(**settings) as server:
        expected = [live.rank(number).body for number in range(12)]
        batch = finish(server, file_of(12))
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
        assert batch["error_file_id"] is None
        answers = results(server, batch["output_file_id"])
        assert list(answers) == [f"row {number}" for number in range(12)]
        for number, wanted in enumerate(expected):
            answer = answers[f"row {number}"]
            assert answer["error"] is None
            assert answer["response"]["status_code"] == 200
            got = answer["response"]["body"]
            assert got["choices"] == wanted["choices"]
            assert got["usage"] == wanted["usage"]
            assert got["object"] == "chat.completion"
        log = server.call("GET", "/bill/log").body
        assert all(entry["is_batch"] for entry in log)
        assert not any(entry["is_batch"] for entry in live.call("GET", "/bill/log").body)
        for entry in log:
            price = entry["prompt_tokens"] * 0.15 + entry["completion_tokens"] * 0.6
            assert entry["microusd"] == math.ceil(price / 2 - 1e-9)
        assert server.bill()["prompt_tokens"] == live.bill()["prompt_tokens"]
        assert batch["usage"]["output_tokens"] == live.bill()["completion_tokens"]
        # A request that came in a batch has come once: live, it is now asked for the second time.
        again = [server.rank(number).text for number in range(12)]
        assert again == [live.rank(number).text for number in range(12)]


def test_the_price_of_a_batch_can_be_set() -> None:
    with serving(
        batch_price_share=0.25, input_usd_per_million=4, output_usd_per_million=0
    ) as server:
        finish(server, file_of(1))
        assert server.bill()["microusd"] == server.bill()["prompt_tokens"]


def test_the_shapes_are_those_of_the_openai_package() -> None:
    with serving() as server:
        uploaded = upload(server, file_of(2)).body
        stored = FileObject.model_validate(uploaded, strict=True)
        assert (stored.filename, stored.bytes) == ("input.jsonl", len(file_of(2)))
        created = create(server, file_of(2), metadata={"alkd": "a label"}).body
        batch = Batch.model_validate(created, strict=True)
        assert (batch.status, batch.metadata) == ("validating", {"alkd": "a label"})
        assert batch.expires_at == batch.created_at + 24 * 3600
        batch = Batch.model_validate(wait(server, batch.id, is_over), strict=True)
        stamps = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        assert None not in stamps
        assert list(stamps) == sorted(stamps)  # type: ignore[type-var]
        assert batch.output_file_id is not None
        output = server.call("GET", f"/v1/files/{batch.output_file_id}").body
        assert FileObject.model_validate(output, strict=True).purpose == "batch_output"


def test_a_batch_takes_its_time_and_goes_on_by_itself() -> None:
    with serving(batch_seconds=6) as server:
        begun = time.monotonic()
        batch_id = create(server, file_of(60)).body["id"]
        partial = wait(server, batch_id, lambda batch: batch["request_counts"]["completed"] > 1)
        assert partial["status"] == "in_progress"
        assert partial["request_counts"]["completed"] < 60 == partial["request_counts"]["total"]
        assert partial["output_file_id"] is None
        assert 1 < server.bill()["requests"] < 60
        assert server.rank(99).status == 200  # others are served meanwhile
        assert wait(server, batch_id, is_over)["status"] == "completed"
        assert time.monotonic() - begun >= 6
        assert server.bill()["requests"] == 61


BAD = {
    "an empty file": (b"\n \n", "empty_file", None),
    "no JSON": (file_of(2) + b"{not json\n", "invalid_json_line", 3),
    "no object": (b"[1]\n", "invalid_json_line", 1),
    "no UTF-8": (b'{"custom_id": "\xff"}\n', "invalid_json_line", 1),
    "too deep": (b"[" * 100_000 + b"\n", "invalid_json_line", 1),
    "an id twice": (file_of(2) + file_of(1), "duplicate_custom_id", 3),
    "no id": (json.dumps(line(0, custom_id=None)).encode(), "missing_required_parameter", 1),
    "half a character": (json.dumps(line(0, custom_id="\ud800")).encode(),
                         "missing_required_parameter", 1),
    "no body": (json.dumps(line(0, body=7)).encode(), "missing_required_parameter", 1),
    "another url": (json.dumps(line(0, url="/v1/embeddings")).encode(), "invalid_url", 1),
    "another method": (json.dumps(line(0, method="GET")).encode(), "invalid_method", 1),
    "another model": (json.dumps(line(0, body={"model": "gpt"})).encode(), "model_not_found", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_fails_the_batch_and_costs_nothing(name: str) -> None:
    content, code, number = BAD[name]
    with serving() as server:
        batch = finish(server, content)
        assert batch["status"] == "failed"
        assert [(error["code"], error["line"]) for error in batch["errors"]["data"]] == [
            (code, number)
        ]
        assert Batch.model_validate(batch, strict=True).failed_at
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
        assert server.bill()["requests"] == 0


def test_limits_of_lines_and_bytes() -> None:
    with serving(batch_lines_limit=3, batch_bytes_limit=len(file_of(4))) as server:
        assert finish(server, file_of(3))["status"] == "completed"
        too_many, too_large = finish(server, file_of(4)), finish(server, file_of(5))
        codes = [batch["errors"]["data"][0]["code"] for batch in (too_many, too_large)]
        assert codes == ["too_many_tasks", "file_too_large"]
        assert server.bill()["requests"] == 3


def test_a_cancelled_batch_bills_what_it_had_generated() -> None:
    with serving(batch_seconds=20) as server:
        batch_id = create(server, file_of(200)).body["id"]
        wait(server, batch_id, lambda batch: batch["request_counts"]["completed"] >= 2)
        assert server.call("POST", f"/v1/batches/{batch_id}/cancel").body["status"] == "cancelling"
        batch = wait(server, batch_id, is_over)
        assert batch["status"] == "cancelled"
        assert batch["cancelling_at"] <= batch["cancelled_at"]
        completed = batch["request_counts"]["completed"]
        assert 2 <= completed < 200
        assert (
            server.bill()["requests"] == completed == len(results(server, batch["output_file_id"]))
        )
        left = results(server, batch["error_file_id"])
        assert len(left) == 200 - completed
        assert {entry["error"]["code"] for entry in left.values()} == {"batch_cancelled"}
        assert all(entry["response"] is None for entry in left.values())
        again = server.call("POST", f"/v1/batches/{batch_id}/cancel")
        assert (again.status, again.body["status"]) == (200, "cancelled")


def test_a_batch_cancelled_at_once_has_no_answers() -> None:
    with serving(batch_seconds=40) as server:
        batch_id = create(server, file_of(3)).body["id"]
        server.call("POST", f"/v1/batches/{batch_id}/cancel")
        batch = wait(server, batch_id, is_over)
        assert (batch["status"], batch["output_file_id"]) == ("cancelled", None)
        assert len(results(server, batch["error_file_id"])) == 3
        assert server.bill()["requests"] == 0


def test_a_batch_that_is_over_cannot_be_cancelled() -> None:
    with serving() as server:
        batch = finish(server, file_of(1))
        refused = server.call("POST", f"/v1/batches/{batch['id']}/cancel")
        assert refused.status == 409
        assert "completed" in refused.body["error"]["message"]
        assert show(server, batch["id"]) == batch


def test_an_expired_batch_keeps_what_it_had_generated() -> None:
    with serving(batch_seconds=20, batch_expire_after_seconds=3) as server:
        batch = finish(server, file_of(200))
        assert batch["status"] == "expired"
        assert batch["expires_at"] == batch["created_at"] + 3
        assert batch["expired_at"]
        answers = results(server, batch["output_file_id"])
        left = results(server, batch["error_file_id"])
        assert 0 < len(answers) < 200
        assert set(answers) | set(left) == {f"row {number}" for number in range(200)}
        assert {entry["error"]["code"] for entry in left.values()} == {"batch_expired"}
        assert server.bill()["requests"] == len(answers) == batch["request_counts"]["completed"]


def test_lines_fail_one_by_one_and_are_not_billed() -> None:
    with serving(batch_line_error_share=0.3, batch_line_refused_share=0.3) as server:
        batch = finish(server, file_of(60))
        assert batch["status"] == "completed"
        answers = results(server, batch["output_file_id"])
        failed = results(server, batch["error_file_id"])
        assert len(answers) + len(failed) == 60
        counts = {"total": 60, "completed": len(answers), "failed": len(failed)}
        assert batch["request_counts"] == counts
        statuses = {entry["response"]["status_code"] for entry in failed.values()}
        assert statuses == {400, 500}
        assert all(entry["response"]["body"]["error"]["message"] for entry in failed.values())
        assert server.bill()["requests"] == len(answers)
        again = results(server, finish(server, file_of(60))["error_file_id"])
        assert set(again) != set(failed)  # what failed may pass when it is asked again


def test_a_line_that_the_live_path_refuses_is_refused() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "ranking", "schema": {}}}
    body = {"model": MODEL, "messages": question(), "response_format": wanted}
    with serving(json_schema=False) as server:
        batch = finish(server, json.dumps(line(0, body=body)).encode())
        assert (batch["status"], batch["output_file_id"]) == ("completed", None)
        failed = results(server, batch["error_file_id"])["row 0"]["response"]
        live = server.rank(response_format=wanted)
        assert (failed["status_code"], failed["body"]) == (live.status, live.body)


def test_a_batch_that_fails_as_a_whole_may_pass_when_submitted_again() -> None:
    with serving(batch_fail_share=0.5) as server:
        batches = [finish(server, file_of(1)) for _ in range(16)]
        states = [batch["status"] for batch in batches]
        assert set(states) == {"failed", "completed"}
        assert batches[states.index("failed")]["errors"]["data"][0]["message"]
        assert server.bill()["requests"] == states.count("completed")
    with serving(batch_fail_share=0.5) as server:
        assert [finish(server, file_of(1))["status"] for _ in range(16)] == states


def test_a_batch_is_created_although_the_connection_drops() -> None:
    with serving(batch_drop_share=1) as server:
        with pytest.raises((RemoteDisconnected, ConnectionError)):
            create(server, file_of(1), metadata={"alkd": "lost"})
        (listed,) = server.call("GET", "/v1/batches").body["data"]
        assert listed["metadata"] == {"alkd": "lost"}
        assert wait(server, listed["id"], is_over)["status"] == "completed"


def test_the_quota_holds_for_batches() -> None:
    with serving(quota_requests=3) as server:
        batch = finish(server, file_of(5))
        assert batch["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
        failed = results(server, batch["error_file_id"])["row 4"]["response"]
        assert failed["status_code"] == 429
        assert failed["body"]["error"]["code"] == "insufficient_quota"
        refused = finish(server, file_of(1))
        assert refused["errors"]["data"][0]["code"] == "billing_hard_limit_reached"
        assert server.bill()["requests"] == 3


def test_rates_and_faults_of_live_requests_do_not_touch_batches() -> None:
    with serving(requests_per_minute=1, rate_limited_share=1, drop_after_share=1) as server:
        assert finish(server, file_of(5))["request_counts"]["completed"] == 5


def test_a_server_without_batches() -> None:
    with serving(batches=False) as server:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches")):
            refused = server.call(method, path)
            assert refused.status == 404
            assert refused.body["error"]["message"]
        assert server.rank().status == 200


def test_a_key_is_demanded_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_KEY", "open sesame")
    routes = [("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/files/x"),
              ("GET", "/v1/files/x/content"), ("DELETE", "/v1/files/x"), ("POST", "/v1/batches"),
              ("GET", "/v1/batches"), ("GET", "/v1/batches/x"), ("POST", "/v1/batches/x/cancel"),
              ("POST", URL), ("GET", "/v1/models")]  # fmt: skip
    with serving(api_key_env="SIMULATED_KEY") as server:
        for method, path in routes:
            assert server.call(method, path).body["error"]["code"] == "invalid_api_key"
            assert server.call(method, path, Authorization="Bearer open sesame").status != 401


def test_a_batch_survives_the_deletion_of_its_input() -> None:
    with serving(batch_seconds=1) as server:
        batch = create(server, file_of(3)).body
        assert server.call("DELETE", f"/v1/files/{batch['input_file_id']}").status == 200
        assert wait(server, batch["id"], is_over)["request_counts"]["completed"] == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"input_file_id": "file-nothing"},
        {"input_file_id": 7},
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "1h"},
        {"metadata": {"a": 1}},
        {"metadata": {"a": "b" * 513}},
        {"metadata": {str(number): "" for number in range(17)}},
        {"metadata": []},
    ],
)
def test_a_batch_that_cannot_be_created(changed: dict[str, Any]) -> None:
    with serving() as server:
        refused = create(server, file_of(1), **changed)
        assert refused.status == 400
        assert server.call("GET", "/v1/batches").body["data"] == []


def test_batches_are_listed_newest_first() -> None:
    with serving() as server:
        ids = [create(server, file_of(1)).body["id"] for _ in range(25)][::-1]
        first = server.call("GET", "/v1/batches").body
        assert [batch["id"] for batch in first["data"]] == ids[:20]
        assert first["has_more"] is True
        rest = server.call("GET", f"/v1/batches?limit=100&after={first['last_id']}").body
        assert [batch["id"] for batch in rest["data"]] == ids[20:]
        assert rest["has_more"] is False
        assert server.call("GET", "/v1/batches?limit=101").status == 400
        assert server.call("GET", "/v1/batches/batch_nothing").status == 404
        assert server.call("POST", "/v1/batches/batch_nothing/cancel").status == 404
        assert server.call("POST", "/v1/batches", b"{").status == 400


def test_the_process_ends_when_told_with_a_batch_under_way() -> None:
    with running("--batch-seconds", "600", "--batch-line-error-share", "0.1") as (server, process):
        batch_id = create(server, file_of(3)).body["id"]
        assert show(server, batch_id)["status"] == "validating"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
