"""The parser on the shapes that answers have, each with the reading that a person would give."""

import json
import time

import numpy as np
import pytest

from alkd_ray.annotation._titles import TitleIndex
from alkd_ray.annotation.parse import (
    is_short,
    parse_hints,
    parse_ranking,
    parse_recorded,
)

TITLES = [
    "Heat",
    "Halo 3",
    "Rocky II",
    "Hamlet",
    "Hamlet",
    "21",
    "1984",
    "Grand Theft Auto IV",
    "The Good, the Bad and the Ugly",
    "12 Angry Men",
    "Alien: Resurrection",
    "Se7en",
    "",
    "Borat: Cultural Learnings of America for Make Benefit Glorious Nation of Kazakhstan",
    "Toy Story (1995)",
    "Amélie",
    "Up",
    "[REC]",
    "$",
    "Die Hard",
    "Die Hard 2",
    "Barbie &amp; Ken",
    'Say "Cheese"',
    "Long " + "x" * 300,
] + [f"Filler {number}" for number in range(25, 51)]
# Items are not the candidates' numbers: number 1 is item 1001.
CANDIDATES = np.arange(1001, 1051)
RANKING = [12, 5, 7, 40, 1]
LIST = str(RANKING)


def read(text, wanted=5):
    parsed = parse_ranking(text, CANDIDATES, TITLES, wanted)
    assert parsed.ranking.dtype == np.int64
    return [int(item) - 1000 for item in parsed.ranking], parsed.repairs, parsed.failure


CLEAN = [
    ('{"ranking": [12, 5, 7, 40, 1]}', ()),
    ('{"ranking":[12,5,7,40,1],"reason":"[3, 4] and 2, 3, 6"}', ()),
    ('\ufeff \n{"ranking": [12, 5, 7, 40, 1]}\n', ()),
    (LIST, ("no object around the list",)),
    (f'```json\n{{"ranking": {LIST}}}\n```', ("code fence",)),
    (f'In 2007: {{"ranking": {LIST}}} - those 3.', ("prose around the answer",)),
    (
        f"Sure:\n```\n{LIST}\n```\nEnjoy!",
        ("code fence", "prose around the answer", "no object around the list"),
    ),
    (f'<think>[1, 2, 3, 4, 6]</think>{{"ranking": {LIST}}}', ("thinking before the answer",)),
    (f"not [1, 2, 3, 4, 6] but {LIST}", ("prose around the answer", "no object around the list")),
    (f'{{"ranking": {LIST}}} from [1, 2, 3, 4, 6, 8]', ("prose around the answer",)),
    ('{"ranking": [12, 5, 7, 40, 1}', ("missing bracket",)),
    ('{"ranking": [12, 5, 7, 40, 1,]', ("truncated JSON",)),
    ('{"ranking": [12, 5, 7, 40, 1, 2', ("truncated JSON",)),
    ('{"ranking": ["12", "5", "7", "40", "1"]}', ("numbers as text: 5",)),
    ('{"ranking": ["#12", 5, "7", 40.0, 1]}', ("numbers as text: 2",)),
    ('{"ranking": "12, 5, 7, 40, 1"}', ("numbers in running text",)),
    ('{"1": 12, "2": 5, "3": 7, "4": 40, "5": 1}', ("an object instead of a list",)),
    ("12\n5\n7\n40\n1", ("a list in lines",)),
    ("- 12\n* 5\n• 7\n\n- 40\n- 1", ("a list in lines",)),
    ("1. 12\n2. 5\n3. 7\n4. 40\n5. 1", ("a list in lines", "numbered list: 5")),
    ("1) **12** - x\n2) **5** - y\n3) 7\n4) 40\n5) 1", ("a list in lines", "numbered list: 5")),
    ("12. why\n5. why\n7. why\n40. why\n1. why", ("a list in lines", "numbers with text: 5")),
    ("12, 5, 7, 40, 1", ("numbers in running text",)),
    ("The ranking: 12 > 5 > 7 > 40 > 1.", ("numbers in running text",)),
    ("12 5 7 40 1", ("numbers in running text",)),
    ("12, 5,\n7, 40, 1", ("numbers in running text",)),
    ("Of 2 films in 1999, I take 12, 5, 7, 40, and 1.", ("numbers in running text",)),
]


@pytest.mark.parametrize(("text", "repairs"), CLEAN, ids=[text for text, _ in CLEAN])
def test_the_same_ranking_in_many_shapes(text, repairs):
    assert read(text) == (RANKING, repairs, "")


