"""The reader of titles takes titles apart, and ranks by what they say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alkd_ray.llm_teachers._title_reader import patterns, rank, read_title

FANTASY = "fantasy - Mira Kestrel"


@pytest.mark.parametrize(
    ("title", "series", "volume"),
    [
        (f"The Ember Archive, Vol. 3 - {FANTASY}", "the ember archive", 3),
        (f"The Ember Archive: Part XIV - {FANTASY}", "the ember archive", 14),
        (f"The Ember Archive #12 - {FANTASY}", "the ember archive", 12),
        (f"The Ember Archive, Book 1 - {FANTASY}", "the ember archive", 1),
        (f"The Ember Archive (Volume 2) - {FANTASY}", "the ember archive", 2),
        (f"The Ember Archive - {FANTASY}", "the ember archive", None),
        ("Godfather: Part II, The (1974)", "godfather", 2),
        ("Rocky IV (1985)", "rocky", 4),
        ("Star Wars: Episode V - The Empire Strikes Back", "star wars", 5),
        ("Toy Story 2 (1999)", "toy story", 2),
        ("Toy Story (1995)", "toy story", None),
        ("1984", "1984", None),
        ("Malcolm X", "malcolm x", None),
        ("I, Robot", "i, robot", None),
        ("Apartment, The (1960)", "apartment, the", None),
        ("", "", None),
    ],
)
def test_series_and_volume(title: str, series: str, volume: int | None) -> None:
    read = read_title(title)
    assert (read.series, read.volume) == (series, volume)


def test_parts_are_creators_or_genres() -> None:
    read = read_title("The Salt Key #2 - science fiction - Jon B. Vale")
    assert read.creators == {"jon b. vale"}
    assert read.genres == {"science fiction"}


def test_the_order_of_evidence() -> None:
    history = [
        f"The Glass Oath, Vol. 1 - {FANTASY}",
        f"The Ember Archive, Vol. 1 - {FANTASY}",
        f"The Ember Archive, Vol. 2 - {FANTASY}",
    ]
    candidates = [
        "The Salt Ledger - crime - Jon Vale",
        "The Jade Feast - fantasy - Jon Vale",
        "The Iron Crown - fantasy - Mira Kestrel",
        "The Ember Archive #5 - fantasy",
        "The Ember Archive: Part IV - fantasy",
        "The Ember Archive (Volume 3) - fantasy",
    ]
    assert rank(history, candidates, noise=0.0, seed=1) == [5, 4, 3, 2, 1, 0]


def test_titles_without_structure_are_told_apart_by_words_and_then_by_the_list() -> None:
    candidates = ["Casablanca", "Jaws", "Revenge of the Silver Surfer", "Alien"]
    assert rank(["The Silver Surfer"], candidates, noise=0.0, seed=1) == [2, 0, 1, 3]


def test_hints_raise_what_they_speak_of() -> None:
    history = ["The Salt Key - crime - Jon Vale"]
    same_genre, same_creator = "The Jade Feast - crime - Ivo Lark", "Iron Crown - poetry - Jon Vale"
    others = [f"Stranger {letter}" for letter in "abcdefgh"]

    def first(candidates: list[str], hints: str) -> str:
        return candidates[rank(history, candidates, hints, noise=0.0, seed=1)[0]]

    for candidates in (
        [same_genre, same_creator, *others],
        [same_creator, same_genre, *others],
    ):
        assert first(candidates, "") == candidates[0]
        assert first(candidates, "Readers stay in one genre.") == same_genre
        assert first(candidates, "Readers follow a creator.") == same_creator


def test_noise_is_seeded_and_depends_on_the_question() -> None:
    candidates = [f"Title {letter}" for letter in "abcdefghijklmnop"]
    first = rank(["Some book"], candidates, noise=1.0, seed=1)
    assert first == rank(["Some book"], candidates, noise=1.0, seed=1)
    assert first != rank(["Some book"], candidates, noise=1.0, seed=2)
    assert first != rank(["Other book"], candidates, noise=1.0, seed=1)
    assert first != rank(["Some book"], candidates, noise=0.0, seed=1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(max_size=40), max_size=5),
    st.lists(st.text(max_size=40), min_size=1, max_size=12),
    st.text(max_size=60),
)
def test_any_text_gets_a_permutation(history: list[str], candidates: list[str], hints: str) -> None:
    order = rank(history, candidates, hints, noise=0.3, seed=3)
    assert sorted(order) == list(range(len(candidates)))


def test_patterns_say_what_the_examples_show_and_name_no_item() -> None:
    series = [f"The Ember Archive, Vol. {v} - {FANTASY}" for v in range(1, 6)]
    lines = patterns([(series[:3], series[3:])] * 5)
    assert "next volume" in lines[0] or "next volume" in lines[1]
    assert not any("Ember" in line or "Kestrel" in line for line in lines)
    strangers = [f"Book {word} - genre{word} - A {word}" for word in ("Xa", "Yb", "Zc", "Wd")]
    assert "different" in patterns([(strangers, [])])[0]
    assert patterns([]) == []
