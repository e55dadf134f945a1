"""From the body of a request to the body of an answer, faults included. No network here."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alkd_ray.llm_teachers import _title_reader
from alkd_ray.llm_teachers._behaviour import MODEL, Behaviour
from alkd_ray.llm_teachers._bill import Bill
from alkd_ray.seeds import derive

BYTES_PER_TOKEN = 4
DEFAULT_MAX_TOKENS = 4_096

_NUMBERED_TITLE = re.compile(r'^\s*(\d+)\.\s+(".*")\s*$', re.MULTILINE)
_WANTED = re.compile(r"\bexactly (\d+)\b")
_NOT_UNDERSTOOD = (
    "I am a simulated reader of titles. I can rank the numbered titles of a <candidates> block for "
    "a <session>, or describe the patterns of <example> blocks; I found neither here."
)
_NO_PATTERN = "The examples show no clear pattern."


_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}


class RefusedError(Exception):
    """A request that is answered with an error in OpenAI's shape.

    Attributes:
        status: HTTP status.
        code: OpenAI's machine-readable code; None for none.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The response's body."""
        kind = self.code or _ERROR_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that was found to be in order.

    Attributes:
        prompt: the text of the messages.
        prompt_tokens: its tokens.
        max_tokens: the output limit.
        digest: hash of the messages.
    """

    prompt: str
    prompt_tokens: int
    max_tokens: int
    digest: str


@dataclass(frozen=True, slots=True)
class Draw:
    """What decides on chance for one request.

    Attributes:
        seed: the endpoint's seed.
        request: hash of the request's messages.
        occurrence: how often that request came before.
    """

    seed: int
    request: str
    occurrence: int

    def uniform(self, purpose: str) -> float:
        """A number in [0, 1) of its own for each purpose."""
        return derive(self.seed, purpose, self.request, self.occurrence) / 2.0**63

    def happens(self, purpose: str, share: float) -> bool:
        """True with probability ``share``."""
        return share > 0 and self.uniform(purpose) < share


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint generated.

    Attributes:
        text: the content of the message.
        tokens: completion tokens, those of the reasoning included.
        is_cut: whether the output limit cut it.
        reasoning_tokens: written before the text, and not shown.
    """

    text: str
    tokens: int
    is_cut: bool
    reasoning_tokens: int = 0


def tokens_of(text: str) -> int:
    """A deterministic estimate: a token for every started 4 bytes of UTF-8."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


class Completions:
    """Answers requests and bills them, live ones and lines of batches alike.

    Equal requests are counted together, however they came, so that a request has the same first
    answer both ways.
    """

    def __init__(self, behaviour: Behaviour, bill: Bill, reasoning_tokens: int = 0) -> None:
        """Answers as ``behaviour`` says.

        Args:
            behaviour: how.
            bill: what the answers are charged to.
            reasoning_tokens: written before each answer, beyond the output limit. As some endpoints
                do, they are billed and in the usage's ``total_tokens``, not in its
                ``completion_tokens``.
        """
        self.behaviour = behaviour
        self.reasoning_tokens = reasoning_tokens
        self.bill = bill
        self._seen: Counter[str] = Counter()

    def next_draw(self, request: ChatRequest) -> Draw:
        """Chance for ``request``; the same until :meth:`count` is called."""
        return Draw(self.behaviour.seed, request.digest, self._seen[request.digest])

    def count(self, request: ChatRequest) -> None:
        """Notes that ``request`` came once more."""
        self._seen[request.digest] += 1

    def check_quota(self) -> None:
        """Lets pass what the quota leaves.

        Raises:
            RefusedError: it is used up.
        """
        quota = self.behaviour.quota_requests
        if quota is not None and len(self.bill.entries) >= quota:
            raise RefusedError(429, "You exceeded your current quota.", "insufficient_quota")

    def generate(self, request: ChatRequest, draw: Draw) -> Answer:
        """The answer; not billed yet."""
        generated = answer(request.prompt, request.max_tokens, self.behaviour, draw)
        reasoning = self.reasoning_tokens
        return replace(generated, tokens=generated.tokens + reasoning, reasoning_tokens=reasoning)

    def charge(
        self, request: ChatRequest, generated: Answer, *, in_batch: bool = False
    ) -> dict[str, Any]:
        """Bills an answer.

        Returns:
            the response's body, a ``chat.completion``.
        """
        share = self.behaviour.batch_price_share if in_batch else None
        entry = self.bill.add(
            request.digest, request.prompt_tokens, generated.tokens, batch_price_share=share
        )
        return {
            "id": f"chatcmpl-{request.digest}-{entry.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": generated.text},
                    "logprobs": None,
                    "finish_reason": "length" if generated.is_cut else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": entry.prompt_tokens,
                "completion_tokens": entry.completion_tokens - generated.reasoning_tokens,
                "total_tokens": entry.prompt_tokens + entry.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": generated.reasoning_tokens},
            },
        }


