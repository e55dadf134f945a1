"""What a reader of titles knows: series, volumes, creators, genres.

It sees the titles of one session and of its candidates, and nothing else: no catalogue, no counts,
no dataset. Titles of other kinds are read as far as their words go.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from alkd_ray.seeds import derive

_ROMAN_DIGITS = {"i": 1, "v": 5, "x": 10, "l": 50}
_NUMBER = r"(?P<number>\d{1,3}|[ivxl]{1,8})"
_MARKED_VOLUME = re.compile(
    r"[\s,:;(\[]*(?:\b(?:volume|vol|part|book|episode|chapter|season|no)\b\.?|#)\s*"
    + _NUMBER
    + r"\b[)\]]?",
    re.IGNORECASE,
)
_TRAILING_VOLUME = re.compile(r"\s(?P<number>\d{1,2}|[IVX]{2,5})$")
_YEAR = re.compile(r"\s*[(\[](?:1[89]|20)\d\d[)\]]")
_WORD = re.compile(r"[^\W\d_]{3,}")
_EMPTY_WORDS = frozenset(("the", "and", "for", "with", "from", "that", "this"))

# How much each kind of evidence weighs; the order of the LLM's list settles what is left.
_NEXT_VOLUME, _LATER_VOLUME, _EARLIER_VOLUME, _SAME_SERIES, _NEARNESS = 4.0, 2.0, 1.5, 2.0, 1.0
_SAME_CREATOR, _SAME_GENRE, _SAME_WORDS, _LIST_ORDER = 1.0, 1.0, 0.5, 0.5
_FORGETTING = 0.8  # weight of a title against the one read after it
_HINTED = 1.25  # weight of evidence that the hints speak of


@dataclass(frozen=True, slots=True)
class ReadTitle:
    """A title, taken apart.

    Attributes:
        series: the name without volume, in lower case.
        volume: the volume; None where the title has none.
        creators: parts that look like names of people, in lower case.
        genres: the other parts, in lower case.
        words: telling words of the series or title proper, in lower case.
    """

    series: str
    volume: int | None
    creators: frozenset[str]
    genres: frozenset[str]
    words: frozenset[str]


@lru_cache(maxsize=65_536)
def read_title(title: str) -> ReadTitle:
    """Takes ``name, volume - part - part`` apart; every piece but the name may be missing."""
    name, *parts = (part.strip() for part in _YEAR.sub("", title).split(" - "))
    found = _MARKED_VOLUME.search(name) or _TRAILING_VOLUME.search(name)
    volume = None
    if found is not None and found.start() > 0:
        volume = _as_number(found["number"])
        name = name if volume is None else name[: found.start()].strip()
    creators = frozenset(part.lower() for part in parts if _is_a_person(part))
    words = frozenset(word.lower() for word in _WORD.findall(name)) - _EMPTY_WORDS
    return ReadTitle(
        name.lower(),
        volume,
        creators,
        frozenset(part.lower() for part in parts if part) - creators,
        words,
    )


def rank(
    history: Sequence[str],
    candidates: Sequence[str],
    hints: str = "",
    *,
    noise: float,
    seed: int,
) -> list[int]:
    """All candidates by what their titles say, the most likely next one first.

    The next volume of a series that was begun comes first, then other volumes of it by nearness,
    then books of the same creator and genre; recent titles weigh more. What the titles leave open
    keeps the order of the list, as LLMs tend to do (Hou et al., Large Language Models are
    Zero-Shot Rankers for Recommender Systems, ECIR 2024).

    Args:
        history: titles read, oldest first.
        candidates: titles to rank.
        hints: patterns; evidence of a kind that they speak of weighs a quarter more.
        noise: standard deviation of the normal noise on each score; evidence is of order 1.
        seed: draws the noise, together with the texts: the same question gets the same answer.

    Returns:
        0-based numbers of the candidates.
    """
    read = [read_title(title) for title in history]
    weights = [_FORGETTING**age for age in range(len(read) - 1, -1, -1)]
    question = ("answer", *history, "", *candidates, "", hints)
    draws = random.Random(derive(seed, *question))  # noqa: S311 (no secret)
    spoken_of = hints.lower()
    series_factor = _HINTED if "volume" in spoken_of or "series" in spoken_of else 1.0
    creator_factor = _HINTED if "creator" in spoken_of or "author" in spoken_of else 1.0
    genre_factor = _HINTED if "genre" in spoken_of else 1.0
    scores = []
    for place, title in enumerate(candidates):
        candidate = read_title(title)
        score = (
            series_factor * _series_evidence(candidate, read, weights)
            + creator_factor * _SAME_CREATOR * _share(candidate.creators, read, weights, "creators")
            + genre_factor * _SAME_GENRE * _share(candidate.genres, read, weights, "genres")
            + _SAME_WORDS * _word_evidence(candidate, read)
            + _LIST_ORDER * (1 - place / len(candidates))
            + noise * draws.gauss(0, 1)
        )
        scores.append(score)
    return sorted(range(len(scores)), key=lambda number: -scores[number])


def patterns(examples: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[str]:
    """Short general patterns that the examples show, the most frequent first; no item names.

    Args:
        examples: titles of a session, oldest first, and titles recommended for it.
    """
    steps = [
        (read_title(a), read_title(b))
        for session, _ in examples
        for a, b in itertools.pairwise(session)
    ]
    steps += [
        (read_title(session[-1]), read_title(title))
        for session, recommended in examples
        if session
        for title in recommended[:3]
    ]
    if not steps:
        return []
    shares = {
        "Readers who have begun a series go on with its next volume.": _of(
            steps, lambda a, b: a.series == b.series and _gap(a, b) == 1
        ),
        "Readers stay with a series, in whatever order of volumes.": _of(
            steps, lambda a, b: a.series == b.series and _gap(a, b) != 1
        ),
        "Readers stay in one genre through a session.": _of(
            steps, lambda a, b: bool(a.genres & b.genres)
        ),
        "Readers follow a creator from one work to the next.": _of(
            steps, lambda a, b: bool(a.creators & b.creators) and a.series != b.series
        ),
        "Readers turn to something different now and then.": _of(
            steps, lambda a, b: not (a.genres & b.genres or a.creators & b.creators)
        ),
    }
    kept = sorted((share, line) for line, share in shares.items() if share >= 0.05)
    return [f"{line} ({share:.0%} of steps)" for share, line in reversed(kept)]


def _series_evidence(
    candidate: ReadTitle, read: Sequence[ReadTitle], weights: Sequence[float]
) -> float:
    same = [place for place, title in enumerate(read) if title.series == candidate.series]
    if not same or not candidate.series:
        return 0.0
    weight = weights[same[-1]]
    gap = _gap(read[same[-1]], candidate)
    if gap is None:
        return _SAME_SERIES * weight
    if gap == 1:
        return _NEXT_VOLUME * weight
    side = _LATER_VOLUME if gap > 0 else _EARLIER_VOLUME
    return weight * (side + _NEARNESS / max(1, abs(gap)))


def _share(
    wanted: frozenset[str], read: Sequence[ReadTitle], weights: Sequence[float], kind: str
) -> float:
    """Weighted share of the titles read that have one of the parts ``wanted``."""
    if not wanted or not read:
        return 0.0
    having = sum(
        weight
        for title, weight in zip(read, weights, strict=True)
        if not wanted.isdisjoint(getattr(title, kind))
    )
    return having / sum(weights)


def _word_evidence(candidate: ReadTitle, read: Sequence[ReadTitle]) -> float:
    """Largest Jaccard similarity of words with a title read, 0 to 1."""
    best = 0.0
    for title in read:
        union = len(candidate.words | title.words)
        if union:
            best = max(best, len(candidate.words & title.words) / union)
    return best


def _gap(earlier: ReadTitle, later: ReadTitle) -> int | None:
    if earlier.volume is None or later.volume is None:
        return None
    return later.volume - earlier.volume


def _of(steps, holds) -> float:
    return sum(holds(a, b) for a, b in steps) / len(steps)


def _is_a_person(part: str) -> bool:
    words = part.split()
    return len(words) >= 2 and all(word[0].isupper() for word in words)


def _as_number(text: str) -> int | None:
    """A number in digits or Roman numerals."""
    if text.isdigit():
        return int(text)
    digits = [_ROMAN_DIGITS[digit] for digit in text.lower()]
    following = [*digits[1:], 0]
    return sum(-d if d < n else d for d, n in zip(digits, following, strict=True)) or None
