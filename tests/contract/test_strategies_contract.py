"""What every strategy of the room keeps: distinct sessions, by seed, whatever the row order."""

import json
import math

import numpy as np
import pytest

from alkd_ray import registry
from alkd_ray.active import difficulty
from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact, paper
from alkd_ray.errors import InputError
from alkd_ray.seeds import numpy_stream
from alkd_ray.types import DifficultyScores, Selection

NAMES = registry.names("strategies")
BY_POLICY = ["alkdrec-exact", "alkdrec-paper", "rad-bc"]
BY_CHANCE = [*BY_POLICY, "random"]
# Every option, away from its default.
VARIANTS = [
    *((name, {}) for name in NAMES),
    ("alkdrec-paper", {"mu": 2, "ratio": [3, 3, 4], "g_si": 0.2, "g_in": 0.7}),
    ("alkdrec-paper", {"reference_support": True}),
    ("alkdrec-exact", {"mu": 0.5, "ratio": "1:1:2", "g_si": 0.2, "g_in": 0.3}),
    ("alkdrec-exact", {"ratio": [0, 0.1, 0.9]}),
    ("rad-bc", {"mu": 0, "ratio": [0.1, 0.5, 0.4]}),
]
SESSIONS = 400


def pool(direction="hardest_first", seed=3) -> DifficultyScores:
    rng = numpy_stream(0, "contract", "pool")
    ids = rng.permutation(10 * SESSIONS)[:SESSIONS]
    values = np.round(-rng.random(SESSIONS), 2)  # with ties
    return difficulty.rank(ids, values, direction=direction, seed=seed, kind="consistency")


def build(name, options):
    return registry.build("strategies", name, options)


def test_the_room():
    assert NAMES == ["alkdrec-exact", "alkdrec-paper", "easiest", "hardest", "rad-bc", "random"]


