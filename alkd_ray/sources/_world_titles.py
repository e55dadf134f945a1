"""Titles of the synthetic world's books, written the way catalogues write them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GENRES = (
    "fantasy",
    "mystery",
    "science fiction",
    "romance",
    "historical fiction",
    "thriller",
    "horror",
    "adventure",
    "crime",
    "biography",
    "travel",
    "poetry",
    "humour",
    "true crime",
    "steampunk",
    "western",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST_NAMES = _words(
    "Mira Jon Adela Tomas Ines Rafe Livia Oskar Petra Silas Noor Emil Greta Hugo Yara Anselm "
    "Dalia Viktor Maren Cyrus Elsa Bruno Ottilie Kasper Selma Ivo Lucia Arno Freya Malik Judith "
    "Leon Tamsin Felix Agnes Dorian Zita Konrad Helene Pavel Odile Marcus Runa Elias Vesna Theo "
    "Camille Stellan"
)
_LAST_NAMES = _words(
    "Kestrel Vale Brandt Okoro Lindqvist Marsh Ferreira Holloway Novak Quill Ashdown Tremaine "
    "Castell Varga Thorne Delacroix Winter Sorensen Blackwood Amari Rook Fenwick Halloran Ibsen "
    "Carrow Nightingale Voss Pell Drummond Esterhazy Lark Moreau Sable Hartmann Crane Whitlock "
    "Abara Stroud Vance Keller Underhill Marlowe Bellamy Cross Rosen Tidewell Grieve "
    "Ostrander"
)
_ADJECTIVES = _words(
    "Ember Silver Hollow Crimson Silent Winter Broken Golden Iron Midnight Salt Glass Scarlet "
    "Forgotten Burning Amber Pale Drowned Hidden Ivory Wandering Copper Bitter Sunken Velvet Last "
    "Thorn Paper Obsidian Restless Emerald Shattered Distant Gilded Frozen Secret Cobalt Faithless "
    "Quiet Storm Marble Lantern Raven Saffron Hungry Northern Clockwork Jade"
)
_NOUNS = _words(
    "Archive Orchard Harbour Crown Letters Garden Tower Voyage Oath Mirror Kingdom Winter River "
    "Compass Library Bridge Daughter Wolf Circle Empire Lighthouse Symphony Inheritance Key Road "
    "Citadel Accord Tide Witness Cartographer Masquerade Throne Covenant Observatory Feast Ledger "
    "Pilgrim Island Verdict Shore Chronicle Apprentice Forest Rebellion Cathedral Season Promise "
    "Gate"
)
_PLACES = _words(
    "Northmere Calder Ravenhall Ostrava Thessaly Windermoor Alder Carrick Vellum Saint-Aubin "
    "Harrow Marisol Kestley Dunmore Isenfeld Lowell Arkady Brightwater Tolland Esperance Greyhaven "
    "Wolden Averay Penhallow Sorrel Tavistock Lorne Mistral Eastfold Quarry Hexham Bellmere "
    "Avonlea Stillwater Corvath Umber Galloway Fenmarch Rosalind Torrance Whitby Valdane Orrin "
    "Meridian Ashby Cinder Leith Halcyon"
)
_NUMERALS = _words(
    "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX XXI XXII XXIII XXIV"
)

MOST_VOLUMES = len(_NUMERALS)

_VOLUME_FORMS = ("{}, Vol. {}", "{}: Part {}", "{} #{}", "{}, Book {}", "{} (Volume {})")
_ROMAN_FORM = 1
_OMITTED_CREATORS = 0.2  # share of titles without their creator
_OTHER_FORM = 0.1  # share of volumes that are written in another form than their series

_MOST_NAMES = len(_ADJECTIVES) * len(_NOUNS) * (1 + len(_PLACES))
_MOST_CREATORS = len(_FIRST_NAMES) * len(_LAST_NAMES) * (1 + 26)


def work_names(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` different names of series or single books.

    Short names ("The Ember Archive") come before long ones ("The Ember Archive of Calder").

    Raises:
        ValueError: there are not so many.
    """
    if count > _MOST_NAMES:
        raise ValueError(f"there are only {_MOST_NAMES} names of works, not {count}")
    names = []
    for number in _shuffled_in_blocks(count, len(_ADJECTIVES) * len(_NOUNS), rng):
        place, rest = divmod(int(number), len(_ADJECTIVES) * len(_NOUNS))
        adjective, noun = divmod(rest, len(_NOUNS))
        name = f"The {_ADJECTIVES[adjective]} {_NOUNS[noun]}"
        names.append(f"{name} of {_PLACES[place - 1]}" if place else name)
    return names


def creator_names(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` different names of creators; middle initials where the plain names run out.

    Raises:
        ValueError: there are not so many.
    """
    if count > _MOST_CREATORS:
        raise ValueError(f"there are only {_MOST_CREATORS} names of creators, not {count}")
    names = []
    for number in _shuffled_in_blocks(count, len(_FIRST_NAMES) * len(_LAST_NAMES), rng):
        initial, rest = divmod(int(number), len(_FIRST_NAMES) * len(_LAST_NAMES))
        first, last = divmod(rest, len(_LAST_NAMES))
        middle = f" {chr(ord('A') + initial - 1)}." if initial else ""
        names.append(f"{_FIRST_NAMES[first]}{middle} {_LAST_NAMES[last]}")
    return names


def titles(
    names: Sequence[str],
    creators: Sequence[str],
    genres: NDArray[np.int64],
    volumes: NDArray[np.int64],
    volume_counts: NDArray[np.int64],
    works: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.object_]:
    """The title of every item, ``[N]``; all different.

    ``name, volume - genre - creator``; the way of writing the volume differs by series and, now
    and then, within one; some titles leave the creator out, and single books have no volume.

    Args:
        names: ``[N]`` name of the item's work.
        creators: ``[N]`` name of its creator.
        genres: ``[N]`` index into :data:`GENRES`.
        volumes: ``[N]`` its volume, counted from 1.
        volume_counts: ``[N]`` how many volumes its work has.
        works: ``[N]`` its work's number.
        rng: draws the forms.
    """
    count = len(names)
    form_of_work = rng.integers(len(_VOLUME_FORMS), size=int(works.max()) + 1)
    another = rng.integers(len(_VOLUME_FORMS), size=count)
    form = np.where(rng.random(count) < _OTHER_FORM, another, form_of_work[works])
    has_creator = rng.random(count) >= _OMITTED_CREATORS
    written = np.empty(count, dtype=object)
    for row in range(count):
        title = names[row]
        if volume_counts[row] > 1:
            volume = int(volumes[row])
            number = _NUMERALS[volume - 1] if form[row] == _ROMAN_FORM else str(volume)
            title = _VOLUME_FORMS[form[row]].format(title, number)
        title = f"{title} - {GENRES[genres[row]]}"
        written[row] = f"{title} - {creators[row]}" if has_creator[row] else title
    return written


def _shuffled_in_blocks(count: int, block: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` different numbers: a permutation of the first block, then of the second, ..."""
    blocks = [
        start + rng.permutation(block)
        for start in range(0, math.ceil(count / block) * block, block)
    ]
    return np.concatenate(blocks)[:count]
