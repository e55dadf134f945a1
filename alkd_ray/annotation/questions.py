"""What is asked: one question a row, rendered when it is needed, found again by its key.

The key is the SHA-256 of the canonical request - endpoint, model, messages, parameters and prompt
version - so that an equal request, from whichever run, is the same question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from alkd_ray.annotation import parse, prompts
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.types import Catalogue, IntArray, RankRequest

NO_SESSION = -1
# Of 6 kB each. Larger passes render the others each time, rather than fill the memory.
MOST_KEPT = 4_000

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_SENT = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer's text was read as.

    Attributes:
        ranking: ``[<= wanted]`` int64 distinct candidates; empty for questions that want text.
        text: the text, for questions that want text.
        repairs: what had to be repaired, in order.
        failure: "" or why nothing could be read.
        ask_again: what to tell the endpoint when the question is worth asking once more, else "".
    """

    ranking: IntArray
    text: str
    repairs: tuple[str, ...]
    failure: str
    ask_again: str = ""

    @property
    def worth(self) -> tuple[bool, int]:
        """Orders two readings of one question: accepted before failed, then the longer one."""
        return (not self.failure, len(self.ranking))


class Question(Protocol):
    """One row's request, and how its answer is read."""

    @property
    def key(self) -> str:
        """SHA-256 of the canonical request, hex."""
        ...

    @property
    def kind(self) -> str:
        """``rank`` or ``hints``."""
        ...

    @property
    def prompt_version(self) -> str:
        """Version of the prompt's text."""
        ...

    @property
    def session_id(self) -> int:
        """The session, or :data:`NO_SESSION`."""
        ...

    @property
    def body(self) -> dict[str, Any]:
        """The request without its response format (which of them works is found out)."""
        ...

    @property
    def schema(self) -> dict[str, Any] | None:
        """JSON schema of the wanted answer; None for free text."""
        ...

    @property
    def max_output_tokens(self) -> int:
        """Limit of the output that is asked for, and held."""
        ...

    @property
    def wanted(self) -> int:
        """Items wanted; 0 for free text."""
        ...

    def read(self, text: str) -> Reading:
        """Reads an answer."""
        ...

    def ask_again(self, answer: str, problem: str) -> dict[str, Any]:
        """The request of the second, last attempt."""
        ...


@dataclass(frozen=True, slots=True)
class RankQuestion:
    """Rank these candidates for this session; see :class:`Question`."""

    key: str
    session_id: int
    body: dict[str, Any]
    schema: dict[str, Any]
    max_output_tokens: int
    candidates: IntArray
    titles: tuple[str, ...]
    wanted: int
    kind: str = "rank"
    prompt_version: str = prompts.RANK_VERSION

    def read(self, text: str) -> Reading:
        """Candidates out of the answer, repaired where that is safe."""
        found = parse.parse_ranking(text, self.candidates, self.titles, self.wanted)
        again = ""
        if parse.is_short(found, self.wanted):
            again = found.failure or (
                f"it named {len(found.ranking)} different candidates, {self.wanted} are wanted"
            )
        return Reading(found.ranking, "", found.repairs, found.failure, again)

    def ask_again(self, answer: str, problem: str) -> dict[str, Any]:
        """The same conversation with the answer and what is wrong with it."""
        messages = prompts.reask_messages(self.body["messages"], answer, problem)
        return {**self.body, "messages": messages}


@dataclass(frozen=True, slots=True)
class HintsQuestion:
    """Write down behaviour patterns; see :class:`Question`."""

    key: str
    body: dict[str, Any]
    max_output_tokens: int
    session_id: int = NO_SESSION
    schema: dict[str, Any] | None = None
    wanted: int = 0
    kind: str = "hints"
    prompt_version: str = prompts.HINTS_VERSION

    def read(self, text: str) -> Reading:
        """The text, trimmed."""
        hints = parse.parse_hints(text)
        failure = "" if hints else "empty answer"
        return Reading(np.zeros(0, np.int64), hints, (), failure, failure)

    def ask_again(self, answer: str, problem: str) -> dict[str, Any]:
        """The same conversation with the answer and what is wrong with it."""
        messages = prompts.reask_messages(self.body["messages"], answer, problem)
        return {**self.body, "messages": messages}


class _Kept(dict[int, "RankQuestion"]):
    """Questions as rendered; another process renders its own."""

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


