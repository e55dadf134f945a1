"""MLflow for real: a local SQLite store and a server, read back through MLflow's own client."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from alkd_ray import registry
from alkd_ray.config import make
from alkd_ray.errors import AlkdError
from alkd_ray.runtime import driver, tracking
from alkd_ray.runtime.tracking import DatasetInput, StudentRun, TrackedRun
from alkd_ray.seeds import torch_stream
from alkd_ray.serving.export import export
from alkd_ray.serving.recommend import load_student
from alkd_ray.stages import Silent
from alkd_ray.training import checkpoint
from alkd_ray.types import Catalogue
from tests.sweep_files import RUN

SESSIONS = [["i3", "i5"], ["i9"], ["i1", "nowhere", "i2"], []]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two students, by seed."""
    folder = tmp_path_factory.mktemp("exports")
    items = Catalogue(
        np.array([f"i{item}" for item in range(30)], object),
        np.array([f"Title {item}" for item in range(30)], object),
    )
    found = {}
    for seed in (1, 2):
        backbone = registry.build(
            "recommenders", "fpmc", {}, num_items=30, dim=4, generator=torch_stream(seed, "test")
        )
        checkpoint.save(
            folder / f"c{seed}",
            backbone,
            backbone_name="fpmc",
            options={},
            dim=4,
            num_items=30,
            metrics={"recall@25": 0.5},
        )
        export(folder / f"c{seed}", items, 5, folder / f"distilled-{seed}")
        found[seed] = folder / f"distilled-{seed}"
    return found


