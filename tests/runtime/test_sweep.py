"""Sweeps: shared work is done and paid once, and a trial is the same wherever it runs."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from alkd_ray import pipeline
from alkd_ray.annotation import worker
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.config import make
from alkd_ray.errors import InputError
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.pipeline import Engines
from alkd_ray.runtime import annotators
from alkd_ray.runtime.driver import engines_of
from alkd_ray.runtime.packs import MOST_BEGINS, MOST_LOSSES, _Board, _Packs
from alkd_ray.runtime.sweep import SweepOutcome
from alkd_ray.stages import Silent
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps.config import AshaConfig, SweepConfig, load
from alkd_ray.sweeps.queue import PackSizes, TrialQueue
from alkd_ray.sweeps.records import Trial, TrialRecord
from alkd_ray.sweeps.rungs import Rungs
from alkd_ray.sweeps.search import Listed, settings_of
from tests.annotation_rows import BATCH_RATES, job, serving
from tests.sweep_files import OVER, RUN, run, table, written


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def weights(home: Path, key: str) -> dict[str, bytes]:
    file = home / "distillation" / key / "checkpoint" / "weights.safetensors"
    return {name: value.tobytes() for name, value in load_file(file).items()}


def test_a_sweep_by_ray_is_the_sweep_of_one_process_and_each_trial_that_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, finalists=2)
    homes = {name: tmp_path / name for name in ("ray", "local", "solo")}
    monkeypatch.setenv("ALKD_HOME", str(homes["ray"]))
    by_ray = run(file, "sweep.pack=5")
    monkeypatch.setenv("ALKD_HOME", str(homes["local"]))
    here = run(file, "sweep.engine=local")
    assert by_ray.status == here.status == "complete"
    assert len(by_ray.records) == 8 * 2
    assert table(by_ray) == table(here)
    assert {record.node for record in by_ray.records.values()} != {"local"}
    for name, record in by_ray.records.items():
        other = here.records[name]
        assert record.distilled == other.distilled
        assert weights(homes["ray"], record.distilled) == weights(homes["local"], other.distilled)
    # A run of its own, in a process's plain loop, of one setting.
    setting = by_ray.standings[3].setting
    config = by_ray.sweep.of(setting.point)
    monkeypatch.setenv("ALKD_HOME", str(homes["solo"]))
    solo = pipeline.run(config, homes["solo"], Silent(), Engines(annotate=worker.annotate))
    for seed, output in solo.by_seed["distilled"].items():
        record = by_ray.records[f"{setting.id}-{seed}"]
        found = weights(homes["solo"], output.key)
        assert found == weights(homes["ray"], record.distilled)
    # Test metrics are there for the finalists alone.
    chosen = {s.setting.id for s in by_ray.standings[:2]}
    assert {name.rpartition("-")[0] for name in by_ray.tested} == chosen
    assert set(by_ray.baselines) == chosen
    evaluated = list((homes["ray"] / "evaluation").iterdir())
    named = [*by_ray.tested.values(), *by_ray.baselines.values()]
    assert len(evaluated) == len({key for keys in named for key in keys.values()})
    # By tasks there, one after another here.
    assert (by_ray.tested, by_ray.baselines) == (here.tested, here.baselines)
    # The plain counts are those of the run, once for both finalists.
    counts = {name: output.key for name, output in solo.baselines.items()}
    assert list(by_ray.baselines.values()) == [counts, counts]
    check_report(by_ray, set(counts))
    for output in evaluated:
        found, other = (
            read_ranks(homes[name] / "evaluation" / output.name / "ranks.parquet")
            for name in ("ray", "local")
        )
        assert found.ranks.tolist() == other.ranks.tolist()


def check_report(outcome: SweepOutcome, counts: set[str]) -> None:
    """Plain counts stand in every form, and every link leads somewhere."""
    forms = {file.name: file.read_text("utf-8") for file in outcome.report.iterdir()}
    for name in counts:
        assert f'<th scope="row" class="name">{name}<' in forms["sweep.html"]
        assert f"| {name} | plain count, on the data of all finalists |" in forms["sweep.md"]
        assert forms["finalists.csv"].count(f"\n{name},baseline,") == 5
    numbers = json.loads(forms["metrics.json"])
    assert {one["name"] for one in numbers["baselines"]} == counts
    best = numbers["settings"][0]["against_baseline"]
    assert best["second"] in counts
    assert sum("the best setting's student" in said for said in numbers["headline"]) == 1
    links = re.findall(r'href="(?!#)([^"]+)"', forms["sweep.html"])
    links += re.findall(r"\]\(([^)]+)\)", forms["sweep.md"])
    assert len(set(links)) > 2 * 2 * 3
    assert all((outcome.report / link / "stage.json").is_file() for link in links)
    for setting in {name.rpartition("-")[0] for name in outcome.tested}:
        assert f'id="test-{setting}"' in forms["sweep.html"]


def test_shared_work_is_done_once_and_every_question_is_paid_once(
    tmp_path: Path, home: Path
) -> None:
    outcome = run(written(tmp_path), "sweep.engine=local")
    made = {
        stage: [json.loads(f.read_text()) for f in (home / stage).glob("*/stage.json")]
        for stage in ("pretrain", "difficulty", "selection", "annotation", "distillation")
    }
    roles = Counter(found["settings"]["role"] for found in made["pretrain"])
    assert roles == {"teacher": 2, "student": 2}  # one a seed
    assert len(made["difficulty"]) == 2
    assert len(made["selection"]) == 4 * 2  # strategy, budget and seed; not the learning rate
    assert len(made["annotation"]) == 4
    assert len(made["distillation"]) == 8 * 2
    shared = outcome.shared
    assert shared.unshared == 2 * 2 * 2 * (10 + 20)  # each setting and seed by itself
    assert 0 < shared.sent == shared.requests < shared.unshared / 2
    assert shared.microusd > 0
    again = run(written(tmp_path, name="other"), "sweep.engine=local")
    assert (again.shared.sent, again.shared.requests) == (0, shared.requests)
    assert all(record.reused for record in again.records.values())
    assert table(again) == table(outcome)


def test_a_sweep_that_is_over_runs_nothing_again_and_one_that_grew_only_the_new(
    tmp_path: Path, home: Path
) -> None:
    file = written(tmp_path)
    with pytest.raises(InputError, match="no such sweep to resume"):
        run(file, "sweep.engine=local", resume=True)
    first = run(file, "sweep.engine=local")
    folder = journals.folder_of(first.sweep)
    made = {f.stat().st_mtime_ns for f in (home / "evaluation").glob("*/stage.json")}
    again = run(file, "sweep.engine=local", resume=True)
    assert table(again) == table(first)
    events = journals.read(folder)
    assert len([e for e in events if e["event"] == "trial"]) == 16
    # The plain counts are found again as well.
    assert again.baselines == first.baselines
    assert (journals.last(events, "tested") or {})["baselines"] == first.baselines
    assert {f.stat().st_mtime_ns for f in (home / "evaluation").glob("*/stage.json")} == made
    grown = written(tmp_path, seeds=[1, 2, 3])
    larger = run(grown, "sweep.engine=local")
    assert sum(not record.reused for record in larger.records.values()) == 8
    for standing in larger.standings:
        assert len(standing.by_seed) == 3


def test_a_failing_trial_is_reported_and_the_others_go_on(tmp_path: Path, home: Path) -> None:
    over = {"distillation.training.learning_rate": {"grid": [0.001, 1.0e38]}}
    outcome = run(written(tmp_path, over=over), "sweep.engine=local")
    assert outcome.status == "partial"
    assert "2 of 4 trials failed" in outcome.reason
    good, bad = outcome.standings
    assert (good.state, bad.state) == ("whole", "2 failed")
    failed = outcome.records[f"{bad.setting.id}-1"]
    assert "training diverged" in failed.reason
    assert failed.point == {"distillation.training.learning_rate": 1.0e38}
    assert set(outcome.tested) == {f"{good.setting.id}-{seed}" for seed in (1, 2)}
    assert set(outcome.baselines) == {good.setting.id}
    assert "training diverged" in (outcome.report / "sweep.html").read_text("utf-8")


def test_a_trial_that_ends_its_process_is_given_up_and_the_rest_of_its_pack_is_run(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    over = {"distillation.method": {"grid": ["tests.poison:Poison", "teacher-ranking"]}}
    outcome = run(written(tmp_path, over=over), "sweep.pack=4")
    good, bad = outcome.standings
    assert outcome.status == "partial"
    assert good.is_whole
    assert bad.setting.point == {"distillation.method": "tests.poison:Poison"}
    assert bad.state == "2 failed"
    failed = outcome.records[f"{bad.setting.id}-1"]
    assert "ended 3 times without a result" in failed.reason


def test_a_sweep_that_asks_for_what_no_node_has_ends_with_a_sentence(
    tmp_path: Path, home: Path
) -> None:
    over = {"distillation.training.learning_rate": {"grid": [0.001, 0.01]}}
    file = written(tmp_path, over=over)
    with pytest.raises(InputError, match=r"no node has room for an actor of 500 CPUs"):
        run(file, "sweep.trial_cpus=500")
    assert run(file, "sweep.engine=local").status == "complete"  # the same sweep goes on


def test_only_trials_in_whose_midst_their_process_ended_are_given_up() -> None:
    """One that came to its end may be begun again by whoever takes over its pack."""
    board = _Board(Rungs(AshaConfig()))
    for _ in range(MOST_BEGINS + 2):
        assert board.begin("whole-1", "whole") == ""
        board.end("whole-1")
    begun = [board.begin("deadly-1", "deadly") for _ in range(MOST_BEGINS + 1)]
    assert begun == [""] * MOST_BEGINS + ["failed"]


def test_asha_ends_trials_early_and_only_by_the_metric_that_ranks(
    tmp_path: Path, home: Path
) -> None:
    over = {"distillation.training.learning_rate": {"grid": [1e-2, 1e-7, 1e-6, 3e-6, 3e-3, 1e-5]}}
    fields = {"scheduler": "asha", "asha": {"first_step": 10, "reduction": 2}, "over": over}
    with pytest.raises(InputError, match=r"distillation\.training\.metric=recall@5"):
        run(written(tmp_path, metric="recall@5", **fields), "sweep.engine=local")
    outcome = run(written(tmp_path, **fields), "sweep.engine=local")
    dropped = [record for record in outcome.records.values() if record.status == "dropped"]
    assert dropped
    assert all(not record.metrics and "at step" in record.reason for record in dropped[:1])
    assert outcome.standings[0].is_whole
    for record in outcome.records.values():
        if record.status == "complete":
            assert record.rungs
    again = run(written(tmp_path, **fields), "sweep.engine=local")
    assert table(again) == table(outcome)


def test_optuna_searches_what_is_not_bought(tmp_path: Path, home: Path) -> None:
    over = {
        "selection.budget": {"grid": [10, 20]},
        "distillation.training.learning_rate": {"loguniform": [1e-5, 1e-1]},
    }
    file = written(tmp_path, over=over, search="optuna", samples=5)
    outcome = run(file, "sweep.engine=local")
    assert len(outcome.standings) == 5
    assert (
        len({s.setting.point["distillation.training.learning_rate"] for s in outcome.standings})
        == 5
    )
    assert len(list((home / "annotation").iterdir())) == 2
    with pytest.raises(InputError, match="decides what is bought"):
        run(written(tmp_path, over={"selection.budget": {"range": [5, 9]}}, search="optuna"))


def test_metrics_are_those_of_the_validation_sessions(tmp_path: Path, home: Path) -> None:
    outcome = run(written(tmp_path), "sweep.engine=local")
    record = next(iter(outcome.records.values()))
    [valid] = [
        folder
        for folder in (home / "validation").iterdir()
        if json.loads((folder / "stage.json").read_text())["inputs"]["model"] == record.distilled
    ]
    ranks = read_ranks(valid / "ranks.parquet")
    assert record.metrics["ndcg@10"] == pytest.approx(metric_values(ranks, "ndcg@10").mean())
    history = json.loads((home / "distillation" / record.distilled / "history.json").read_text())
    assert record.metrics["ndcg@10"] == pytest.approx(history["best_metric"])


def test_cases_set_fields_together(tmp_path: Path, home: Path) -> None:
    cases = {
        "plain": {"distillation.method": "teacher-ranking"},
        "llm": {"distillation.method": "alkdrec", "student.dim": 4},
    }
    outcome = run(written(tmp_path, over={"how": {"cases": cases}}), "sweep.engine=local")
    by_name = {s.setting.point["how"]: s for s in outcome.standings}
    assert set(by_name) == {"plain", "llm"}
    assert outcome.sweep.of({"how": "llm"}).student.dim == 4
    trials = {
        n: outcome.shared.trials(s.setting, outcome.sweep.of(s.setting.point))
        for n, s in by_name.items()
    }
    assert {bool(t.rankings) for t in trials["llm"]} == {True}
    assert {bool(t.rankings) for t in trials["plain"]} == {False}


def test_a_cap_that_ends_the_buying_is_said_and_the_rest_is_run(tmp_path: Path, home: Path) -> None:
    limited = {
        **RUN,
        "budget": {"requests": 12},
        "annotation": {**RUN["annotation"], "partial": True},
    }
    outcome = run(written(tmp_path, run=limited), "sweep.engine=local")
    assert outcome.status == "stopped"
    assert "12 requests" in outcome.reason
    assert outcome.shared.requests == 12
    assert outcome.standings[0].is_whole
    # Each setting and seed has got some of it.
    assert all(standing.is_whole for standing in outcome.standings)


def test_what_was_sent_and_paid_is_what_the_ledger_says_hints_included(
    tmp_path: Path, home: Path
) -> None:
    limited = {
        **RUN,
        "hints": {"enabled": True},
        "budget": {"requests": 12},
        "annotation": {**RUN["annotation"], "partial": True},
    }
    outcome = run(written(tmp_path, run=limited), "sweep.engine=local")
    shared = outcome.shared
    with Database(home / "store" / "books.sqlite", read_only=True) as database:
        spent = Ledger(database).spent_by_owner("small")[outcome.sweep.sweep_id]
    assert (spent.requests, shared.sent, shared.requests) == (12, 12, 12 - 2)
    assert shared.microusd == spent.microusd
    # How much each setting has got of what it asked for is said.
    numbers = json.loads((outcome.report / "metrics.json").read_text())
    for one in numbers["settings"]:
        assert 0 < one["rankings"]["answered"] < one["rankings"]["asked"] <= 2 * 20
    said = [note for note in numbers["notes"] if "fewer rankings than they asked for" in note]
    assert said[0].startswith("8 of 8 settings")
    header, *lines = (outcome.report / "settings.csv").read_text().splitlines()
    assert "dollars,rankings,rankings asked" in header
    assert len(lines) == 8
    again = run(written(tmp_path, run=limited), "sweep.engine=local").shared
    assert (again.sent, again.requests, again.microusd) == (0, 10, spent.microusd)


def test_settings_are_asked_each_in_its_own_way(tmp_path: Path) -> None:
    """A sweep's first setting may be asked live and another in batches, at half the price."""
    engines = engines_of(make({"annotation": {"engine": "ray"}}), tmp_path)
    given = {"mode": "batch", "engine": "ray", "batch_poll_seconds": 0.1}
    with serving(tmp_path, "--batch-seconds", "0.3") as server:
        asked = job(tmp_path / "store", server.url, options={"rates": BATCH_RATES}, **given)
        with pytest.raises(InputError, match=r"annotation\.mode is batch"):
            annotators.annotate(asked)
        outcome = engines.annotate(asked, None)
        paid = server.bill()["microusd"]
        single = worker.annotate(job(tmp_path / "live", server.url))
        assert paid == pytest.approx((server.bill()["microusd"] - paid) / 2, abs=40)
    assert outcome.status == single.status == "complete"
    assert outcome.ledger.settled.microusd == paid


