r"""The two questions that an LLM teacher is asked, rendered from versioned text files.

``hints`` shows some training sessions with what the conventional teacher predicts for them and
asks for patterns of behaviour (prompt_smr of the ALKDRec paper, Module 1); ``rank`` asks for a
ranking of the candidates of one session (prompt_dst, Module 2). The paper's wording is in an
appendix that is not part of its published text; the wording here is this project's own.

Equal arguments give equal messages, to the byte: the messages are part of a request's key, so a
changed word is a new question that is paid for anew. A change of wording is therefore a new file
(``rank.v2.txt``) and a new version name.

Titles come from outside and are data. Each is written as a JSON string on one numbered line of its
own, with every character that could close a block, end the line, reorder or hide text, or begin a
control token, written as ``\uXXXX``; JSON reads the title back. So no title can pose as a part of
the prompt. Against a model that obeys text inside quotes no notation helps; the system message
tells it not to.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RANK_VERSION = "rank.v1"
HINTS_VERSION = "hints.v1"

# Of the 26,138 titles of the published Games data 43 are longer; the longest has 683 characters.
MAX_TITLE_CHARACTERS = 200
UNTITLED = "(untitled)"
MAX_PATTERNS = 10
# Ten patterns of at most 25 words take some 350 tokens in English, more in other scripts.
HINTS_OUTPUT_TOKENS = 600

_MAX_REPEATED_ANSWER_CHARACTERS = 4_000

# Characters that end a line, are invisible, or change the direction of text: the C0 and C1
# controls, soft hyphen, joiners, bidirectional marks, separators, variation selectors, byte-order
# mark, interlinear, shorthand and musical marks, tags; and lone surrogates, which UTF-8 cannot
# hold. A fixed list, not Unicode categories: those differ between Python versions, and the text
# is hashed.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f<>\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    # The bracket of a control token, which a server may read in a message as it does its own: those
    # of the tokenizers of Mistral, GLM, Kimi and MiniMax. Most others' begin with an angle bracket.
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_CONTENT|TOOL_RESULTS|ARGS"
    r"|CALL_ID|THINK|MODEL_SETTINGS|PREFIX|MIDDLE|SUFFIX|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO"
    r"|TRANSCRIBE|g?MASK|sMASK|BOS|EOS|EOT|PAD|UNK|start_header_id|end_header_id)\])"
    r"|\[(?=e~\[)|\](?=~!?b[\[\]])"
)
_SECTION = re.compile(r"^=== (system|user) ===\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class HintExample:
    """One session for the hints' prompt.

    Attributes:
        session: titles of its items, oldest first.
        recommended: titles that the conventional teacher ranks highest for it, best first.
    """

    session: Sequence[str]
    recommended: Sequence[str]


def rank_messages(
    history: Sequence[str], candidates: Sequence[str], wanted: int, hints: str, domain: str
) -> list[dict[str, str]]:
    """The messages that ask for the ``wanted`` most likely of ``candidates``.

    What all sessions share (system message, domain, hints) comes first, so that an endpoint that
    bills a repeated beginning at a lower rate can do so.

    Args:
        history: titles of the session's items, oldest first.
        candidates: titles of the candidates; the first has number 1.
        wanted: how many to name.
        hints: the hints' text, "" for none.
        domain: what the items are, e.g. the name of the dataset.

    Raises:
        ValueError: more, or fewer, wanted than can be named.
    """
    if not 1 <= wanted <= len(candidates):
        raise ValueError(f"wanted is {wanted}, it must lie in 1..{len(candidates)} (candidates)")
    notes = _plain(hints)
    return _messages(
        RANK_VERSION,
        domain=_quoted(domain),
        hints=(
            f"Patterns seen in other sessions of this domain:\n<hints>\n{notes}\n</hints>\n\n"
            if notes
            else ""
        ),
        session=_numbered(history),
        candidates=_numbered(candidates),
        candidate_count=str(len(candidates)),
        wanted=str(wanted),
    )


def hints_messages(examples: Sequence[HintExample], domain: str) -> list[dict[str, str]]:
    """The messages that ask for patterns of behaviour, as plain text, one a line.

    Args:
        examples: sessions and what the conventional teacher predicts for them.
        domain: what the items are, e.g. the name of the dataset.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("hints are written from examples, and there are none")
    blocks = [
        f"<example>\n<session>\n{_numbered(example.session)}\n</session>\n"
        f"<recommended>\n{_numbered(example.recommended)}\n</recommended>\n</example>"
        for example in examples
    ]
    return _messages(
        HINTS_VERSION,
        domain=_quoted(domain),
        examples="\n".join(blocks),
        example_count=str(len(examples)),
        patterns=str(MAX_PATTERNS),
    )