TITLED = [
    ('["heat", "HALO  3!", "up"]', [1, 2, 17], "titles instead of numbers: 3"),
    ('["Hamlet", "Hamlet", "Up"]', [4, 5, 17], "equal titles: 2"),
    ('["5. Hamlet", "Hamlet (candidate 4)", "Up"]', [5, 4, 17], "numbers with text: 2"),
    ('["21", "1984", "Heat", "Up", "$"]', [6, 7, 1, 17, 19], "titles instead of numbers: 5"),
    ('["21", "3", "5", "Up"]', [21, 3, 5, 17], "numbers as text: 3"),
    ("[21, 1984, 5]", [21, 7, 5], "titles instead of numbers: 1"),
    ('["Barbie & Ken", "Say \\"Cheese\\"", "[REC]"]', [22, 23, 18], "titles instead of numbers: 3"),
    ('["Long ' + "x" * 194 + '…", "$", "Up"]', [24, 19, 17], "titles instead of numbers: 3"),
    ('["Rocky 2", "Toy Story", "Heat (1995)"]', [3, 15, 1], "near titles: 2"),
    ('["Borat: Cultural", "Alien Resurection", "Se7en"]', [14, 11, 12], "near titles: 2"),
    ('[{"number": 3, "title": "Rocky II"}, {"id": "5"}, {"title": "Up"}]', [3, 5, 17], "objects"),
    ('[{"candidate": "Up", "number": 2}, {"item": 5}, {"no": 7}]', [17, 5, 7], "objects"),
    ('[[12, "Se7en"], [5, "Hamlet"], [7, "1984"]]', [12, 5, 7], "numbers with text: 3"),
    ('{"ranking": {"1": "Up", "2": "Heat", "3": "Se7en"}}', [17, 1, 12], "an object instead"),
    ("[Halo 3, Die Hard 2, Up]", [2, 21, 17], "titles instead of numbers: 3"),
    ("Heat\nHalo 3\nDie Hard", [1, 2, 20], "a list in lines"),
    ("Heat, Halo 3, Die Hard", [1, 2, 20], "a list in lines"),
    ("Next: Heat; Alien: Resurrection; Up", [1, 11, 17], "a list in lines"),
    (
        '1. Heat - a thriller\n2. **Halo 3**: it goes on\n3. 12 Angry Men\n4. "Up" (2009)',
        [1, 2, 10, 17],
        "titles instead of numbers: 2",  # the first two bear their own numbers as well
    ),
    ('12. "Se7en"\n1. "Heat"\n17. "Up"', [12, 1, 17], "numbers with text: 3"),
    ('{"number": 12}\n{"number": 5}\n{"number": 7}', [12, 5, 7], "objects instead of numbers: 3"),
    ("[Note: mine\n1. Heat\n2. Up\n3. Se7en", [1, 17, 12], "a list in lines"),
]


@pytest.mark.parametrize(
    ("text", "wanted", "repair"), TITLED, ids=[case[0][:60] for case in TITLED]
)
def test_titles(text, wanted, repair):
    found, repairs, failure = read(text, len(wanted))
    assert (found, failure) == (wanted, "")
    assert any(name.startswith(repair) for name in repairs), repairs


def test_what_is_left_out_is_counted():
    found, repairs, _ = read('{"ranking": [12, 12, 99, 5, -7, 7, "Casablanca", null, 40, 1, 2]}')
    assert found == RANKING
    assert repairs == ("strangers dropped: 4", "duplicates dropped: 1", "too long: cut to 5")
    assert read("[12, 5, 7, 40]")[1] == ("no object around the list", "short: 4 of 5")


def test_a_number_that_may_be_cut_is_not_taken():
    # "1" may be the beginning of 17; 17 cannot go on, there are 50 candidates.
    assert read('{"ranking": [12, 5, 7, 40, 1')[:2] == (
        [12, 5, 7, 40],
        ("truncated JSON", "short: 4 of 5"),
    )
    assert read('{"ranking": [12, 5, 7, 40, 17')[0] == [12, 5, 7, 40, 17]
    assert read('["Heat", "Up", "Halo 3')[0] == [1, 17]
    assert read('[{"number": 12}, {"number": 5}, {"number": 4')[0] == [12, 5]
    assert read('{"number": 12}\n{"number": 5}\n{"number": 4')[0] == [12, 5]
    assert read('{"ranking": [12, 5, 7, 40, 2, 6, 3', 50)[2] == "too few candidates: 6 of 50"


def test_lists_from_zero_are_not_shifted():
    found, repairs, _ = read("[0, 11, 4, 6, 39, 2]")
    assert found == [11, 4, 6, 39, 2]
    assert "zeros, numbers read as given" in repairs


