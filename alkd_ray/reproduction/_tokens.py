"""Tokens of requests and answers, without the model's tokenizer: from bytes, with a range.

========= ======================== ========================= ===================================
          a prompt                 an answer in titles       an answer in numbers
========= ======================== ========================= ===================================
low       a token for each piece   the same                  the same, written without blanks
expected  a token for 4 bytes of   as many tokens a piece    3 tokens an item and 12, as in all
          the request, as in all   as in its prompt          plans
          plans
high      3 tokens for 2 pieces    the same                  4 tokens an item and 12
========= ======================== ========================= ===================================

Low is a bound: no text has fewer tokens than pieces (see :func:`pieces`). High is an assumption;
names in English titles take some 1.2 to 1.3 tokens a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from alkd_ray.annotation.experience import BYTES_PER_TOKEN, TOKENS_AROUND, TOKENS_PER_ITEM
from alkd_ray.annotation.prompts import shown_title

TOKENS_PER_PIECE_HIGH = 1.5
TOKENS_PER_ITEM_HIGH = 4

# GPT-4's tokenizer (cl100k_base) cuts a text at least between these before it merges any bytes: a
# word with the one blank or sign before it, up to three digits, signs in a row with a blank before
# and line ends behind, blanks. (Fractions and superscripts beside digits are cut too often here.)
_PIECE = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*|\s+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Range:
    """A number that is not known for sure."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        """All three multiplied."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)


def mean(ranges: Sequence[Range]) -> Range:
    """The mean of one range or more, bound by bound."""
    count = len(ranges)
    return Range(
        sum(one.low for one in ranges) / count,
        sum(one.expected for one in ranges) / count,
        sum(one.high for one in ranges) / count,
    )


def pieces(text: str) -> int:
    """Least number of tokens of a text: GPT-4's tokenizer makes at least one of each piece."""
    return len(_PIECE.findall(text))


def of_prompt(text: str, request_bytes: int) -> Range:
    """Tokens of a prompt.

    Args:
        text: its messages, one after another.
        request_bytes: UTF-8 bytes of the request's body, which plans go by.
    """
    low = pieces(text)
    high = TOKENS_PER_PIECE_HIGH * low
    return Range(low, min(max(low, request_bytes / BYTES_PER_TOKEN), high), high)


def of_numbers(numbers: Sequence[int]) -> Range:
    """Tokens of an answer that names candidates by number, in the form that is asked for."""
    compact = json.dumps({"ranking": list(numbers)}, separators=(",", ":"))
    count = len(numbers)
    return Range(
        pieces(compact),
        count * TOKENS_PER_ITEM + TOKENS_AROUND,
        count * TOKENS_PER_ITEM_HIGH + TOKENS_AROUND,
    )


def of_titles(titles: Sequence[str], prompt: Range) -> Range:
    """Tokens of an answer that lists titles in numbered lines, ``prompt`` being its prompt's."""
    lines = (f"{place}. {shown_title(title)}" for place, title in enumerate(titles, 1))
    low = pieces("\n".join(lines))
    return Range(low, low * prompt.expected / prompt.low, TOKENS_PER_PIECE_HIGH * low)
