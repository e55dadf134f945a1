"""Selections as seen afterwards: gains against exact fractions, effects against a loop."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from alkd_ray import config as configs
from alkd_ray import pipeline, selecting, stages
from alkd_ray import sessions as windows_of
from alkd_ray.active.gains import Gains
from alkd_ray.active.policy import exact, paper
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.evaluation.composition import CUTOFF, EFFECTS, effects_of
from alkd_ray.evaluation.ranks import top_items
from alkd_ray.reproduction import effects, effects_table
from alkd_ray.reproduction.effects import Scaled
from alkd_ray.stages import Silent
from alkd_ray.training import checkpoint

EFFECTIVE, SIMILAR, INCORRECT = range(3)


def fractions_of(ranks: np.ndarray, kinds: np.ndarray, gains: Gains) -> list[Fraction]:
    worth = [Fraction(1), Fraction(gains.g_si), -Fraction(gains.g_in)]
    return [
        worth[kind] / Fraction(int(rank)) ** int(gains.mu)
        for rank, kind in zip(ranks, kinds, strict=True)
    ]


def test_each_effect_has_its_own_code() -> None:
    rankings = [np.array([4, 7]), np.array([7, 4]), np.array([5]), np.zeros(0, np.int64)]
    student = np.array([[4, 1], [1, 2], [5, 4], [9, 8]])
    found = effects_of(rankings, student, np.array([4, 4, 6, 9]), cutoff=2)
    assert [EFFECTS[code] for code in found] == [
        "similar",
        "effective",
        "incorrect",
        "incorrect",
    ]
    # With a shorter list neither hits in the second session.
    assert effects_of(rankings[1:2], student[1:2], np.array([4]), cutoff=1).tolist() == [INCORRECT]
    assert effects_of((), student[:0], np.zeros(0, np.int64)).shape == (0,)


def test_a_worked_example() -> None:
    # 1/2 of 1/2^2, minus 1/4 of 1/4^2, plus 1/10^2, over three.
    found = effects.gained(
        np.array([2, 4, 10]),
        np.array([SIMILAR, INCORRECT, EFFECTIVE]),
        population=150,
        gains=Gains(mu=2, g_si=0.5, g_in=0.25),
    )
    parts = [1 / 8, 1 / 64, 1 / 100]
    assert found.mean.value == pytest.approx((parts[0] - parts[1] + parts[2]) / 3)
    assert found.head_share == pytest.approx(parts[0] / sum(parts))  # ranks 1 and 2 of 150
    assert found.largest_share == pytest.approx(parts[0] / sum(parts))
    assert found.worth == pytest.approx((0.5 - 0.25 + 1) / 3)


@pytest.mark.parametrize("mu", [0, 1, 10, 50])
def test_gains_are_those_of_exact_fractions(mu: int) -> None:
    rng = np.random.default_rng(mu)
    population = 10_000_000
    for size in (1, 7, 300):
        ranks = rng.choice(np.arange(population // 2, population), size, replace=False) + 1
        ranks[0] = rng.integers(1, population // 2)
        kinds = rng.integers(0, 3, size)
        gains = Gains(mu=mu, g_si=0.25, g_in=0.75)
        parts = fractions_of(ranks, kinds, gains)
        total = sum(parts) / size
        sizes = [abs(part) for part in parts]
        found = effects.gained(ranks, kinds, population, gains)
        assert found.mean.sign == (total > 0) - (total < 0)
        assert found.mean.log10 == pytest.approx(log10_of(abs(total)), abs=1e-9)
        head = sum((s for s, r in zip(sizes, ranks, strict=True) if r <= 100_000), Fraction(0))
        assert found.head_share == pytest.approx(float(head / sum(sizes)))
        assert found.largest_share == pytest.approx(float(max(sizes) / sum(sizes)))


def log10_of(value: Fraction) -> float:
    return math.log10(value.numerator) - math.log10(value.denominator)


def test_what_has_no_gain_has_no_shares() -> None:
    # Similar sessions gain nothing here, whatever their rank; the incorrect one decides.
    gains = Gains(mu=50, g_si=0, g_in=1)
    ranks = np.array([1, 2, 10**6])
    nothing = effects.gained(ranks, np.full(3, SIMILAR), 10**7, gains)
    assert nothing == effects.Gained(Scaled(0, -math.inf), 0.0, 0.0, 0.0)
    assert nothing.mean.value == 0
    assert nothing.mean.text == "0"
    found = effects.gained(ranks, np.array([SIMILAR, SIMILAR, INCORRECT]), 10**7, gains)
    assert found.mean.sign == -1
    assert found.mean.log10 == pytest.approx(-300 - math.log10(3))
    assert (found.head_share, found.largest_share) == (0.0, 1.0)
    none = effects.gained(ranks[:0], ranks[:0], 10, gains)
    assert none == nothing


def test_with_mu_0_all_ranks_are_alike() -> None:
    rng = np.random.default_rng(0)
    ranks, kinds = 1 + rng.permutation(500), rng.integers(0, 3, 500)
    found = effects.gained(ranks, kinds, 500, Gains(mu=0))
    assert found.mean.value == pytest.approx(found.worth)
    at_ten = effects.gained(ranks, kinds, 500, Gains(mu=10))
    assert at_ten.worth == found.worth
    assert at_ten.head_share > 0.999999


def test_numbers_beyond_floats_are_added_and_shown() -> None:
    tiny = effects.mean_of([Scaled(1, -400.0), Scaled(-1, -400.0 + math.log10(3))])
    assert (tiny.sign, tiny.text, tiny.value) == (-1, "-1.00e-400", 0.0)
    assert effects.mean_of([Scaled(1, 0.0), Scaled(0, -math.inf)]).value == 0.5
    assert effects.mean_of([Scaled(0, -math.inf)]) == Scaled(0, -math.inf)
    assert Scaled(1, math.log10(9.997)).text == "1.00e+01"
    assert Scaled(-1, math.log10(0.00314)).text == "-3.14e-03"


def test_intervals_are_those_of_students_t() -> None:
    values = [0.1, 0.15, 0.12, 0.2]
    found = effects.spread(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.half_width is not None
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (low, high)
    )
    assert effects.spread([0.25]) == effects.Spread(0.25, None)
    assert effects.spread([0.25]).text == "0.250"


def test_a_restricted_pool_is_ranked_anew() -> None:
    assert effects.ranks_in_pool(np.array([9, 2, 5]), np.array([5, 9, 2])).tolist() == [2, 3, 1]


POOL = np.arange(100, 400)


def config_of(folder: Path, **fields: Any) -> RunConfig:
    training = {"max_steps": 20, "validate_every": 20}
    model = {"backbone": "fpmc", "training": training}
    given: dict[str, Any] = {
        "seeds": [1, 2],
        "data": {"source": "synthetic", "options": {"size": "tiny"}},
        "teacher": {**model, "dim": 8},
        "student": {**model, "dim": 4},
        "selection": {"strategy": "alkdrec-paper", "budget": 30, "recorded_only": True},
        "llm": {"teacher": "replay", "options": {"path": str(folder / "rankings.parquet")}},
        "budget": {"dollars": 0},
    }
    return configs.make(given | fields)


def record(folder: Path) -> None:
    """Rankings of some sessions of all splits: a third begins with the target, a sixth is empty."""
    context = stages.Context(config_of(folder), folder, Silent())
    sessions = stages.load_dataset(stages.import_sessions(context)).sessions
    targets = sessions.targets[windows_of.rows_of_ids(sessions, POOL)]
    rng = np.random.default_rng(5)
    rankings = [rng.choice(400, 25, replace=False).tolist() for _ in POOL]
    for row in range(0, len(POOL), 3):
        rankings[row] = [int(targets[row]), *(i for i in rankings[row] if i != targets[row])][:25]
    for row in range(1, len(POOL), 6):
        rankings[row] = []
    pq.write_table(pa.table({"session_id": POOL, "ranking": rankings}), folder / "rankings.parquet")


def test_a_run_is_seen_afterwards(tmp_path: Path) -> None:
    record(tmp_path)
    config = config_of(tmp_path)
    others = {
        "TR": config_of(tmp_path, distillation={"method": "teacher-ranking"}),
        "random": config_of(
            tmp_path, selection={"strategy": "random", "budget": 30, "recorded_only": True}
        ),
    }
    [row, random] = effects.collect({"paper": config, **others}, tmp_path)
    assert (row.name, row.strategy, random.name) == ("paper", "alkdrec-paper", "random")
    result = pipeline.run(config, tmp_path, Silent(), until="annotation")
    context = stages.Context(config, tmp_path, Silent())
    assert result.annotation is not None
    sessions = stages.load_dataset(result.dataset).sessions
    gains = Gains()
    for one in row.by_seed:
        picked = selecting.load_selection(result.by_seed["selection"][one.seed]).session_ids
        rankings = dict(zip(*result.annotation.rankings(one.seed), strict=True))
        student = checkpoint.load(result.by_seed["student"][one.seed].folder / "checkpoint")
        scores = selecting.load_difficulty(context, result.by_seed["difficulty"][one.seed])
        in_order = [s for s in scores.session_ids[np.argsort(scores.ranks)] if s in POOL]
        counts = dict.fromkeys(effects.KINDS, 0)
        total = Fraction(0)
        for session_id in picked:
            ranking = rankings.get(session_id)
            if ranking is None:
                counts["unanswered"] += 1
                continue
            only = windows_of.take(
                sessions, windows_of.rows_of_ids(sessions, np.array([session_id]))
            )
            target = only.targets[0]
            hit = target in top_items(student, only, config.data.window, CUTOFF)[0]
            llm_hit = target in ranking[:CUTOFF]
            kind = (SIMILAR if hit else EFFECTIVE) if llm_hit else INCORRECT
            counts[EFFECTS[kind]] += 1
            rank = np.array([in_order.index(session_id) + 1])
            total += fractions_of(rank, np.array([kind]), gains)[0]
        assert one.counts == counts
        assert counts["unanswered"] > 0
        assert one.population == len(in_order)
        assert one.gained.mean.value == pytest.approx(float(total / len(rankings)))
        for found, solve in ((one.guaranteed_paper, paper), (one.guaranteed_exact, exact)):
            assert found.value == pytest.approx(solve(gains, len(in_order)).min_gain)
        assert one.guaranteed_own is not None
        assert one.guaranteed_own.value == pytest.approx(one.guaranteed_paper.value)
    assert sum(row.share(kind).mean for kind in effects.KINDS) == pytest.approx(1)
    assert all(one.guaranteed_own is None for one in random.by_seed)
    table = effects_table.table([row, random])
    assert [line[0] for line in table] == ["setting", "paper", "random", "assumed, 1:5:4"]
    assert {len(line) for line in table} == {len(table[0])}
    assert table[3][2:5] == ["0.100", "0.500", "0.400"]
    header, *lines = effects_table.numbers([row, random])
    assert {len(line) for line in lines} == {len(header)}
    found, of_random = (dict(zip(header, line, strict=True)) for line in lines)
    assert found["effective"] == row.share("effective").mean
    assert found["overlap half width"] == row.over_seeds(lambda one: one.mean_overlap).half_width
    assert found["realised gain log10"] == row.realised.log10
    assert found["guaranteed exact"] == pytest.approx(10 ** found["guaranteed exact log10"])
    assert [found[f"assumed {kind}"] for kind in EFFECTS] == pytest.approx([0.1, 0.5, 0.4])
    assert found["sessions to select from"] == row.by_seed[0].population
    assert found["seeds above 0"] == row.winning_seeds
    assert (of_random["guaranteed own"], of_random["guaranteed own log10"]) == (None, None)


def test_gains_are_the_strategys_own_unless_one_game_is_given(tmp_path: Path) -> None:
    own = {"mu": 2, "ratio": [1, 1, 2], "g_si": 0.25, "g_in": 1}
    config = config_of(tmp_path, selection={"strategy": "rad-bc", "options": own})
    assert effects.gains_of(config) == Gains(2, (1, 1, 2), 0.25, 1)
    assert effects.gains_of(config_of(tmp_path, selection={"strategy": "hardest"})) == Gains()


def test_nothing_is_bought(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        llm={"teacher": "simulated"},
        selection={"strategy": "random", "budget": 5},
        budget={"dollars": 5},
        seeds=[1],
    )
    with pytest.raises(InputError, match="would have to be bought"):
        effects.of_run("simulated", config, tmp_path)