@pytest.mark.parametrize(
    "text",
    [
        '["Grand Theft Auto V"]',  # another number
        '["Die Hard 3"]',
        '["Heath Ledger"]',
        '["(untitled)"]',  # the candidate without a title cannot be named by one
        '["Filler"]',  # the beginning of many
        '["Filler 99"]',
        '["The Matrix"]',
    ],
)
def test_strangers_are_not_taken_for_near_titles(text):
    assert read(text) == ([], (), "no candidate numbers or titles found")


def test_between_two_titles_that_are_as_near_none_is_chosen():
    alike = ["Wireless gamepad alpha", "Wireless gamepad alpho"]
    assert TitleIndex(alike[:1]).near("Wireless gamepad alphi") == [0]
    assert TitleIndex(alike).near("Wireless gamepad alphi") == []


def test_numbers_that_count_the_lines_are_no_candidates():
    assert read("1. One of war\n2. One of love\n3. One of both")[0] == []
    assert read("3. One of war\n1. One of love\n2. One of both")[0] == [3, 1, 2]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", "empty answer"),
        (" \n\t", "empty answer"),
        ("\ufeff", "empty answer"),
        ("<think>12, 5, 7, 40, 1", "cut off while thinking"),
        ("<think>12, 5</think>  ", "cut off while thinking"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("As an AI, I have no taste.", "refusal"),
        ("I cannot rank these 3 films.", "refusal"),
        ("They are all good films.", "no candidate numbers or titles found"),
        ('{"ranking": []}', "no candidate numbers or titles found"),
        ("null", "no candidate numbers or titles found"),
        ("| 1 | 12 |\n| 2 | 5 |", "no candidate numbers or titles found"),
        ("[99, 51, 0]", "no candidate numbers or titles found"),
    ],
)
def test_failures(text, failure):
    found, _, reason = read(text)
    assert (found, reason) == ([], failure)


def test_too_few_is_a_failure_and_a_refusal_with_an_answer_is_none():
    assert read("[12, 5, 7, 40]", 25)[2] == "too few candidates: 4 of 25"
    assert read("[12, 5, 7, 40, 1]", 25)[0] == RANKING
    assert read(f"I'm sorry, I am not sure: {LIST}")[2] == ""


@pytest.mark.parametrize(("named", "short"), [(25, False), (20, False), (19, True), (5, True)])
def test_asking_again_is_worth_it_below_four_fifths(named, short):
    parsed = parse_ranking(json.dumps(list(range(1, named + 1))), CANDIDATES, TITLES, 25)
    assert is_short(parsed, 25) is short
    assert is_short(parse_ranking("", CANDIDATES, TITLES, 25), 25)


@pytest.mark.parametrize(
    "piece",
    [
        "[", "{", '"', '\\"', "[]", "[1,", "1,", "1\n", "1 ", "Filler 2\n", "- Filer 26\n",
        "1. xyz 3\n", "( ", '"a":', "#", "Die Hardd,", "```", "<think>", "</think>", '{"a":[',
        "&amp;", "ﷺ", '"Heet of the night" - ', "- " + "ab" * 130 + "\n", "\x00", "\ud800",
        "x" + " " * 499_999, "1" + " " * 9_999, '"k"' + " " * 9_999 + ":", "(" + " " * 499_999,
    ],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_a_second(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    parse_ranking(text, CANDIDATES, TITLES, 25)
    assert time.process_time() - started < 1


def test_beginning_and_end_of_a_huge_answer_are_read():
    talk = "so much to say. " * 100_000
    for text in (f'{{"ranking": {LIST}}} {talk}', f'{talk} {{"ranking": {LIST}}}'):
        found, repairs, _ = read(text)
        assert found == RANKING
        assert repairs == ("too long to read: cut to 32768", "prose around the answer")


def test_recorded_rankings():
    parsed = parse_recorded(np.array([3, 9, 3, 12, -1, 0, 9, 4]), 10, 3)
    assert parsed.ranking.tolist() == [3, 9, 0]
    assert parsed.repairs == (
        "strangers dropped: 2",
        "duplicates dropped: 2",
        "too long: cut to 3",
    )
    assert parse_recorded(np.zeros(0, np.int64), 10, 3).failure == "empty answer"
    assert parse_recorded(np.array([10, -5]), 10, 3).failure == "no item of the catalogue found"
    assert parse_recorded(np.array([1, 1]), 10, 25).failure == "too few candidates: 1 of 25"


def test_hints():
    assert parse_hints("```text\n\n - Sequels follow.  \n\n- Same maker.\n```\n") == (
        "- Sequels follow.\n- Same maker."
    )
    assert parse_hints("<think>hm</think>One.") == "One."
    assert parse_hints("```\n```") == parse_hints(" \n") == parse_hints("<think>hm") == ""
    line = "x" * 99
    assert parse_hints("\n".join([line] * 100)) == "\n".join([line] * 30)
    assert parse_hints("y" * 5000) == "y" * 3000
