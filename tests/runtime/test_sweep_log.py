"""A real sweep in MLflow: logged while it runs, rebuilt from its journal, over servers that die."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from alkd_ray import datasets
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.runtime import sweep as running
from alkd_ray.runtime.sweep_log import SweepLogger, TrackedSweep, log
from alkd_ray.runtime.tracking import default_tracking_uri
from alkd_ray.stages import Silent
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps.config import Sweep, load
from alkd_ray.sweeps.standings import Standing, standings
from tests import sweep_files

SWEEP = """
name: tiny
run:
  data: {source: synthetic, options: {size: tiny}}
  teacher: {training: {max_steps: 60}}
  student: {training: {max_steps: 60}}
  distillation: {training: {max_steps: 60}}
  difficulty: {engine: local}
  annotation: {engine: local}
  tracking: {experiment: sweeps, enabled: false}
seeds: [1, 2]
over:
  selection.strategy: {grid: [random, hardest]}
  student.backbone: {grid: [fpmc, stamp]}
  selection.budget: {grid: [20]}
engine: local
"""
PATIENCE_SECONDS = 240
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass
class Logged:
    """A sweep that was run with a logger beside it."""

    sweep: Sweep
    folder: Path
    outcome: running.SweepOutcome
    uri: str
    tracked: Any
    before_the_end: list[str]
    environment_changed: dict[str, Any]


class Notifying(Silent):
    """A listener as the driver is one: tells the logger that something was journalled."""

    def __init__(self, logger: SweepLogger) -> None:
        self.logger = logger

    def trials(self, queue: Any, found: Any) -> None:
        self.logger.notify()

    def shared(self, shared: Any) -> None:
        self.logger.notify()


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Logged]:
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALKD_HOME", str(root))
        file = root / "tiny.yaml"
        file.write_text(SWEEP)
        sweep = load(file)
        uri = store_in(root / "mlflow", empty_store)
        assert uri == default_tracking_uri(root)
        folder = journals.folder_of(sweep)
        before = dict(os.environ)
        logger = SweepLogger(sweep, folder, uri, every_seconds=0.05)
        outcome = running.execute(sweep, Notifying(logger), lambda plan: None)
        client = MlflowClient(uri)
        # Nobody has waited for it, and it was not told of the end: the settings come by themselves.
        wait_until(lambda: len(settings_in(client, sweep)) == 4, lambda: logger.problem)
        found = [run.info.run_id for run in settings_in(client, sweep)]
        tracked = logger.finish(PATIENCE_SECONDS)
        after = dict(os.environ)
        changed = {k: v for k, v in after.items() if "MLFLOW" in k and before.get(k) != v}
        yield Logged(sweep, folder, outcome, uri, tracked, found, changed)


def test_settings_are_logged_while_the_sweep_goes_on(logged: Logged) -> None:
    assert not isinstance(logged.tracked, str), logged.tracked
    # The end wrote to the same runs.
    assert set(logged.before_the_end) == set(logged.tracked.settings.values())
    assert logged.environment_changed == {}


def test_sweep_and_settings_hold_everything(logged: Logged) -> None:
    check_everything(MlflowClient(logged.uri), logged)


def test_the_best_student_is_the_champion(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(logged.uri)
    best = logged.outcome.standings[0]
    version = client.get_model_version_by_alias("tiny", "champion")
    assert logged.tracked.model_uri == f"models:/tiny/{version.version}" == "models:/tiny/1"
    assert version.run_id == logged.tracked.settings[best.setting.id]
    seed = max(best.by_seed, key=lambda one: best.by_seed[one])
    assert version.tags["alkd.seed"] == str(seed)
    record = logged.outcome.records[f"{best.setting.id}-{seed}"]
    assert version.tags["alkd.student"] == record.distilled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logged.uri)
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    [imported] = Path(os.environ["ALKD_HOME"], "import").glob("*/dataset")
    session = [str(source) for source in datasets.read(imported).catalogue.source_ids[:2]]
    answer = model.predict(pd.DataFrame({"session": [session]}), params={"k": 4})
    assert [len(items) for items in answer["items"]] == [4]


def test_seeds_are_a_table_that_mlflow_reads(
    logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logged.uri)
    client = MlflowClient(logged.uri)
    for setting, run_id in logged.tracked.settings.items():
        table = client.load_table(logged.tracked.experiment_id, "seeds.json", run_ids=[run_id])
        records = [logged.outcome.records[f"{setting}-{seed}"] for seed in (1, 2)]
        assert table["seed"].tolist() == [1, 2]
        assert table["distilled"].tolist() == [record.distilled for record in records]
        assert table["ndcg@10"].tolist() == pytest.approx(
            [record.metrics["ndcg@10"] for record in records]
        )


def test_logging_again_writes_nothing(logged: Logged) -> None:
    before = everything(logged.uri)
    again = log(logged.sweep, logged.folder, logged.uri)
    assert (again.written, again.model_uri) == (0, logged.tracked.model_uri)
    assert (again.run_id, again.settings) == (logged.tracked.run_id, logged.tracked.settings)
    assert everything(logged.uri) == before
    check_everything(MlflowClient(logged.uri), logged)


def test_a_fresh_store_is_filled_from_the_journal(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    uri = store_in(tmp_path, empty_store)
    tracked = log(logged.sweep, logged.folder, uri)
    assert tracked.written == 4
    again = Logged(logged.sweep, logged.folder, logged.outcome, uri, tracked, [], {})
    check_everything(MlflowClient(uri), again)
    ours, theirs = MlflowClient(uri), MlflowClient(logged.uri)
    for setting, run_id in tracked.settings.items():
        assert shown(ours, run_id) == shown(theirs, logged.tracked.settings[setting])


def test_an_interrupted_logging_is_completed_with_nothing_twice(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    """A run that was begun alone, and one made twice since the answer to its request was lost."""
    uri = store_in(tmp_path, empty_store)
    client = MlflowClient(uri)
    first = log(logged.sweep, logged.folder, uri)
    [half, doubled, *_] = first.settings.values()
    client.update_run(half, status="RUNNING")
    original = client.get_run(doubled)
    names = ("alkd.sweep", "alkd.setting", "mlflow.parentRunId")
    tags = {name: original.data.tags[name] for name in names}
    client.create_run(original.info.experiment_id, original.info.start_time, tags)
    assert len(settings_in(client, logged.sweep)) == 5
    second = log(logged.sweep, logged.folder, uri)
    assert second.written == 1
    assert (second.run_id, second.settings) == (first.run_id, first.settings)
    check_everything(
        client, Logged(logged.sweep, logged.folder, logged.outcome, uri, second, [], {})
    )


def test_a_setting_that_becomes_whole_is_brought_up_to_date_in_its_place(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    uri, folder = store_in(tmp_path, empty_store), tmp_path / "sweep"
    client = MlflowClient(uri)
    lines = journal_lines(logged.folder)
    last = max(number for number, line in enumerate(lines) if event_of(line) == "trial")
    write_journal(folder, lines[:last])
    missing = json.loads(lines[last])
    setting = missing["trial"].rsplit("-", 1)[0]
    first = log(logged.sweep, folder, uri)
    half = client.get_run(first.settings[setting])
    assert half.data.tags["alkd.state"] == "1 not run"
    assert (half.info.status, client.get_run(first.run_id).info.status) == ("KILLED", "KILLED")
    assert "ndcg_at_10" in half.data.metrics
    assert not {"loss", "ndcg_at_10_half_width"} & half.data.metrics.keys()

    write_journal(folder, lines)
    second = log(logged.sweep, folder, uri)
    assert second.settings == first.settings
    check_everything(client, Logged(logged.sweep, folder, logged.outcome, uri, second, [], {}))


def test_another_best_moves_the_alias_and_other_outputs_replace_a_run(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    """As after more was bought: the trials of the last setting are run again, and are better."""
    uri, folder = store_in(tmp_path, empty_store), tmp_path / "sweep"
    client, lines, first = logged_there(logged, folder, uri)
    best, *_, worst = logged.outcome.standings
    write_journal(folder, lines + again(lines, worst, best, {"ndcg@10": 0.9}))
    second = log(logged.sweep, folder, uri)
    assert second.written == 1
    assert (first.model_uri, second.model_uri) == ("models:/tiny/1", "models:/tiny/2")
    version = client.get_model_version_by_alias("tiny", "champion")
    assert (str(version.version), version.run_id) == ("2", second.settings[worst.setting.id])
    assert len(client.search_model_versions("name = 'tiny'")) == 2
    # Its points by step are others now: the run that had the earlier ones is in the bin.
    changed = {one for one in first.settings if first.settings[one] != second.settings[one]}
    assert changed == {worst.setting.id}
    assert client.get_run(first.settings[worst.setting.id]).info.lifecycle_stage == "deleted"
    assert len(settings_in(client, logged.sweep)) == 4
    metrics = client.get_run(second.settings[worst.setting.id]).data.metrics
    assert metrics["ndcg_at_10"] == pytest.approx(0.9)
    assert client.get_run(second.run_id).data.metrics["best_ndcg_at_10"] == pytest.approx(0.9)


def test_plain_counts_tested_again_are_the_same_points(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    """As after a resumption, which tests the finalists again and finds the same ranks."""
    uri, folder = store_in(tmp_path, empty_store), tmp_path / "sweep"
    client, lines, _ = logged_there(logged, folder, uri)
    ended = [json.loads(line) for line in lines if event_of(line) in ("tested", "ended")]
    later = datetime.fromisoformat(ended[-1]["at"]) + timedelta(minutes=1)
    write_journal(folder, lines + [json.dumps({**one, "at": later.isoformat()}) for one in ended])
    again = log(logged.sweep, folder, uri)
    plain = plain_in(client, again.run_id)
    assert plain == pytest.approx(plain_of(logged.outcome.report), abs=1e-6)
    for name, value in plain.items():
        points = client.get_metric_history(again.run_id, name)
        assert [point.value for point in points] == [value]


def test_plain_counts_of_several_datasets_are_named_by_them(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    """One with a name of its own, and one read in two ways, which has one name."""
    sessions = "".join(
        f"{session},{item},Book {item}\n"
        for session in range(200)
        for item in ((session + step * step) % 40 for step in range(5))
    )
    table = tmp_path / "shop.csv"
    table.write_text(f"session,item,title\n{sessions}")
    options = {"path": str(table), "session": "session", "title": "title"}
    shop = {"data.source": "table", "data.options": options}
    tiny = {"data.source": "synthetic", "data.options": {"size": "tiny"}}
    corpora = {"shop": shop, "books": tiny, "ends": {**tiny, "data.window": 2}}
    told = yaml.safe_load(SWEEP)
    told["run"].pop("data")
    told |= {"over": {"corpus": {"cases": corpora}}, "seeds": [1], "finalists": "all"}
    told["run"] |= {"selection": {"budget": 20}}
    file = tmp_path / "corpora.yaml"
    file.write_text(yaml.safe_dump(told))
    outcome = sweep_files.run(file)
    assert outcome.status == "complete", outcome.reason
    uri = store_in(tmp_path, empty_store)
    tracked = log(outcome.sweep, outcome.folder, uri)
    corpus = {one.setting.id: one.setting.point["corpus"] for one in outcome.standings}
    assert sorted(corpus[setting] for setting in outcome.baselines) == sorted(corpora)
    wanted = {}
    for setting, counts in outcome.baselines.items():
        for name, key in counts.items():
            dataset = "shop" if corpus[setting] == "shop" else f"synthetic-books-{key[:8]}"
            ranks = Path(os.environ["ALKD_HOME"], "evaluation", key, "ranks.parquet")
            found = metric_values(read_ranks(ranks), "ndcg@10").mean()
            wanted[f"test_{dataset}_{name}_ndcg_at_10"] = float(found)
    plain = plain_in(MlflowClient(uri), tracked.run_id)
    assert {name: plain[name] for name in wanted} == pytest.approx(wanted)
    assert len(wanted) == 3 * 4 == len({name for name in plain if name.endswith("ndcg_at_10")})


def test_failed_and_dropped_trials_show(tmp_path: Path, empty_store: Path, logged: Logged) -> None:
    uri, folder = store_in(tmp_path, empty_store), tmp_path / "sweep"
    lines = journal_lines(logged.folder)
    trials = [number for number, line in enumerate(lines) if event_of(line) == "trial"]
    wanted = {trials[-1]: "failed", trials[-3]: "dropped", trials[-4]: "dropped"}
    for number, status in wanted.items():
        told = json.loads(lines[number])
        told |= {"status": status, "metrics": {}, "distilled": "", "reason": f"it was {status}"}
        lines[number] = json.dumps(told)
    write_journal(folder, [line for line in lines if event_of(line) != "tested"])
    tracked = log(logged.sweep, folder, uri)
    client = MlflowClient(uri)
    found = {
        (run.data.tags["alkd.state"], run.info.status) for run in settings_in(client, logged.sweep)
    }
    assert found == {("1 failed", "FAILED"), ("2 dropped", "KILLED"), ("whole", "FINISHED")}
    figures = client.get_run(tracked.run_id).data.metrics
    assert [figures[f"trials_{name}"] for name in ("complete", "dropped", "failed")] == [5, 2, 1]


def test_files_of_the_sweep_are_there_and_can_be_run_again(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    uri, folder = store_in(tmp_path / "store", empty_store), tmp_path / "sweep"
    write_journal(folder, journal_lines(logged.folder))
    (folder / "report").mkdir()
    (folder / "report" / "report.html").write_text("<p>report</p>")
    tracked = log(logged.sweep, folder, uri)
    client = MlflowClient(uri)
    fetched = Path(client.download_artifacts(tracked.run_id, "", str(tmp_path)))
    assert (fetched / "report" / "report.html").read_text() == "<p>report</p>"
    assert (fetched / "journal.jsonl").read_text() == (folder / "journal.jsonl").read_text()
    assert load(fetched / "sweep.yaml").sweep_id == logged.sweep.sweep_id


def test_a_sweep_is_logged_by_one_process_at_a_time(tmp_path: Path, logged: Logged) -> None:
    folder = tmp_path / "sweep"
    write_journal(folder, journal_lines(logged.folder))
    with silent_port() as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        logger = SweepLogger(logged.sweep, folder, uri)
        logger.notify()
        wait_until(lambda: (folder / ".mlflow.lock").exists(), lambda: logger.problem)
        with pytest.raises(AlkdError, match="another process is logging this sweep"):
            log(logged.sweep, folder, uri)
        said = logger.finish(0.01)
        assert isinstance(said, str)
        wait_until(lambda: "MLflow at" in logger.problem, lambda: logger.problem)


def test_a_sweep_that_was_not_begun_is_not_logged(tmp_path: Path, logged: Logged) -> None:
    with pytest.raises(InputError, match="was not begun"):
        log(logged.sweep, tmp_path / "nowhere", f"sqlite:///{tmp_path}/mlflow.db")
    logger = SweepLogger(logged.sweep, tmp_path / "nowhere", f"sqlite:///{tmp_path}/mlflow.db")
    assert "was not begun" in str(logger.finish(PATIENCE_SECONDS))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_down_in_the_middle_loses_nothing(
    tmp_path: Path, empty_store: Path, logged: Logged
) -> None:
    """The server is killed after the first settings, and back after the others are journalled."""
    folder = tmp_path / "sweep"
    lines = journal_lines(logged.folder)
    halfway = [number for number, line in enumerate(lines) if event_of(line) == "trial"][3] + 1
    shutil.copy(empty_store, tmp_path / "server.db")
    server = Server(tmp_path)
    try:
        write_journal(folder, lines[:halfway])
        logger = SweepLogger(
            logged.sweep,
            folder,
            server.uri,
            every_seconds=0.05,
            first_wait_seconds=0.1,
            longest_wait_seconds=0.5,
        )
        logger.notify()
        client = MlflowClient(server.uri)
        wait_until(lambda: finished_in(client, logged.sweep) == 2, lambda: logger.problem)
        assert logger.problem == ""
        server.kill()
        write_journal(folder, lines[: halfway + 2])
        logger.notify()
        wait_until(lambda: "MLflow at http" in logger.problem, lambda: "no problem was seen")
        write_journal(folder, lines)
        logger.notify()
        server.start()
        tracked = logger.finish(PATIENCE_SECONDS)
        assert not isinstance(tracked, str), tracked
        served = Logged(logged.sweep, folder, logged.outcome, server.uri, tracked, [], {})
        check_everything(client, served)
        assert log(logged.sweep, folder, server.uri).written == 0
        [version] = client.search_model_versions("name = 'tiny'")
        champion = client.get_model_version_by_alias("tiny", "champion")
        assert champion.version == version.version
    finally:
        server.kill()


def test_patience_ends_and_the_rest_is_logged_later(
    tmp_path: Path, empty_store: Path, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        logger = SweepLogger(logged.sweep, logged.folder, uri, first_wait_seconds=0.1)
        logger.notify()
        wait_until(lambda: bool(logger.problem), lambda: "no problem was seen")
        said = logger.finish(0.5)
    assert isinstance(said, str)
    assert said.startswith("MLflow at http")
    assert "it is tried for up to" in caplog.text
    assert "secret" not in said + caplog.text
    wait_until(lambda: not is_logging(logged.folder), lambda: "it did not give up")
    assert log(logged.sweep, logged.folder, store_in(tmp_path, empty_store)).written == 4


def check_everything(client: MlflowClient, logged: Logged) -> None:
    """What MLflow holds against the sweep's own outcome."""
    outcome, tracked = logged.outcome, logged.tracked
    metric = logged.sweep.config.metric
    best = outcome.standings[0]
    whole = client.get_run(tracked.run_id)
    assert (whole.info.status, whole.info.run_name) == ("FINISHED", logged.sweep.sweep_id)
    figures = whole.data.metrics
    assert figures["best_ndcg_at_10"] == pytest.approx(best.mean)
    assert figures["best_ndcg_at_10_half_width"] == pytest.approx(best.half_width)
    shared = outcome.shared
    assert (figures["requests"], figures["requests_unshared"]) == (shared.requests, shared.unshared)
    assert (figures["requests_sent"], figures["cost_dollars"]) == (
        shared.sent,
        shared.microusd / 1e6,
    )
    assert (figures["trials_complete"], figures["trials_failed"]) == (8, 0)
    assert plain_in(client, tracked.run_id) == pytest.approx(plain_of(outcome.report), abs=1e-6)
    assert whole.data.params["selection.strategy"] == '{"grid": ["random", "hardest"]}'
    assert whole.data.params["teacher.training.max_steps"] == "60"
    assert {"journal.jsonl", "sweep.yaml"} <= {
        f.path for f in client.list_artifacts(tracked.run_id)
    }
    runs = {run.data.tags["alkd.setting"]: run for run in settings_in(client, logged.sweep)}
    assert {setting: run.info.run_id for setting, run in runs.items()} == tracked.settings
    assert len(runs) == len(outcome.standings) == 4
    for standing in outcome.standings:
        run = runs[standing.setting.id]
        assert run.info.status == "FINISHED"
        assert (run.data.tags["alkd.state"], run.data.tags["alkd.seeds"]) == ("whole", "1,2")
        assert run.data.tags["mlflow.parentRunId"] == tracked.run_id
        point = {name: str(value) for name, value in standing.setting.point.items()}
        assert point.items() <= run.data.params.items()
        records = [outcome.records[f"{standing.setting.id}-{seed}"] for seed in (1, 2)]
        assert {"recall@5", "ndcg@5", "recall@10", metric, "mrr@10"} == records[0].metrics.keys()
        for name in records[0].metrics:
            [of_name] = standings(records, name, [1, 2])
            shown_as = name.replace("@", "_at_")
            assert run.data.metrics[shown_as] == pytest.approx(of_name.mean)
            assert run.data.metrics[f"{shown_as}_half_width"] == pytest.approx(of_name.half_width)
        assert ("test_ndcg_at_10" in run.data.metrics) == (standing is best)
        check_history(client, run.info.run_id, [record.distilled for record in records])
    assert "test_teacher_recall_at_5_half_width" in runs[best.setting.id].data.metrics