def reask_messages(
    messages: Sequence[dict[str, str]], answer: str, problem: str
) -> list[dict[str, str]]:
    """``messages``, the answer that was no good, and a request to answer again.

    The answer is shortened to 4,000 characters: what is wrong with it is said, and its tokens are
    paid for. The last line of the question is repeated word for word.

    Args:
        messages: the messages that were answered.
        answer: the answer as received.
        problem: what is wrong with it, e.g. ``short: 3 of 25``.
    """
    # Some chat templates refuse an empty turn; UTF-8 cannot hold half a surrogate pair.
    said = answer.strip()[:_MAX_REPEATED_ANSWER_CHARACTERS] or "(empty)"
    said = said.encode("utf-8", "replace").decode("utf-8")
    demand = messages[-1]["content"].rpartition("\n")[2]
    return [
        *(dict(message) for message in messages),
        {"role": "assistant", "content": said},
        {
            "role": "user",
            "content": f"That answer cannot be used as it is ({_plain(problem)}). "
            f"Answer the same question again, complete.\n{demand}",
        },
    ]


@functools.lru_cache(maxsize=64)
def ranking_schema(candidates: int, wanted: int) -> dict[str, Any]:
    """JSON schema of an answer: ``{"ranking": [wanted integers in 1..candidates]}``.

    It has the form that strict structured output asks for: every property required, no others
    allowed. ``minItems`` and ``maxItems`` are in it, since without them a small model under a
    grammar may stop early or go on to the token limit. llama.cpp honours them, and vLLM from
    xgrammar 0.1.19 on; OpenAI's strict mode refused them at first (400 "'minItems' is not
    permitted") and is reported to take them now. An endpoint that refuses the schema is asked for
    a plain JSON object instead (``structured_output: auto``). ``uniqueItems`` is left out: hardly
    any endpoint takes it, and the parser drops duplicates.

    Equal arguments give one and the same object: copy it before changing it.

    Args:
        candidates: C, how many candidates the prompt numbers.
        wanted: the ranking's length.
    """
    if candidates <= 1000:  # the most enum values that OpenAI takes in one schema
        number: dict[str, Any] = {"type": "integer", "enum": list(range(1, candidates + 1))}
    else:
        number = {"type": "integer", "minimum": 1, "maximum": candidates}
    return {
        "type": "object",
        "properties": {
            "ranking": {"type": "array", "items": number, "minItems": wanted, "maxItems": wanted}
        },
        "required": ["ranking"],
        "additionalProperties": False,
    }


def rank_output_tokens(wanted: int) -> int:
    """The output limit to ask for, in tokens: it bounds what one answer may cost.

    A number and its comma take 2 to 4 tokens, up to 6 in a list with one number a line; 8 leave
    room for tokenizers that split digits, 64 for braces, a code fence and a sentence around it.
    """
    return 8 * wanted + 64


def shown_title(title: str) -> str:
    """The title as a prompt shows it: "(untitled)" for none, at most 200 characters."""
    if not title.strip():
        return UNTITLED
    if len(title) > MAX_TITLE_CHARACTERS:
        return title[: MAX_TITLE_CHARACTERS - 1] + "…"
    return title


def _numbered(titles: Sequence[str]) -> str:
    # A list, not a generator: half the time, for each of a row's sixty titles.
    return "\n".join(
        [f"{number}. {quoted}" for number, quoted in enumerate(map(_quoted_title, titles), 1)]
    )


# Every title stands in many prompts. The catalogues in use have up to 26,000 titles.
@functools.lru_cache(maxsize=1 << 15)
def _quoted_title(title: str) -> str:
    return _quoted(shown_title(title))


def _quoted(text: str) -> str:
    """``text`` as a JSON string that stays on its line and shows all it holds."""
    return _UNSAFE.sub(_escaped, json.dumps(text, ensure_ascii=False))


@functools.lru_cache(maxsize=64)  # the hints of a run stand in all its prompts
def _plain(text: str) -> str:
    """Text over several lines with the same characters escaped; blank lines left out."""
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(_UNSAFE.sub(_escaped, line) for line in lines if line)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code > 0xFFFF:  # JSON writes such a character as a surrogate pair
        return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


def _messages(version: str, **values: str) -> list[dict[str, str]]:
    # Values are put in once and never read again: a "$" in a title means nothing.
    return [
        {"role": role, "content": string.Template(text).substitute(values)}
        if role == "user"
        else {"role": role, "content": text}
        for role, text in _sections(version)
    ]


@functools.cache
def _sections(version: str) -> tuple[tuple[str, str], ...]:
    """``(role, text)`` of each section of a prompt file, in order."""
    file = importlib.resources.files(__name__).joinpath(f"{version}.txt")
    _, *parts = _SECTION.split(file.read_text(encoding="utf-8"))
    return tuple(
        (role, text.strip("\n")) for role, text in zip(parts[::2], parts[1::2], strict=True)
    )