def test_overrides_reach_run_and_sweep_and_change_what_the_sweep_is(tmp_path: Path) -> None:
    file = written(tmp_path)
    plain = load(file)
    assert load(file, ["sweep.pack=3", "sweep.finalists=all"]).sweep_id == plain.sweep_id
    assert load(file, ["student.dim=4"]).sweep_id != plain.sweep_id
    assert load(file, ["student.dim=4"]).of({}).student.dim == 4
    assert load(file, ["sweep.metric=mrr@10"]).sweep_id != plain.sweep_id
    with pytest.raises(InputError, match="pak"):
        load(file, ["sweep.pak=3"])
    assert yaml.safe_load(file.read_text())["over"] == OVER


def queue_over(values: list[int]) -> TrialQueue:
    """A trial for each value."""
    over = {"a.x": {"grid": values}}
    config = SweepConfig.model_validate({"run": {}, "over": over})
    return TrialQueue(
        Listed(settings_of(config)),
        lambda s: [Trial(s.point, 1, "d", "t")],
        lambda s: "fpmc",
        "ndcg@10",
        1,
        {},
    )


def test_the_size_of_packs_is_learned_from_all_of_a_packs_trials_the_last_ones_too() -> None:
    queue = queue_over(list(range(10)))

    def tell(records: list[TrialRecord]) -> None:
        for record in records:
            queue.tell(record)

    def over_now(trials: list[Trial], seconds: float) -> dict:
        records = [
            TrialRecord(
                t.id, t.point, 1, t.inputs, "complete", {"ndcg@10": 0.1}, seconds=seconds
            ).as_json()
            for t in trials
        ]
        return {"records": records}

    sizes = PackSizes(3)
    packs = _Packs(queue, sizes, 2, tell)
    pack = [Trial(**trial) for trial in packs.suggest("first")["pack"]]
    # What a pack ends with, Tune tells only as its end.
    packs.on_trial_result("first", over_now(pack[:1], 1.0))
    packs.on_trial_complete("first", over_now(pack[1:], 4.0))
    assert sizes.trial_seconds == pytest.approx((1.0 + 4.0 + 4.0) / 3)
    pack = [Trial(**trial) for trial in packs.suggest("second")["pack"]]
    packs.on_trial_complete("second", over_now(pack, 7.0))
    assert sizes.trial_seconds == pytest.approx((9.0 + 21.0) / 6)
    assert not queue.running
    assert len(queue.records) == 6


def test_a_pack_that_was_lost_whole_is_given_out_again_and_given_up_after_three_times() -> None:
    """Tune ends a pack without a retry when the actor that is just being handed it dies."""
    queue = queue_over([1, 2])
    told: list[TrialRecord] = []

    def tell(records: list[TrialRecord]) -> None:
        told.extend(records)
        for record in records:
            queue.tell(record)

    packs = _Packs(queue, PackSizes(2), 2, tell)
    for number in range(MOST_LOSSES):
        assert not told
        assert len(packs.suggest(f"pack {number}")["pack"]) == 2
        packs.on_trial_complete(f"pack {number}", None, error=True)
    assert [record.status for record in told] == ["failed"] * 2
    assert "could not work, 3 times" in told[0].reason
    assert queue.is_over