def logged_there(
    logged: Logged, folder: Path, uri: str
) -> tuple[MlflowClient, list[str], TrackedSweep]:
    """A sweep's journal, written to a folder of its own, and logged from there."""
    lines = journal_lines(logged.folder)
    write_journal(folder, lines)
    return MlflowClient(uri), lines, log(logged.sweep, folder, uri)


def plain_in(client: MlflowClient, run_id: str) -> dict[str, float]:
    """Metrics of the sweep's run on the test sessions, which are those of plain counts."""
    metrics = client.get_run(run_id).data.metrics
    return {name: value for name, value in metrics.items() if name.startswith("test_")}


def plain_of(report: Path) -> dict[str, float]:
    """The same as a sweep's report has them, of one dataset."""
    plain = json.loads((report / "metrics.json").read_text())["baselines"]
    assert {one["name"] for one in plain} >= {"popularity", "item-knn", "vsknn"}
    return {
        f"test_{one['name']}_{metric.replace('@', '_at_')}": found["mean"]
        for one in plain
        for metric, found in one["metrics"].items()
    }


def check_history(client: MlflowClient, run_id: str, distilled: list[str]) -> None:
    root = Path(os.environ["ALKD_HOME"])
    by_step: dict[int, list[float]] = {}
    for key in distilled:
        text = (root / "distillation" / key / "history.json").read_text()
        for row in json.loads(text)["history"]:
            by_step.setdefault(row["step"], []).append(row["metric"])
    found = client.get_metric_history(run_id, "metric")
    assert [point.step for point in found] == sorted(by_step)
    assert [point.value for point in found] == pytest.approx(
        [sum(values) / len(values) for _, values in sorted(by_step.items())]
    )
    assert len(by_step) == 4  # 0, 20, 40, 60