@pytest.fixture(scope="module")
def arguments(exports: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of two seeds; seed 2 is the better on validation, seed 1 on test."""
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "ranks.parquet").write_bytes(b"ranks")
    (folder / "report").mkdir()
    (folder / "report" / "report.html").write_text("<p>report</p>")
    students = []
    for seed in (1, 2):
        for role in ("student", "teacher", "distilled"):
            students.append(
                StudentRun(
                    name=role,
                    seed=seed,
                    params={
                        "role": role,
                        "seed": seed,
                        "model.dim": 4,
                        "long": "x" * 9000,
                        "no": "",
                    },
                    history=(
                        {"step": 0, "loss": math.nan, "metric": 0.1, "seconds": 0.0},
                        {"step": 20, "loss": 0.7, "metric": 0.2 + seed / 10, "seconds": 1.5},
                        {"step": 40, "loss": 0.6, "metric": 0.2, "seconds": 3.0},
                    ),
                    metrics={"recall@5": 0.5 - seed / 10, "ndcg@5": 0.25},
                    cost={"cost_dollars": 0.125} if role == "distilled" else {},
                    artifacts={
                        "ranks.parquet": folder / "ranks.parquet",
                        "shown/other.name": folder / "report" / "report.html",
                    },
                    export_folder=exports[seed] if role == "distilled" else None,
                    tags={"stage_key": f"{role}{seed}"},
                )
            )
    return {
        "experiment": "tests of tracking",
        "run_key": "tiny-0a1b2c3d",
        "run_name": "tiny",
        "params": {f"field.{number}": number for number in range(230)},
        "datasets": [
            DatasetInput("world", "0123456789abcdef", "synthetic, tiny", folder, {"items": 30})
        ],
        "students": students,
        "metrics": {"cost_dollars": 0.125},
        "artifacts": {"report": folder / "report"},
    }


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def store_below(root: Path, empty_store: Path) -> str:
    """The default store of a run root, its database there already."""
    uri = tracking.default_tracking_uri(root)
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True)
    shutil.copy(empty_store, file)
    return uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        return store_below(tmp_path_factory.mktemp("root"), empty_store)


@pytest.fixture(scope="module")
def logged(uri: str, arguments: dict[str, Any]) -> TrackedRun:
    return tracking.log_pipeline_run(uri=uri, **arguments)


def test_the_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking.default_tracking_uri(tmp_path) == "http://127.0.0.1:9"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    unset = tracking.default_tracking_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking.default_tracking_uri(tmp_path) == unset
    assert unset == f"sqlite:///{tmp_path}/mlflow/mlflow.db"


def test_parent_and_children_hold_everything(
    uri: str, logged: TrackedRun, arguments: dict[str, Any]
) -> None:
    _check_everything(MlflowClient(uri), logged, arguments)


def test_artifacts_lie_beside_the_database_and_nowhere_else(uri: str, logged: TrackedRun) -> None:
    folder = Path(uri.removeprefix("sqlite:///")).parent
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "artifacts"}
    run = MlflowClient(uri).get_run(logged.run_id)
    assert run.info.artifact_uri is not None
    assert run.info.artifact_uri.startswith((folder / "artifacts").as_uri())


def test_the_logged_student_recommends_what_the_export_does(
    uri: str, logged: TrackedRun, exports: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_uri = f"runs:/{logged.students['distilled-1']}/student"
    for model_uri, seed in ((run_uri, 1), (logged.model_uri, 2), ("models:/tiny/latest", 2)):
        _check_answers(mlflow.pyfunc.load_model(model_uri), exports[seed])


def test_logging_again_finds_what_is_there(
    uri: str, logged: TrackedRun, arguments: dict[str, Any]
) -> None:
    before = _everything(uri)
    again = tracking.log_pipeline_run(uri=uri, **arguments)
    assert again == replace(logged, reused=True)
    assert _everything(uri) == before


def test_an_interrupted_logging_is_completed_without_duplicates(
    tmp_path: Path, empty_store: Path, arguments: dict[str, Any]
) -> None:
    uri = store_below(tmp_path, empty_store)
    broken = [*arguments["students"]]
    # The last student's file is not there: five are logged, the sixth fails on its way.
    broken[-1] = replace(broken[-1], artifacts={"ranks.parquet": tmp_path / "gone.parquet"})
    with pytest.raises(AlkdError, match="gone"):
        tracking.log_pipeline_run(uri=uri, **{**arguments, "students": broken})
    client = MlflowClient(uri)
    [experiment] = client.search_experiments(filter_string="name = 'tests of tracking'")
    half = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in half) == ["FAILED"] * 2 + ["FINISHED"] * 5
    whole = tracking.log_pipeline_run(uri=uri, **arguments)
    assert not whole.reused
    assert {run.info.run_id for run in half} == {whole.run_id, *whole.students.values()}
    _check_everything(client, whole, arguments)
    assert len(client.search_logged_models([experiment.experiment_id])) == 2


def test_other_content_of_the_same_run_supersedes_it(
    tmp_path: Path, empty_store: Path, arguments: dict[str, Any]
) -> None:
    uri = store_below(tmp_path, empty_store)
    students = arguments["students"][:3]
    first = tracking.log_pipeline_run(uri=uri, **{**arguments, "students": students})
    changed = [replace(one, tags={"stage_key": "another"}) for one in students]
    second = tracking.log_pipeline_run(uri=uri, **{**arguments, "students": changed})
    assert second.run_id != first.run_id
    assert (first.model_uri, second.model_uri) == ("models:/tiny/1", "models:/tiny/2")
    client = MlflowClient(uri)
    assert client.get_run(first.run_id).data.tags["alkd.superseded_by"] == second.run_id
    assert "alkd.superseded_by" not in client.get_run(second.run_id).data.tags


def test_a_run_that_the_store_has_lost_is_logged_again(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run's record says of MLflow is looked at there."""
    monkeypatch.setenv("ALKD_HOME", str(tmp_path / "home"))
    uri = store_below(tmp_path / "home", empty_store)
    given = {
        **RUN,
        "name": "kept",
        "distillation": {"method": "teacher-ranking", "training": {"max_steps": 20}},
        "evaluation": {"baselines": [], "resamples": 100},
        "tracking": {"enabled": True},
    }

    def logged_as() -> str:
        done = driver.execute(make(given), Silent())
        assert (done.warning, done.tracking_uri) == ("", uri)
        info = MlflowClient(uri).get_run(done.tracking_run_id).info
        assert (info.status, info.lifecycle_stage) == ("FINISHED", "active")
        return done.tracking_run_id

    first = logged_as()
    assert logged_as() == first
    MlflowClient(uri).delete_run(first)
    second = logged_as()
    assert second != first
    # The id of a store that was removed.
    [record] = (tmp_path / "home" / "records").glob("*/run.json")
    record.write_text(record.read_text().replace(second, "0" * 32))
    assert logged_as() == second


def test_several_processes_log_to_one_new_store(tmp_path: Path) -> None:
    """As trials of a sweep do; each makes the database, or waits for it."""
    uri = tracking.default_tracking_uri(tmp_path)
    code = (
        "import sys\n"
        "from alkd_ray.runtime import tracking\n"
        "done = tracking.log_pipeline_run(uri=sys.argv[1], experiment='sweep',\n"
        "    run_key='trial-' + sys.argv[2], run_name='trial', params={'seed': sys.argv[2]},\n"
        "    students=[tracking.StudentRun('student', 1, {}, [], {'recall@5': 0.5})],\n"
        "    datasets=[], metrics={}, artifacts={})\n"
        "print(done.run_id)\n"
    )
    trials = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    answers = [trial.communicate(timeout=240) for trial in trials]
    # Nothing but our own line on either stream: MLflow and alembic are silent.
    assert [error for _, error in answers] == [""] * 2
    client = MlflowClient(uri)
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    assert {out.strip() for out, _ in answers} <= {run.info.run_id for run in runs}
    assert all(len(out.split()) == 1 for out, _ in answers)


def test_nothing_of_the_process_is_changed(
    tmp_path: Path,
    empty_store: Path,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before = (dict(os.environ), mlflow.get_tracking_uri(), mlflow.active_run())
    tracking.log_pipeline_run(
        uri=store_below(tmp_path / "root", empty_store),
        **{**arguments, "students": arguments["students"][2:3]},
    )
    assert (dict(os.environ), mlflow.get_tracking_uri(), mlflow.active_run()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("store", ["closed port", "silent port", "not a database", "no store"])
def test_an_unreachable_store_is_one_sentence_in_bounded_time(
    store: str, tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.db").write_text("this is not a database, it is a text\n" * 100)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        if store == "silent port":  # accepts the connection, never answers
            taken.listen()
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        uri = {
            "not a database": f"sqlite:///{tmp_path}/text.db",
            "no store": "nonsense://somewhere",
        }.get(store, f"http://user:secret@127.0.0.1:{port}")
        started = time.monotonic()
        with pytest.raises(AlkdError) as raised:
            tracking.log_pipeline_run(uri=uri, **arguments)
    assert time.monotonic() - started < 30
    message = str(raised.value)
    assert message.startswith("MLflow at ")
    assert "\n" not in message
    assert "secret" not in message
    assert len(message) < 450


def test_a_server_gets_the_same(
    tmp_path: Path,
    empty_store: Path,
    arguments: dict[str, Any],
    exports: dict[int, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(empty_store, tmp_path / "server.db")
    with mlflow_server(tmp_path) as uri:
        tracked = tracking.log_pipeline_run(uri=uri, **arguments)
        assert tracking.log_pipeline_run(uri=uri, **arguments) == replace(tracked, reused=True)
        client = MlflowClient(uri)
        _check_everything(client, tracked, arguments)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        _check_answers(mlflow.pyfunc.load_model(tracked.model_uri), exports[2])


def _check_everything(client: MlflowClient, run: TrackedRun, arguments: dict[str, Any]) -> None:
    parent = client.get_run(run.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "tiny"
    assert parent.data.params == {k: str(v) for k, v in arguments["params"].items()}
    assert parent.data.metrics == {"cost_dollars": 0.125}
    assert _files_of(client, run.run_id) == {"report/report.html"}
    children = client.search_runs(
        [run.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'"
    )
    assert {child.info.run_name: child.info.run_id for child in children} == run.students
    assert len(children) == len(arguments["students"])
    for student in arguments["students"]:
        child = client.get_run(run.students[f"{student.name}-{student.seed}"])
        assert child.info.status == "FINISHED"
        assert child.data.tags["stage_key"] == f"{student.name}{student.seed}"
        assert child.data.params["long"] == "x" * 5997 + "..."
        assert child.data.params["model.dim"] == "4"
        assert child.data.params["no"] == ""
        assert child.data.metrics["recall_at_5"] == 0.5 - student.seed / 10
        assert child.data.metrics.get("cost_dollars") == student.cost.get("cost_dollars")
        [data] = child.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("world", "0123456789abcdef")
        for name in ("loss", "metric", "seconds"):
            found = client.get_metric_history(child.info.run_id, name)
            assert [(point.step, point.value) for point in found] == [
                (row["step"], row[name]) for row in student.history if not math.isnan(row[name])
            ]
        assert _files_of(client, child.info.run_id) == {"ranks.parquet", "shown/other.name"}
        models = child.outputs.model_outputs if child.outputs else []
        assert len(models) == (student.name == "distilled")
        for model in models:
            described = client.get_logged_model(model.model_id)
            assert described.status == "READY"
            shown = {metric.key: metric.value for metric in described.metrics or []}
            assert shown == {"recall_at_5": 0.5 - student.seed / 10, "ndcg_at_5": 0.25}
    # The best on validation is registered, not the best on test.
    name, version = run.model_uri.removeprefix("models:/").split("/")
    [found] = client.search_model_versions(f"name = '{name}'")
    assert (str(found.version), found.run_id) == (version, run.students["distilled-2"])


def _check_answers(model: Any, exported: Path) -> None:
    answers = model.predict(pd.DataFrame({"session": SESSIONS}), params={"k": 7})
    expected = load_student(exported).recommend(SESSIONS, 7)
    assert list(answers["items"]) == [[i.source_id for i in one.items] for one in expected]
    assert list(answers["scores"]) == [[i.score for i in one.items] for one in expected]
    assert list(answers["titles"]) == [[i.title for i in one.items] for one in expected]
    assert list(answers["unknown"]) == [[], [], ["nowhere"], []]
    assert [bool(problem) for problem in answers["problem"]] == [False, False, False, True]
    assert [len(items) for items in answers["items"]] == [7, 7, 7, 0]


def _files_of(client: MlflowClient, run_id: str, folder: str = "") -> set[str]:
    found: set[str] = set()
    for entry in client.list_artifacts(run_id, folder or None):
        found |= _files_of(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def _everything(uri: str) -> dict[str, int]:
    """Rows of every table of an SQLite store."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: database.execute(f'SELECT COUNT(*) FROM "{name}"').fetchone()[0]
            for (name,) in tables
        }


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/server.db",
        "--artifacts-destination", str(folder / "served"), "--workers", "1",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = folder / "server.log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(server)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server with the workers that it started; they are a process group of their own."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
