"""From the text of a prompt to the text of an answer, faults included. No network here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from alkd_ray.llm_teachers import _title_reader
from alkd_ray.llm_teachers._behaviour import Behaviour
from alkd_ray.seeds import derive

BYTES_PER_TOKEN = 4

_NUMBERED_TITLE = re.compile(r'^\s*(\d+)\.\s+(".*")\s*$', re.MULTILINE)
_WANTED = re.compile(r"\bexactly (\d+)\b")
_NOT_UNDERSTOOD = (
    "I am a simulated reader of titles. I can rank the numbered titles of a <candidates> block for "
    "a <session>, or describe the patterns of <example> blocks; I found neither here."
)
_NO_PATTERN = "The examples show no clear pattern."


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
        tokens: completion tokens.
        is_cut: whether the output limit cut it.
    """

    text: str
    tokens: int
    is_cut: bool


def tokens_of(text: str) -> int:
    """A deterministic estimate: a token for every started 4 bytes of UTF-8."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


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
        return json.loads(title)
    except ValueError:
        return title.strip('"')