def shown(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """All of a run that does not depend on the store."""
    run = client.get_run(run_id)
    tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
    times = (run.info.start_time, run.info.end_time)
    return {"params": run.data.params, "metrics": run.data.metrics, "tags": tags, "times": times}


def settings_in(client: MlflowClient, sweep: Sweep) -> list[Any]:
    experiment = client.get_experiment_by_name("sweeps")
    if experiment is None:
        return []
    wanted = f"tags.`alkd.sweep` = '{sweep.sweep_id}'"
    runs = client.search_runs([experiment.experiment_id], wanted)
    return [run for run in runs if "alkd.setting" in run.data.tags]


def finished_in(client: MlflowClient, sweep: Sweep) -> int:
    return sum(run.info.status == "FINISHED" for run in settings_in(client, sweep))


def store_in(folder: Path, empty_store: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


def journal_lines(folder: Path) -> list[str]:
    return (folder / "journal.jsonl").read_text().splitlines()


def write_journal(folder: Path, lines: list[str]) -> None:
    """As many more lines as the file does not have yet, as the driver adds them."""
    folder.mkdir(exist_ok=True)
    file = folder / "journal.jsonl"
    there = len(journal_lines(folder)) if file.exists() else 0
    with file.open("a") as opened:
        opened.write("".join(line + "\n" for line in lines[there:]))


def event_of(line: str) -> str:
    return json.loads(line)["event"]


def again(
    lines: list[str], setting: Standing, students_of: Standing, metrics: dict[str, float]
) -> list[str]:
    """Lines of a setting's trials, later, with the students of another setting."""
    told = [json.loads(line) for line in lines]
    students = {
        event["seed"]: event["distilled"]
        for event in told
        if event.get("trial", "").startswith(students_of.setting.id)
    }
    later = datetime.fromisoformat(told[-1]["at"]) + timedelta(minutes=1)
    return [
        json.dumps(
            {
                **event,
                "at": later.isoformat(),
                "distilled": students[event["seed"]],
                "metrics": {**event["metrics"], **metrics},
            }
        )
        for event in told
        if event.get("trial", "").startswith(setting.setting.id)
    ]


def everything(uri: str) -> dict[str, int]:
    """Rows of every table of an SQLite store."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: database.execute(f'SELECT COUNT(*) FROM "{name}"').fetchone()[0]
            for (name,) in tables
        }


def wait_until(is_so: Callable[[], bool], why_not: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, why_not()
        time.sleep(0.05)


def is_logging(folder: Path) -> bool:
    """Whether a thread of this process still holds the lock."""
    import fcntl

    with (folder / ".mlflow.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextlib.contextmanager
def silent_port() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Server:
    """A real MLflow server, on one port for all its starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self._port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder}/server.db",
            "--artifacts-destination", str(self._folder / "served"),
        ]  # fmt: skip
        log_file = self._folder / "server.log"
        with log_file.open("ab") as said:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**os.environ, **ENVIRONMENT},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        wait_until(self._answers, log_file.read_text)

    def kill(self) -> None:
        """Kills it and its workers; they are a process group of their own."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
            return True
        return False
