"""What is given out in a sweep, how much at once, and what results decide."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alkd_ray.config import TrainingConfig
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.runtime._sweep_story import Story
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps.config import AshaConfig, SweepConfig
from alkd_ray.sweeps.queue import PackSizes, TrialQueue, still_true
from alkd_ray.sweeps.records import Setting, Trial, TrialRecord
from alkd_ray.sweeps.rungs import Rungs, next_rung
from alkd_ray.sweeps.search import Listed, OptunaSearch, purchases, settings_of
from alkd_ray.sweeps.standings import finalists, standings
from alkd_ray.sweeps.trials import RungWatch

SEEDS = (1, 2, 3)


def sweep(**fields: object) -> SweepConfig:
    over = {"student.backbone": {"grid": ["fpmc", "stamp"]}, "selection.budget": {"grid": [5, 9]}}
    return SweepConfig.model_validate({"run": {}, "over": over, **fields})


def trials_of(setting: Setting, rankings: str = "bought") -> list[Trial]:
    return [Trial(setting.point, seed, "data", "teacher", rankings) for seed in SEEDS]


def queue(config: SweepConfig, records: dict[str, TrialRecord] | None = None) -> TrialQueue:
    return TrialQueue(
        Listed(settings_of(config)),
        trials_of,
        lambda setting: setting.point["student.backbone"],
        "ndcg@10",
        len(SEEDS),
        records or {},
    )


def done(trial: Trial, value: float = 0.5) -> TrialRecord:
    return TrialRecord(
        trial.id, trial.point, trial.seed, trial.inputs, "complete", {"ndcg@10": value}
    )


def test_a_pack_has_one_backbone_and_every_trial_is_given_out_once() -> None:
    work = queue(sweep())
    seen = []
    while pack := work.take(4):
        assert len({trial.point["student.backbone"] for trial in pack}) == 1
        seen += pack
        for trial in pack:
            work.tell(done(trial))
    assert len(seen) == len({trial.id for trial in seen}) == 4 * len(SEEDS)
    assert work.is_over
    assert len(work.records) == 12


def test_what_a_lost_actor_had_waits_again_but_not_what_it_had_told() -> None:
    work = queue(sweep())
    pack = work.take(3)
    work.tell(done(pack[0]))
    work.give_back(pack)
    assert not work.running
    again = [trial.id for _ in range(12) for trial in work.take(1)]
    assert sorted(again) == sorted({t.id for t in pack[1:]} | set(again) - {pack[0].id})
    assert pack[0].id not in again
    assert len(again) == 11


def test_a_sweep_goes_on_from_what_is_known_unless_more_was_bought_since() -> None:
    first = queue(sweep())
    known = {trial.id: done(trial) for trial in first.take(4)}
    stale = next(iter(known))
    known[stale] = replace(known[stale], inputs="other")
    known = still_true(known, trials_of)
    assert len(known) == 3
    assert stale not in known
    work = queue(sweep(), known)
    assert work.left == 12 - 3
    left = {trial.id for _ in range(20) for trial in work.take(1)}
    assert len(left) == 12 - 3
    assert work.left == 0
    assert stale in left


def test_the_search_is_told_the_mean_over_the_seeds_once_a_setting_is_over() -> None:
    told: list[tuple[str, float | None]] = []

    class Told(Listed):
        def tell(self, setting: Setting, value: float | None) -> None:
            told.append((setting.id, value))

    config = sweep(over={"student.backbone": {"grid": ["fpmc", "stamp"]}})
    work = queue(config)
    work.search = Told(settings_of(config))
    pack = work.take(3)
    work.tell(done(pack[0], 0.1))
    work.tell(done(pack[1], 0.2))
    assert told == []
    work.tell(done(pack[2], 0.6))
    assert told == [(pack[0].setting.id, pytest.approx(0.3))]
    for trial in work.take(3):
        work.tell(replace(done(trial), status="failed", metrics={}))
    assert told[1][1] is None
    assert work.is_over


@settings(max_examples=200, deadline=None)
@given(
    seconds=st.floats(1e-3, 100),
    overhead=st.floats(0, 20),
    left=st.integers(1, 10_000),
    actors=st.integers(1, 64),
)
def test_packs_pay_their_start_and_leave_work_for_all(
    seconds: float, overhead: float, left: int, actors: int
) -> None:
    sizes = PackSizes()
    assert sizes.next(left, actors) == 1
    sizes.add([seconds] * 4, 4 * seconds + overhead)
    size = sizes.next(left, actors)
    assert 1 <= size <= max(1, -(-left // (2 * actors)))
    assert size == 1 or size * seconds <= 60.0
    if size < min(256, -(-left // (2 * actors)), int(60.0 / seconds)):
        assert size * seconds >= 10 * overhead * 0.999
    assert PackSizes(7).next(left, actors) == 7


def test_a_rung_lets_the_best_third_go_on_and_ends_a_setting_as_a_whole() -> None:
    rungs = Rungs(AshaConfig(first_step=10, reduction=3.0))
    values = np.random.default_rng(0).permutation(30) / 30
    goes = [rungs.goes_on(f"t{n}", f"s{n}", 1, 10, v) for n, v in enumerate(values)]
    for n, went in enumerate(goes):  # by those that had come until then
        place = sorted(values[: n + 1], reverse=True).index(values[n])
        assert went == (place < -(-(n + 1) // 3))
    ended = goes.index(False)
    assert rungs.is_dropped(f"s{ended}")
    assert not rungs.goes_on("another seed", f"s{ended}", 2, 10, 1.0)
    assert [next_rung(rungs.config, step) for step in (0, 9, 10, 29, 30, 90)] == [
        10, 10, 30, 30, 90, 270,
    ]  # fmt: skip


def test_a_trial_is_judged_by_its_validations_however_long_its_steps_take() -> None:
    """Between two validations a training is told of by the clock, with an earlier best."""
    training = TrainingConfig(validate_every=20, max_steps=90)
    told = [(20, 0.1), (27, 0.1), (33, 0.1), (40, 0.4), (59, 0.4), (60, 0.5), (80, 0.5), (90, 0.6)]
    found = []
    for is_slow in (False, True):
        watch = RungWatch(AshaConfig(first_step=30, reduction=2), training, lambda *_: True)
        for step, best in told:
            if is_slow or step % 20 == 0 or step == 90:
                watch(step, best)
        found.append(watch.rungs)
    assert found[0] == found[1] == {30: 0.4, 60: 0.5}


def test_rungs_go_on_from_the_journal() -> None:
    trial = trials_of(Setting({"student.backbone": "fpmc", "selection.budget": 5}))[0]
    earlier = [
        replace(done(trial), rungs={10: 0.9}),
        replace(done(trial), trial="x", point={"a": 1}, status="dropped", rungs={10: 0.2}),
    ]
    rungs = Rungs(AshaConfig(first_step=10), earlier)
    assert rungs.is_dropped(earlier[1].setting.id)
    assert not rungs.goes_on("new", "s", 1, 10, 0.5)
    assert rungs.goes_on("newer", "t", 1, 10, 0.95)


def test_equal_points_are_one_setting() -> None:
    config = sweep(over={"student.dim": {"range": [1, 3]}}, samples=50)
    search = Listed(settings_of(config))
    found = []
    while (setting := search.next()) is not None:
        found.append(setting.point["student.dim"])
    assert sorted(found) == [1, 2, 3]
    assert search.left == 0


def parabola(point: dict) -> float:
    return -((point["a.x"] - 0.3) ** 2) - abs(np.log10(point["a.y"]) + 2) / 10 + point["a.z"] / 100


SPACE = {
    "a.x": {"uniform": [-1.0, 1.0]},
    "a.y": {"loguniform": [1e-4, 1.0]},
    "a.z": {"choice": [0, 5]},
    "a.n": {"range": [1, 3]},
}


def test_optuna_does_better_than_chance_and_goes_on_where_it_was() -> None:
    config = sweep(over=SPACE, search="optuna", samples=60)

    def searched(search: OptunaSearch, most: int) -> dict[str, tuple[Setting, float]]:
        known = {}
        while len(known) < most and (setting := search.next()) is not None:
            known[setting.id] = (setting, parabola(setting.point))
            search.tell(*known[setting.id])
        return known

    known = searched(OptunaSearch(config, []), 60)
    values = [value for _, value in known.values()]
    assert np.mean(values[-20:]) > np.mean(values[:20])
    drawn = Listed(settings_of(sweep(over=SPACE, samples=60)))
    chance = []
    while (setting := drawn.next()) is not None:
        chance.append(parabola(setting.point))
    assert np.mean(values[-20:]) > np.mean(chance) + 2 * np.std(chance) / np.sqrt(20)
    half = dict(list(known.items())[:30])
    begun = list(known.values())[30:32]  # of which not every seed was over
    earlier = [*half.values(), *((setting, None) for setting, _ in begun)]
    rest = searched(OptunaSearch(config, earlier), 60)
    assert len(rest) == 30
    assert not rest.keys() & half.keys()
    assert [setting.id for setting, _ in begun] == list(rest)[:2]


@pytest.mark.parametrize("killed_after", [3, 5, 8])
def test_optuna_tries_as_many_settings_however_often_it_is_begun(killed_after: int) -> None:
    over = {"a.x": {"loguniform": [1e-4, 1e-2]}, "a.n": {"range": [5, 50]}}
    config = sweep(over=over, search="optuna", samples=12)
    known: dict[str, tuple[Setting, float | None]] = {}
    for most in (killed_after, killed_after + 2, 99):
        search = OptunaSearch(config, list(known.values()))
        assert search.left == 12 - sum(value is not None for _, value in known.values())
        while (setting := search.next()) is not None:
            known[setting.id] = (setting, None)
            if len(known) == most:
                break
            value = 0.01 * len(known)
            search.tell(setting, value)
            known[setting.id] = (setting, value)
    assert len(known) == 12
    assert OptunaSearch(config, list(known.values())).next() is None


def test_optuna_uses_up_a_small_space_whose_best_it_has_found() -> None:
    config = sweep(over={"a.n": {"grid": list(range(8))}}, search="optuna", samples=9)
    known: dict[str, tuple[Setting, float | None]] = {}
    for new in (8, 0):
        search = OptunaSearch(config, list(known.values()))
        found = []
        while (setting := search.next()) is not None:
            value = float(setting.point["a.n"] == 3)
            search.tell(setting, value)
            found.append((setting, value))
        assert len(found) == new
        known |= {setting.id: (setting, value) for setting, value in found}
    assert search.left == 0


def test_optuna_ends_when_a_small_space_is_used_up() -> None:
    search = OptunaSearch(
        sweep(over={"a.x": {"grid": [[1, 2], [3]]}}, search="optuna", samples=9), []
    )
    found = []
    while (setting := search.next()) is not None:
        found.append(setting.point["a.x"])
        search.tell(setting, 0.1)
    assert sorted(found) == [[1, 2], [3]]


def test_what_is_bought_must_be_known_before_optuna_begins() -> None:
    config = sweep(over={**SPACE, "selection.budget": {"choice": [5, 9]}}, search="optuna")
    assert purchases(config, ["selection.budget", "a.z"]) == [
        {"selection.budget": budget, "a.z": z} for budget in (5, 9) for z in (0, 5)
    ]
    assert purchases(config, []) == [{}]
    with pytest.raises(InputError, match=r"over\.a\.n: .*bought"):
        purchases(config, ["a.n"])


def test_settings_are_ranked_by_their_mean_whole_ones_first() -> None:
    values = {"a": [0.1, 0.2, 0.4], "b": [0.3, 0.3, 0.3], "c": [0.9, 0.9]}
    records = [
        replace(done(trial, value), trial=trial.id)
        for name, by_seed in values.items()
        for trial, value in zip(trials_of(Setting({"x": name})), by_seed, strict=False)
    ]
    lost = trials_of(Setting({"x": "c"}))[2]
    records.append(replace(done(lost), status="failed", metrics={}, reason="nan"))
    found = standings(records, "ndcg@10", SEEDS)
    assert [s.setting.point["x"] for s in found] == ["b", "a", "c"]
    low, high = stats.t.interval(0.95, 2, np.mean(values["a"]), stats.sem(values["a"]))
    assert found[1].half_width == pytest.approx((high - low) / 2)
    assert found[1].mean == pytest.approx(np.mean(values["a"]))
    assert (found[2].state, found[2].is_whole) == ("1 failed", False)
    assert [s.setting.point["x"] for s in finalists(found, "all")] == ["b", "a"]
    assert [s.setting.point["x"] for s in finalists(found, 1)] == ["b"]
    one = standings([records[0]], "ndcg@10", (1,))
    assert (one[0].half_width, one[0].shown) == (None, "0.1000")


def test_a_journal_survives_a_torn_line_and_has_one_writer(tmp_path: Path) -> None:
    trial = trials_of(Setting({"student.backbone": "fpmc", "x": 1.5}))[0]
    record = replace(done(trial), rungs={10: 0.25})
    with journals.Journal(tmp_path) as journal:
        journal.add("begun", sweep="s")
        journal.add_trials([record])
        with pytest.raises(AlkdError, match="another process"):
            journals.Journal(tmp_path)
    file = tmp_path / journals.FILE
    with file.open("a") as opened:
        opened.write('{"event": "trial", "tri')
    assert journals.trials(journals.read(tmp_path)) == {trial.id: record}
    with journals.Journal(tmp_path) as journal:
        journal.add("ended", status="complete")
    events = journals.read(tmp_path)
    assert [event["event"] for event in events] == ["begun", "trial", "ended"]
    assert (journals.last(events, "ended") or {})["status"] == "complete"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:40], lines[2], ""]))
    with pytest.raises(InputError, match="line 2: is damaged"):
        journals.read(tmp_path)


def test_a_failure_never_hides_a_trial_that_was_complete(tmp_path: Path) -> None:
    trial = trials_of(Setting({"x": 1}))[0]
    failed = replace(done(trial), status="failed", metrics={}, reason="lost")
    with journals.Journal(tmp_path) as journal:
        journal.add_trials([failed, done(trial), failed])
    assert journals.trials(journals.read(tmp_path)) == {trial.id: done(trial)}
    assert json.loads((tmp_path / journals.FILE).read_text().splitlines()[0])["reason"] == "lost"
    # But one of other inputs does: what was complete is no longer true.
    changed = replace(failed, inputs="more was bought", reason="diverged")
    with journals.Journal(tmp_path) as journal:
        journal.add_trials([changed])
    assert journals.trials(journals.read(tmp_path)) == {trial.id: changed}
    story = Story(tmp_path / journals.FILE, "ndcg@10", len(SEEDS))
    story.read_on()
    assert story.records == {trial.id: changed}
