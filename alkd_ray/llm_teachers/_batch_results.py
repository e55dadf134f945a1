"""What a batch API sends, read leniently: batches, and the lines of files of results.

Endpoints that copy OpenAI's leave fields out and add others; what is missing or strange is borne.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

BatchState = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]

_OVER = frozenset({"failed", "completed", "expired", "cancelled"})
_MOST_SAID = 300  # characters of an error


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """What the endpoint says of a batch.

    Attributes:
        id: names it.
        state: OpenAI's; one that is not known is read as ``in_progress``.
        output_file_id: file of the answers; "" when there is none (yet).
        error_file_id: file of the lines without an answer; "" when there is none (yet).
        total: lines; 0 until the endpoint has counted them.
        completed: lines answered so far.
        failed: lines that were refused so far.
        problems: why the batch failed, a sentence each.
    """

    id: str
    state: BatchState
    output_file_id: str
    error_file_id: str
    total: int
    completed: int
    failed: int
    problems: tuple[str, ...]

    @property
    def is_over(self) -> bool:
        """Whether it will not change any more."""
        return self.state in _OVER


@dataclass(frozen=True, slots=True)
class BatchLine:
    """What became of one line.

    Attributes:
        custom_id: the line's, as it was given; "" when this line of the file cannot be read.
        raw: the response's body as JSON with sorted keys, all in ASCII; "" without a response.
        status_code: HTTP status of the line's response; 0 without one.
        error: one sentence; "" for an answer.
    """

    custom_id: str
    raw: str
    status_code: int
    error: str


def read_line(line: bytes) -> BatchLine:
    """One line of an output or error file; never fails."""
    try:
        parsed = json.loads(line)
        response = parsed.get("response") if isinstance(parsed, dict) else None
        response = response if isinstance(response, dict) else {}
        body = response.get("body")
        raw = "" if body is None else json.dumps(body, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return BatchLine("", "", 0, "a line of the file of results is not JSON")
    if not isinstance(parsed, dict) or not text_of(parsed.get("custom_id")):
        return BatchLine("", "", 0, "a line of the file of results names no request")
    error = _said(parsed.get("error"))
    code = response.get("status_code")
    status = code if type(code) is int else 200 if raw and not error else 0
    if not error and not 200 <= status < 300:
        error = f"HTTP {status} {_said(body)}".strip() if status else "there is no response"
    if not error and not raw:
        error = "the response has no body"
    return BatchLine(parsed["custom_id"], raw, status, error)


def read_status(batch: Mapping[str, Any]) -> BatchStatus | None:
    """Reads OpenAI's batch object; None where it has no id."""
    if not text_of(batch.get("id")):
        return None
    said, problems = batch.get("status"), list(_problems(batch.get("errors")))
    if said not in get_args(BatchState):
        problems.append(f"the endpoint gives an unknown status: {said!r}")
        said = "in_progress"
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    return BatchStatus(
        batch["id"],
        cast(BatchState, said),
        text_of(batch.get("output_file_id")),
        text_of(batch.get("error_file_id")),
        _count(counts.get("total")),
        _count(counts.get("completed")),
        _count(counts.get("failed")),
        tuple(problems),
    )


def says_full(text: str) -> bool:
    """Whether an error tells of a full queue, which empties as batches end.

    OpenAI and Azure fail a batch with ``token_limit_exceeded: Enqueued token limit reached``.
    """
    said = text.lower()
    return "token_limit_exceeded" in said or "queue" in said


def _problems(errors: Any) -> Iterator[str]:
    listed = errors.get("data") if isinstance(errors, dict) else errors
    for error in listed if isinstance(listed, list) else [listed]:
        line = error.get("line") if isinstance(error, dict) else None
        if said := _said(error):
            yield said if line is None else f"line {line}: {said}"


def _said(error: Any) -> str:
    """What an error object says, in one line; "" for nothing."""
    if isinstance(error, dict):
        if isinstance(error.get("error"), dict):
            return _said(error["error"])
        parts = [str(error[name]) for name in ("code", "message") if error.get(name)]
        return cut(": ".join(parts) or (json.dumps(error) if error else ""))
    return cut(error) if isinstance(error, str) else ""


def object_of(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def text_of(value: Any) -> str:
    """``value`` where it is a text, else ""."""
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def cut(text: str) -> str:
    """The beginning of ``text``, in one line."""
    return " ".join(text.split())[:_MOST_SAID]
