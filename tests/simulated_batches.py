"""Batches of the simulated endpoint for tests, over plain HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

from alkd_ray.llm_teachers._behaviour import MODEL
from tests.simulated_server import PATIENCE_SECONDS, Reply, Server, question

URL = "/v1/chat/completions"


def line(number: int, **changed: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": question(number)}
    return {"custom_id": f"row {number}", "method": "POST", "url": URL, "body": body} | changed


def file_of(count: int, prefix: str = "row") -> bytes:
    lines = (line(number, custom_id=f"{prefix} {number}") for number in range(count))
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def form(content: bytes, purpose: str = "batch") -> tuple[bytes, str]:
    """A multipart form and its content type."""
    head = (
        f'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        '--edge\r\nContent-Disposition: form-data; name="file"; filename="input.jsonl"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def upload(server: Server, content: bytes, purpose: str = "batch") -> Reply:
    body, kind = form(content, purpose)
    return server.call("POST", "/v1/files", body, **{"Content-Type": kind})


def create(server: Server, content: bytes, **fields: Any) -> Reply:
    asked = {
        "input_file_id": upload(server, content).body["id"],
        "endpoint": URL,
        "completion_window": "24h",
    }
    return server.call("POST", "/v1/batches", json.dumps(asked | fields).encode())


def show(server: Server, batch_id: str) -> dict[str, Any]:
    return server.call("GET", f"/v1/batches/{batch_id}").body


def wait(server: Server, batch_id: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until(batch := show(server, batch_id)):
        assert time.monotonic() < deadline, f"still {batch}"
        time.sleep(0.02)
    return batch


def is_over(batch: dict[str, Any]) -> bool:
    return batch["status"] in ("failed", "completed", "expired", "cancelled")


def finish(server: Server, content: bytes) -> dict[str, Any]:
    return wait(server, create(server, content).body["id"], is_over)


def download(server: Server, file_id: str) -> bytes:
    connection = HTTPConnection(server.host, server.port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", f"/v1/files/{file_id}/content")
        return connection.getresponse().read()
    finally:
        connection.close()


def results(server: Server, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a file by custom_id; none without a file."""
    if file_id is None:
        return {}
    lines = [json.loads(line) for line in download(server, file_id).splitlines()]
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in lines)
    return {line["custom_id"]: line for line in lines}
