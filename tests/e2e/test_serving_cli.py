"""A run's student outside its run: recommended from, exported, served by MLflow."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from alkd_ray.cli.main import build
from alkd_ray.errors import InputError
from tests.e2e.conftest import CommandLine

Inside = Callable[..., Result]


@pytest.fixture(scope="module")
def record(alkd: CommandLine) -> dict:
    """A small run, without Ray, which has no part in serving."""
    return alkd.run("difficulty.engine=local", "annotation.engine=local", "selection.budget=20")


@pytest.fixture(scope="module")
def ids(record: dict) -> list[str]:
    items = Path(record["outputs"]["dataset"]) / "dataset" / "items.parquet"
    return pq.read_table(items)["source_id"].to_pylist()


@pytest.fixture
def inside(alkd: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """The command line in this process, on the same run root: no start to wait for."""
    monkeypatch.setenv("ALKD_HOME", str(alkd.home))
    return lambda *words: CliRunner().invoke(build(), list(words))


def answers(alkd: CommandLine, *words: str, status: int = 0) -> list[dict[str, Any]]:
    return json.loads(alkd("recommend", *words, "--json", status=status).stdout)["sessions"]


def test_a_run_and_its_export_recommend_the_same(
    alkd: CommandLine, record: dict, ids: list[str], tmp_path: Path
) -> None:
    """The export is read where no run root is."""
    asked = ("--session", f"{ids[3]}, {ids[8]},nowhere", "--session", ids[5], "--top", "7")
    [first, second] = answers(alkd, "latest", *asked)
    assert first["unknown"] == ["nowhere"]
    assert len(first["items"]) == len(second["items"]) == 7
    scores = [item["score"] for item in first["items"]]
    assert scores == sorted(scores, reverse=True)
    assert not {item["source_id"] for item in first["items"]} & {ids[3], ids[8]}
    assert all(item["title"] for item in first["items"])

    out = tmp_path / "moved" / "student"
    told = json.loads(alkd("export", record["run_id"], "--out", str(out), "--json").stdout)
    assert (told["run_id"], told["seed"]) == (record["run_id"], 1)
    assert told["test_metrics"]["ndcg@10"] == pytest.approx(_reported(record), rel=1e-4)
    elsewhere = CommandLine(tmp_path / "no runs here", alkd.config)
    assert answers(elsewhere, str(out), *asked) == [first, second]


def test_roles_and_tables(record: dict, ids: list[str], inside: Inside) -> None:
    words = ("recommend", record["run_id"], "--session", ids[0])
    distilled = json.loads(inside(*words, "--json").stdout)["sessions"]
    teacher = json.loads(inside(*words, "--role", "teacher", "--json").stdout)["sessions"]
    assert teacher != distilled
    shown = inside(*words, "--role", "teacher", "--top", "2").stdout
    for item in teacher[0]["items"][:2]:
        assert item["source_id"] in shown
    assert teacher[0]["items"][2]["source_id"] not in shown.split()


def test_a_file_of_sessions_is_answered_where_it_can_be(
    record: dict, ids: list[str], tmp_path: Path, inside: Inside
) -> None:
    lines = tmp_path / "sessions.jsonl"
    lines.write_text(json.dumps([ids[2], ids[4]]) + "\n" + json.dumps(["nowhere"]) + "\n")
    done = inside("recommend", "latest", "--sessions", str(lines), "--json")
    assert done.exit_code == 3
    found = json.loads(done.stdout)["sessions"]
    assert [len(one["items"]) for one in found] == [10, 0]
    assert found[1]["problem"]
    table = tmp_path / "sessions.csv"
    table.write_text(f"session_id,item_id\nmine,{ids[2]}\nmine,{ids[4]}\n")
    done = inside("recommend", "latest", "--sessions", str(table), "--json")
    assert done.exit_code == 0
    [same] = json.loads(done.stdout)["sessions"]
    assert same["session_id"] == "mine"
    assert same["items"] == found[0]["items"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recommend", "no-such-run", "--session", "x"], "there is no run 'no-such-run'"),
        (["recommend", "latest", "--session", "nowhere"], "is in the catalogue"),
        (["recommend", "latest", "--session", ","], "the session is empty"),
        (["recommend", "latest", "--session", "x", "--top", "0"], "must be 1 to"),
        (["recommend", "latest"], "--sessions FILE"),
        (["recommend", "latest", "--session", "x", "--role", "boss"], "there is no role 'boss'"),
        (["recommend", "latest", "--session", "x", "--seed", "9"], "has no seed 9; its seeds: 1"),
        (["recommend", ".", "--session", "x"], "is not an exported student"),
        (["export", "no-such-run", "--out", "out"], "there is no run 'no-such-run'"),
        (["export", "latest", "--out", "."], "is there already"),
    ],
)
def test_bad_input_is_one_sentence(
    record: dict,
    tmp_path: Path,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    done = inside(*words)
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.output == ""
    if "no-such-run" in words:
        assert record["run_id"] in str(done.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_without_runs_the_error_says_how_to_make_one(alkd: CommandLine, tmp_path: Path) -> None:
    empty = CommandLine(tmp_path / "empty", alkd.config)
    done = empty("recommend", "latest", "--session", "x", status=2)
    assert "make one with `alkd run`" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_mlflow_serves_the_registered_student(
    alkd: CommandLine, record: dict, ids: list[str], tmp_path: Path
) -> None:
    """The command of docs/tracking.md, asked over HTTP with lists and with JSON texts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **alkd.environment,
        "MLFLOW_TRACKING_URI": record["tracking"]["uri"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # `mlflow models serve` starts uvicorn by its name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = tmp_path / "server.log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny/latest",
             "--env-manager", "local", "-p", str(port)],
            env=environment, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for(f"http://127.0.0.1:{port}/ping", server, log)
            session = [ids[3], ids[8], "nowhere"]
            found = _invoke(
                port,
                {
                    "dataframe_split": {
                        "columns": ["session"],
                        "data": [[session], [json.dumps(session)], [["nowhere"]]],
                    },
                    "params": {"k": 4},
                },
            )
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)
    [expected] = answers(alkd, "latest", "--session", ",".join(session), "--top", "4")
    assert found[0] == found[1]
    assert found[0]["items"] == [item["source_id"] for item in expected["items"]]
    assert found[0]["titles"] == [item["title"] for item in expected["items"]]
    assert found[0]["scores"] == pytest.approx([item["score"] for item in expected["items"]])
    assert found[0]["unknown"] == ["nowhere"]
    assert found[2]["items"] == []
    assert found[2]["problem"]


def test_an_output_that_is_gone_is_named(
    alkd: CommandLine,
    record: dict,
    ids: list[str],
    tmp_path: Path,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(alkd.home / "records", tmp_path / "records")
    monkeypatch.setenv("ALKD_HOME", str(tmp_path))
    file = tmp_path / "records" / record["run_id"] / "run.json"
    changed = json.loads(file.read_text())
    changed["outputs"]["distilled"]["1"] = str(tmp_path / "gone")
    file.write_text(json.dumps(changed))
    done = inside("recommend", "latest", "--session", ids[0])
    assert f"{tmp_path / 'gone' / 'checkpoint'}: is gone" in str(done.exception)
    del changed["outputs"]["distilled"]
    file.write_text(json.dumps(changed))
    done = inside("recommend", "latest", "--session", ids[0])
    assert "has made no distilled model, only: student, teacher" in str(done.exception)


def _reported(record: dict) -> float:
    """The report's ndcg@10 of the distilled student."""
    with (Path(record["outputs"]["report"]) / "metrics.csv").open() as opened:
        [mean] = [
            float(row["mean"])
            for row in csv.DictReader(opened)
            if (row["system"], row["metric"]) == ("distilled", "ndcg@10")
        ]
    return mean


def _invoke(port: int, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())
