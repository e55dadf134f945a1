"""Whatever the answer, the ranking is a list of distinct candidates; and forms keep the ranking."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray.annotation.parse import (
    ParsedRanking,
    _plain_ranking,
    _repaired_ranking,
    parse_hints,
    parse_ranking,
    parse_recorded,
)

SIZE = 20
WORDS = ("amber", "brook", "cedar", "delta", "ember", "frost", "grove", "haven", "inlet", "jewel")
TITLES = [f"{WORDS[n % 10]} {WORDS[(3 * n + 1) % 10]} {chr(97 + n)}" for n in range(SIZE)]
CANDIDATES = np.arange(SIZE) * 7 + 100

# What answers are made of, more often than arbitrary text would be.
PIECES = st.sampled_from(
    [
        "[", "]", "{", "}", '"', "'", ",", ":", "\\", "\n", " ", "```", "```json", "ranking",
        '"ranking": ', "1. ", "- ", "#", "12", "3", "0", "-4", "99", "3.5", "true", "null", "(",
        ")", "<think>", "</think>", "and ", " > ", '{"number": 4}', TITLES[0], TITLES[1].upper(),
        TITLES[2][:-3], "I'm sorry", "|", "→", "\u0663", "²", "\ud800", "\x00",
    ]
)  # fmt: skip
ANSWERS = st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.integers(-2, 25) | st.sampled_from(TITLES),
    lambda inner: st.lists(inner, max_size=8)
    | st.dictionaries(st.sampled_from(["ranking", "number", "title", "1", "2", "x"]), inner),
    max_leaves=30,
)  # fmt: skip
RANKINGS = st.permutations(range(SIZE)).flatmap(
    lambda order: st.integers(4, SIZE).map(lambda length: order[:length])
)


def check(parsed: ParsedRanking, allowed: set[int], wanted: int) -> None:
    ranking = parsed.ranking.tolist()
    assert len(set(ranking)) == len(ranking) <= wanted
    assert set(ranking) <= allowed
    assert bool(ranking) != bool(parsed.failure)
    assert not ranking or len(ranking) * 5 >= wanted
    assert (len(ranking) < wanted and not parsed.failure) == any(
        name.startswith("short") for name in parsed.repairs
    )


@settings(max_examples=600, deadline=None)
@given(ANSWERS, st.integers(1, SIZE))
def test_any_text(text, wanted):
    parsed = parse_ranking(text, CANDIDATES, TITLES, wanted)
    check(parsed, set(CANDIDATES.tolist()), wanted)
    assert len(parse_hints(text)) <= 3000


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from([None, 2]), st.integers(0, 200))
def test_any_json_whole_or_cut(value, indent, length):
    text = json.dumps(value, indent=indent)
    for answer in (text, text[:length]):
        check(parse_ranking(answer, CANDIDATES, TITLES, 5), set(CANDIDATES.tolist()), 5)


BLANKS = st.text(st.sampled_from(" \n\r\t\x1c\xa0\u2028\ufeff"), max_size=2) | st.just(" " * 70)
ALL_NUMBERS = [str(number + 1) for number in range(SIZE)]
ODD_NUMBERS = st.sampled_from(["007", "1.0", "1e0", "\u0663", "0000012", "-0"])
NUMBERS = st.lists(st.integers(-1, SIZE + 2).map(str) | ODD_NUMBERS, max_size=SIZE + 2)


@settings(max_examples=1000, deadline=None)
@given(RANKINGS.map(lambda order: [str(number + 1) for number in order]) | NUMBERS, st.data())
def test_a_plain_answer_is_read_as_if_it_were_no_plain_one(numbers, data):
    blanks = [data.draw(st.just("") | BLANKS) for _ in range(8)]
    marks = ["{", '"ranking"', ":", "[", f"{blanks[7]},".join(numbers), "]", "}", ""]
    text = "".join(blank + mark for blank, mark in zip(blanks, marks, strict=True))
    wanted = data.draw(st.just(max(1, len(numbers))) | st.integers(1, SIZE))
    plain = _plain_ranking(text, CANDIDATES, wanted)
    repaired = _repaired_ranking(text, CANDIDATES, TITLES, wanted)
    if plain is not None:
        assert plain.ranking.tolist() == repaired.ranking.tolist()
        assert plain.ranking.dtype == repaired.ranking.dtype
        assert (plain.repairs, plain.failure) == (repaired.repairs, repaired.failure) == ((), "")
    # What is faultless, as JSON goes, is never left to the slow way.
    elif len(set(numbers)) == len(numbers) == wanted and set(numbers) <= set(ALL_NUMBERS):
        assert set("".join(blanks)) - set(" \n\r\t")


@settings(max_examples=400, deadline=None)
@given(ANSWERS | JSON.map(json.dumps), st.integers(1, SIZE))
def test_no_other_answer_is_taken_for_a_plain_one(text, wanted):
    plain = _plain_ranking(text, CANDIDATES, wanted)
    if plain is not None:
        repaired = _repaired_ranking(text, CANDIDATES, TITLES, wanted)
        assert plain.ranking.tolist() == repaired.ranking.tolist()
        assert (repaired.repairs, repaired.failure) == ((), "")


def in_many_forms(order: list[int]) -> list[str]:
    numbers = [number + 1 for number in order]
    titles = [TITLES[number] for number in order]
    both = list(zip(numbers, titles, strict=True))
    return [
        json.dumps({"ranking": numbers}),
        json.dumps({"ranking": numbers}, indent=2),
        f"Well, of these {SIZE} I choose:\n```json\n{json.dumps(numbers)}\n```\nThat was 1 list.",
        json.dumps([str(number) for number in numbers]),
        json.dumps({"ranking": titles}),
        json.dumps({"ranking": [{"number": n, "title": t, "score": 7} for n, t in both]}),
        json.dumps({"ranking": [{"rank": r, "title": t} for r, t in enumerate(titles, 1)]}),
        json.dumps([f"{n}. {t}" for n, t in both]),
        json.dumps({str(place): number for place, number in enumerate(numbers, 1)}),
        "\n".join(map(str, numbers)),
        "\n".join(f"{place}. {number}" for place, number in enumerate(numbers, 1)),
        "\n".join(f"{place}. {title.upper()}" for place, title in enumerate(titles, 1)),
        "\n".join(f"{place}) **{t}** - as {n} is" for place, (n, t) in enumerate(both, 1)),
        "\n".join(f"- {n}: {t}" for n, t in both),
        ", ".join(map(str, numbers)),
        "My ranking: " + " > ".join(map(str, numbers)),
        "; ".join(titles),
        f'{{"ranking": {json.dumps(numbers)[:-1]}, ',
        json.dumps({"ranking": numbers + numbers + [0, 77]}),
    ]


@settings(max_examples=60, deadline=None)
@given(RANKINGS)
def test_every_form_keeps_the_ranking(order):
    wanted = CANDIDATES[np.array(order)].tolist()
    for text in in_many_forms(list(order)):
        parsed = parse_ranking(text, CANDIDATES, TITLES, len(order))
        assert parsed.ranking.tolist() == wanted, (text, parsed)


@settings(max_examples=200, deadline=None)
@given(RANKINGS, st.integers(0, 200))
def test_a_cut_answer_keeps_a_true_beginning(order, length):
    text = json.dumps({"ranking": [number + 1 for number in order]})[:length]
    found = parse_ranking(text, CANDIDATES, TITLES, len(order)).ranking.tolist()
    assert found == CANDIDATES[np.array(order)].tolist()[: len(found)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 30)), st.integers(1, 25), st.integers(1, 25))
def test_recorded(items, num_items, wanted):
    parsed = parse_recorded(np.array(items, np.int64), num_items, wanted)
    check(parsed, set(range(num_items)), wanted)
    naive = []
    for item in items:
        if 0 <= item < num_items and item not in naive:
            naive.append(item)
    if not parsed.failure:
        assert parsed.ranking.tolist() == naive[:wanted]