def read_request(body: Any, behaviour: Behaviour) -> ChatRequest:
    """Checks the body of a request.

    Args:
        body: the body, parsed.
        behaviour: what the endpoint accepts.

    Raises:
        RefusedError: says what is wrong with it.
    """
    if not isinstance(body, dict):
        raise RefusedError(400, "The body must be a JSON object.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, "'messages' must be a list of at least one message.")
    if body.get("model") != MODEL:
        raise RefusedError(
            404, f"The model {body.get('model')!r} does not exist; {MODEL} does.", "model_not_found"
        )
    if body.get("stream") or body.get("n", 1) != 1:
        raise RefusedError(400, "'stream' and 'n' above 1 are not supported.")
    for field in ("max_tokens", "max_completion_tokens"):
        value = body.get(field)
        if value is not None and (type(value) is not int or value < 1):
            raise RefusedError(400, f"'{field}' must be a whole number above 0, not {value!r}.")
    _check_format(body.get("response_format"), behaviour)
    prompt = "\n".join(_text_of(message) for message in messages)
    return ChatRequest(
        prompt,
        tokens_of(prompt),
        body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS,
        hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16],
    )


def _check_format(wanted: Any, behaviour: Behaviour) -> None:
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind == "json_schema" and not behaviour.json_schema:
        raise RefusedError(400, "'response_format.type' must be 'text' or 'json_object'.")
    if kind not in (None, "text", "json_object", "json_schema"):
        raise RefusedError(400, f"'response_format.type' is unknown: {kind!r}.")


def _text_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "\n".join(
            str(part.get("text", "")) if isinstance(part, dict) else "" for part in content
        )
    if not isinstance(content, str):
        raise RefusedError(400, "Each message needs a 'content' that is text.")
    if not is_unicode(content):
        raise RefusedError(400, "A message holds half of a surrogate pair.")
    return content


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8; half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def answer(prompt: str, max_tokens: int, behaviour: Behaviour, draw: Draw) -> Answer:
    """Answers a prompt from its text alone.

    Args:
        prompt: the text of the messages.
        max_tokens: the output limit.
        behaviour: how well, and with which faults.
        draw: chance.
    """
    candidates = _NUMBERED_TITLE.findall(_block(prompt, "candidates"))
    if candidates:
        text = _ranking(prompt, candidates, behaviour, draw)
    elif examples := _blocks(prompt, "example"):
        shown = [(_titles(e, "session"), _titles(e, "recommended")) for e in examples]
        text = "\n".join(_title_reader.patterns(shown)) or _NO_PATTERN
    else:
        text = _NOT_UNDERSTOOD
    if draw.happens("ignore max tokens", behaviour.ignore_max_tokens_share):
        text = _longer_than(text, max_tokens)
        return Answer(text, tokens_of(text), False)
    if tokens_of(text) <= max_tokens:
        return Answer(text, tokens_of(text), False)
    cut = text.encode()[: max_tokens * BYTES_PER_TOKEN].decode(errors="ignore")
    return Answer(cut, max_tokens, True)


def _ranking(
    prompt: str, numbered: Sequence[tuple[str, str]], behaviour: Behaviour, draw: Draw
) -> str:
    numbers = [int(number) for number, _ in numbered]
    titles = [_decoded(title) for _, title in numbered]
    asked = _WANTED.findall(prompt)
    wanted = min(int(asked[-1]), len(numbers)) if asked else len(numbers)
    order = _title_reader.rank(
        _titles(prompt, "session"),
        titles,
        _block(prompt, "hints"),
        noise=behaviour.noise,
        seed=behaviour.seed,
    )
    if not draw.happens("too many", behaviour.too_many_share):
        order = order[:wanted]
    ranking: list[int | str] = [numbers[place] for place in order]
    if draw.happens("repeated", behaviour.repeated_share):
        ranking[len(ranking) // 2 :] = ranking[: len(ranking) - len(ranking) // 2]
    if draw.happens("as titles", behaviour.as_titles_share):
        by_number = dict(zip(numbers, titles, strict=True))
        ranking = [by_number[int(number)] for number in ranking]
    if draw.happens("out of range", behaviour.out_of_range_share):
        ranking[::5] = [max(numbers) + 1 + place for place in range(len(ranking[::5]))]
    text = json.dumps({"ranking": ranking}, ensure_ascii=False)
    if draw.happens("truncated", behaviour.truncated_share):
        text = text[: len(text) * 2 // 3]
    if draw.happens("prose", behaviour.prose_share):
        text = f"Sure, here is my ranking:\n```json\n{text}\n```\nLet me know if you need more."
    return text


def _longer_than(text: str, max_tokens: int) -> str:
    sentence = "\nLet me explain how I arrived at this order."
    missing = max_tokens + 1 - tokens_of(text)
    return text + sentence * (1 + max(0, missing) * BYTES_PER_TOKEN // len(sentence))


def _titles(text: str, tag: str) -> list[str]:
    return [_decoded(title) for _, title in _NUMBERED_TITLE.findall(_block(text, tag))]


def _block(text: str, tag: str) -> str:
    """What stands in the first block of ``tag``, "" without one."""
    return next(iter(_blocks(text, tag)), "")


def _blocks(text: str, tag: str) -> list[str]:
    """What stands between ``<tag>`` and ``</tag>``, each alone on its line."""
    return re.findall(rf"^<{tag}>[ \t]*\n(.*?)^</{tag}>[ \t]*$", text, re.DOTALL | re.MULTILINE)


def _decoded(title: str) -> str:
    try:
        return json.loads(title).encode(errors="replace").decode()  # "\\ud800" is half a character
    except ValueError:
        return title.strip('"')
