"""Chat-completions answers as endpoints send them: text, usage, finish reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from alkd_ray.types import Usage

_MOST_TOKENS = 10**8


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Attributes:
        raw: the response's body, exactly as received.
        text: the message's content, "" when there is none.
        finish_reason: as the endpoint says, "" when it does not.
        usage: tokens billed; None when the endpoint reports none.
        is_completion: False for what only came in an answer's place, such as an error, or a page
            of a server in between.
    """

    raw: str
    text: str
    finish_reason: str
    usage: Usage | None
    is_completion: bool = True


def read_answer(raw: str) -> Answer:
    """Text, usage and finish reason of a response's body; lenient, since it was paid for."""
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):  # the latter: nested beyond reason
        return Answer(raw, "", "not JSON", None, False)
    if not isinstance(parsed, dict):
        return Answer(raw, "", "not an object", None, False)
    choices = parsed.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    first = first if isinstance(first, dict) else {}
    message = first.get("message")
    content = message.get("content") if isinstance(message, dict) else ""
    if isinstance(content, list):  # some endpoints answer in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return Answer(
        raw,
        content if isinstance(content, str) else "",
        str(first.get("finish_reason") or ""),
        _usage(parsed.get("usage")),
        # Some send "error": null along with every answer.
        isinstance(choices, list) and not parsed.get("error"),
    )


def _usage(given: Any) -> Usage | None:
    if not isinstance(given, dict):
        return None
    prompt, completion = given.get("prompt_tokens"), given.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    total = given.get("total_tokens")
    if isinstance(total, int):  # some count what a model thinks there alone, and bill it as output
        completion = max(completion, total - prompt)
    if not (0 <= prompt <= _MOST_TOKENS and 0 <= completion <= _MOST_TOKENS):
        return None  # no endpoint can have billed that
    details = given.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    cached = cached if isinstance(cached, int) else 0
    return Usage(prompt, completion, min(max(cached, 0), prompt))