@pytest.mark.parametrize("direction", ["hardest_first", "easiest_first"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_picks(name, options, direction):
    scores = pool(direction)
    selection = build(name, options).select(scores, 50, 7)
    assert isinstance(selection, Selection)
    assert (selection.strategy, selection.seed) == (name, 7)
    assert selection.session_ids.dtype == np.int64
    assert selection.session_ids.shape == (50,)
    assert len(np.unique(selection.session_ids)) == 50
    assert np.isin(selection.session_ids, scores.session_ids).all()
    everything = build(name, options).select(scores, SESSIONS, 7).session_ids
    assert sorted(everything.tolist()) == sorted(scores.session_ids.tolist())


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_by_seed_and_not_by_row(name, options):
    scores = pool()
    first = build(name, options).select(scores, 50, 7).session_ids
    np.testing.assert_array_equal(build(name, options).select(scores, 50, 7).session_ids, first)
    rows = numpy_stream(1, "contract", "rows").permutation(SESSIONS)
    shuffled = DifficultyScores(
        scores.session_ids[rows],
        scores.difficulty[rows],
        scores.ranks[rows],
        scores.kind,
        scores.direction,
    )
    np.testing.assert_array_equal(build(name, options).select(shuffled, 50, 7).session_ids, first)
    other = build(name, options).select(scores, 50, 8).session_ids
    by_chance = name in BY_CHANCE and options != {"ratio": [0, 0.1, 0.9]}
    assert (other.tolist() != first.tolist()) == by_chance


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_larger_budget_goes_on(name, options):
    """... where the smaller one ended; but for plain random draws."""
    scores = pool()
    if name != "random":
        some = build(name, options).select(scores, 20, 7).session_ids
        more = build(name, options).select(scores, 50, 7).session_ids
        np.testing.assert_array_equal(more[:20], some)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [0, SESSIONS + 1])
def test_a_budget_that_cannot_be_met(name, budget):
    with pytest.raises(InputError, match=f"selection.budget is {budget}, .* {SESSIONS} sessions"):
        build(name, {}).select(pool(), budget, 1)


@pytest.mark.parametrize("direction", ["hardest_first", "easiest_first"])
def test_easiest_and_hardest(direction):
    scores = pool(direction)
    value = dict(zip(scores.session_ids.tolist(), scores.difficulty.tolist(), strict=True))
    ascending = sorted(value.values())
    easiest = build("easiest", {}).select(scores, 50, 1).session_ids.tolist()
    hardest = build("hardest", {}).select(scores, 50, 1).session_ids.tolist()
    assert [value[i] for i in easiest] == ascending[:50]
    assert [value[i] for i in hardest] == ascending[::-1][:50]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_notes(name, options):
    scores = pool()
    selection = build(name, options).select(scores, 50, 7)
    notes = selection.notes
    assert json.loads(json.dumps(notes, allow_nan=False)) == notes
    rank = dict(zip(scores.session_ids.tolist(), scores.ranks.tolist(), strict=True))
    shares = np.array([rank[i] for i in selection.session_ids.tolist()]) / SESSIONS
    assert notes["picked_rank_min"] == shares.min()
    assert notes["picked_rank_median"] == pytest.approx(np.median(shares))
    assert notes["picked_rank_max"] == shares.max()
    assert (notes["population"], notes["direction"]) == (SESSIONS, "hardest_first")
    if name not in BY_POLICY:
        assert "mu" not in notes
        return
    given = registry.options("strategies", name, options)
    gains = Gains(given.mu, given.ratio, given.g_si, given.g_in)  # pyright: ignore
    for policy in (paper(gains, SESSIONS), exact(gains, SESSIONS)):
        assert notes[f"guaranteed_gain_{policy.kind}"] == policy.min_gain
        logarithm = notes.get(f"log10_guaranteed_gain_{policy.kind}")
        if policy.min_gain > 0:
            assert logarithm == pytest.approx(math.log10(policy.min_gain))
        else:
            assert logarithm is None
    best = notes["guaranteed_gain_exact"]
    assert notes["guaranteed_gain"] <= best + 1e-12 * abs(best)
    assert 1 <= notes["support"] <= SESSIONS
    assert notes["mu"] == given.mu  # pyright: ignore


def test_the_notes_of_each_policy():
    notes = {name: build(name, {}).select(pool(), 9, 1).notes for name in BY_POLICY}
    assert notes["alkdrec-paper"]["support"] == paper(Gains(), SESSIONS).support
    assert notes["alkdrec-exact"]["support"] == exact(Gains(), SESSIONS).support
    assert notes["rad-bc"]["support"] == paper(Gains().two_effects(), SESSIONS).support
    for name in ("paper", "exact"):
        own = notes[f"alkdrec-{name}"]
        assert own["guaranteed_gain"] == own[f"guaranteed_gain_{name}"]
    assert notes["rad-bc"]["guaranteed_gain"] < notes["rad-bc"]["guaranteed_gain_exact"]
    dropped = build("alkdrec-paper", {"reference_support": True}).select(pool(), 9, 1).notes
    assert dropped["support"] == notes["alkdrec-paper"]["support"] - 1
    assert dropped["guaranteed_gain"] < dropped["guaranteed_gain_paper"]


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_errors(name):
    with pytest.raises(InputError, match="no such field"):
        registry.options("strategies", name, {"mue": 3})


@pytest.mark.parametrize("name", BY_POLICY)
def test_bad_options_name_the_field(name):
    for options, message in (
        ({"mu": 51}, "mu is 51"),
        ({"ratio": 3904}, "as a list"),  # what YAML makes of a bare 1:5:4
        ({"ratio": [1, 2]}, "ratio"),
        ({"ratio": "1:5:many"}, "ratio"),
        ({"ratio": [0, 0, 0]}, "not all 0"),
        ({"g_si": 0, "g_in": 0}, "both 0"),
    ):
        with pytest.raises(InputError, match=message):
            registry.options("strategies", name, options)
    assert registry.options("strategies", name, {"ratio": "1:5:4"}).ratio == (1, 5, 4)  # pyright: ignore
