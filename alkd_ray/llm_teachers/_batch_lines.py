"""The lines of batches at the simulated endpoint: what is wrong with them, what comes of them."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from typing import Any

from alkd_ray.llm_teachers._answers import is_unicode
from alkd_ray.llm_teachers._behaviour import MODEL

ENDPOINT = "/v1/chat/completions"
_LEFT_OUT = {
    "expired": "This request could not be executed before the completion window ended.",
    "cancelled": "The batch was cancelled before this request was executed.",
}


def lines_of(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and texts of the lines that are not blank."""
    for number, line in enumerate(io.BytesIO(content), 1):
        if line.strip():
            yield number, line


def problem(
    code: str, message: str, line: int | None = None, param: str | None = None
) -> dict[str, Any]:
    """An entry of the ``errors`` of a batch that failed."""
    return {"code": code, "line": line, "message": message, "param": param}


def problems_of(number: int, line: bytes, seen: set[str]) -> list[dict[str, Any]]:
    """What keeps a batch with this line from being started.

    Args:
        number: of the line.
        line: its text.
        seen: ``custom_id`` of the lines before; this one's is added.
    """
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        return [problem("invalid_json_line", "This line is not a JSON object.", number)]
    found = []
    custom_id, body = asked.get("custom_id"), asked.get("body")
    if not isinstance(custom_id, str) or not custom_id or not is_unicode(custom_id):
        said = "A text is needed."
        found.append(problem("missing_required_parameter", said, number, "custom_id"))
    elif custom_id in seen:
        said = f"The custom_id {custom_id!r} is that of an earlier line."
        found.append(problem("duplicate_custom_id", said, number, "custom_id"))
    else:
        seen.add(custom_id)
    if asked.get("method") != "POST":
        found.append(problem("invalid_method", "The method must be POST.", number, "method"))
    if asked.get("url") != ENDPOINT:
        said = f"The url must be the batch's endpoint, {ENDPOINT}."
        found.append(problem("invalid_url", said, number, "url"))
    if not isinstance(body, dict):
        said = "An object is needed."
        found.append(problem("missing_required_parameter", said, number, "body"))
    elif body.get("model") != MODEL:
        said = f"The model {body.get('model')!r} does not exist; {MODEL} does."
        found.append(problem("model_not_found", said, number, "body.model"))
    return found


def result(custom_id: str, status_code: int, body: dict[str, Any]) -> bytes:
    """The line of a request that was answered, or refused."""
    response = {"status_code": status_code, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
    return _line(custom_id, response, None)


def left_out(custom_id: str, why: str) -> bytes:
    """The line of a request that its batch did not reach, being ``expired`` or ``cancelled``."""
    return _line(custom_id, None, {"code": f"batch_{why}", "message": _LEFT_OUT[why]})


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()