@dataclass(frozen=True, slots=True)
class RankQuestions:
    """The ranking questions of a pass, rendered one at a time; small enough to be sent to workers.

    The first :data:`MOST_KEPT` that are looked at stay as they were rendered.

    Attributes:
        requests: what to ask.
        catalogue: the titles.
        domain: what the items are, in a word or two.
        endpoint: who is asked; its address is not part of the keys, its identity is.
        max_output_tokens: limit of one answer; None = what a ranking of that length takes.
    """

    requests: Sequence[RankRequest]
    catalogue: Catalogue
    domain: str
    endpoint: Endpoint
    max_output_tokens: int | None = None
    # Each is looked at four times in a pass: for its key, its body, to ask and to read.
    _keys: dict[int, str] = field(init=False, default_factory=dict, compare=False, repr=False)
    _kept: _Kept = field(init=False, default_factory=_Kept, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> RankQuestion:
        question = self._kept.get(index)
        if question is None:
            question = self._rendered(index)
            if len(self._kept) < MOST_KEPT:
                self._kept[index] = question
        return question

    def _rendered(self, index: int) -> RankQuestion:
        request = self.requests[index]
        titles = self._titles(request.candidates)
        limit = self.max_output_tokens or prompts.rank_output_tokens(request.wanted)
        messages = prompts.rank_messages(
            self._titles(request.history),
            titles,
            request.wanted,
            request.hints,
            self.domain,
        )
        body = request_body(self.endpoint, messages, limit)
        if index not in self._keys:
            self._keys[index] = key_of(self.endpoint, body, prompts.RANK_VERSION)
        return RankQuestion(
            key=self._keys[index],
            session_id=request.session_id,
            body=body,
            schema=prompts.ranking_schema(len(titles), request.wanted),
            max_output_tokens=limit,
            candidates=request.candidates,
            titles=titles,
            wanted=request.wanted,
        )

    def _titles(self, items: IntArray) -> tuple[str, ...]:
        return tuple(map(str, self.catalogue.titles[items].tolist()))


def hints_question(
    endpoint: Endpoint,
    examples: Sequence[prompts.HintExample],
    domain: str,
    max_output_tokens: int | None,
) -> HintsQuestion:
    """The question for behaviour patterns of ``examples``.

    A ``max_output_tokens`` that is larger than what hints take is for a model that thinks first.
    """
    messages = prompts.hints_messages(examples, domain)
    limit = max(prompts.HINTS_OUTPUT_TOKENS, max_output_tokens or 0)
    body = request_body(endpoint, messages, limit)
    return HintsQuestion(key_of(endpoint, body, prompts.HINTS_VERSION), body, limit)


def request_body(
    endpoint: Endpoint, messages: list[dict[str, str]], max_output_tokens: int
) -> dict[str, Any]:
    """A chat-completions request, response format left out."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        endpoint.output_limit_field: max_output_tokens,
        **endpoint.extra_body,
    }
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    return body


def key_of(endpoint: Endpoint, body: Mapping[str, Any], prompt_version: str) -> str:
    """SHA-256, hex, of what determines the answer."""
    canonical = [endpoint.identity, endpoint.structured_output, prompt_version, body]
    return hashlib.sha256(as_json(canonical).encode()).hexdigest()


def as_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return _CANONICAL.encode(value)


def body_in_bytes(body: Mapping[str, Any]) -> int:
    """UTF-8 bytes of a request's body without its response format."""
    return len(_SENT.encode(body).encode())


def size_in_bytes(body: Mapping[str, Any], schema: Mapping[str, Any] | None) -> int:
    """UTF-8 bytes of a request as it is sent at most, an upper bound of its prompt tokens.

    No tokenizer in use makes more tokens than bytes. The schema counts as well, since endpoints
    bill it as part of the prompt; chat templates add a few tokens a message.
    """
    return body_in_bytes(body) + size_around(body, schema)


def size_around(body: Mapping[str, Any], schema: Mapping[str, Any] | None) -> int:
    """The part of :func:`size_in_bytes` that is not the body."""
    return template_size(body) + schema_size(schema)


def template_size(body: Mapping[str, Any]) -> int:
    """The part of it that is for the chat template."""
    return 16 * len(body["messages"]) + 64


def schema_size(schema: Mapping[str, Any] | None) -> int:
    """The part of it that is for the schema."""
    return len(json.dumps(schema).encode()) if schema else 0
