"""The main job through the command line, on the embedded world, with real Ray, HTTP and MLflow."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from tests.e2e.conftest import CommandLine


@pytest.fixture(scope="module")
def record(alkd: CommandLine) -> dict:
    return alkd.run()


def test_a_run_ends_with_report_and_record(alkd: CommandLine, record: dict) -> None:
    report = Path(record["outputs"]["report"])
    assert record["status"] == "complete"
    assert {"report.html", "report.md", "metrics.csv", "metrics.json"} <= {
        file.name for file in report.iterdir()
    }
    systems = {row["system"] for row in csv.DictReader((report / "metrics.csv").open())}
    assert {"popularity", "item-knn", "sequential-rules", "vsknn"} <= systems
    assert {"student", "teacher", "distilled"} <= systems
    assert record["cost"]["requests"] == 60
    assert 0 < record["cost"]["rankings_microusd"] < 5_000_000


def test_a_second_run_does_nothing(alkd: CommandLine, record: dict) -> None:
    before = _files(alkd.home)
    again = alkd("run", str(alkd.config))
    assert "there already" in again.stderr
    assert " s  " not in "".join(
        line[28:46] for line in again.stderr.splitlines() if "seed" in line
    )
    after = _files(alkd.home)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {Path(name).name for name in changed} <= {"run.json", "metrics.json"}


def test_a_changed_field_reruns_only_what_depends_on_it(alkd: CommandLine, record: dict) -> None:
    changed = alkd.run("distillation.training.learning_rate=0.002")
    for name in ("dataset", "teacher", "student", "difficulty", "selection", "annotation"):
        assert changed["outputs"][name] == record["outputs"][name], name
    for name in ("distilled", "ranks of distilled", "report"):
        assert changed["outputs"][name] != record["outputs"][name], name
    assert changed["cost"] == record["cost"]
    first, second = (
        (Path(one["outputs"]["report"]) / "report.md").read_text() for one in (record, changed)
    )
    assert "60 rankings asked for now, 0 in the store" in first
    assert "0 rankings asked for now, 60 in the store" in second
    assert "an earlier run bought them" in second


def test_ray_and_in_process_engines_agree(alkd: CommandLine, record: dict, tmp_path: Path) -> None:
    plain = CommandLine(tmp_path / "home", alkd.config)
    local = plain.run("difficulty.engine=local", "annotation.engine=local")
    scores = [
        pd.read_parquet(Path(r["outputs"]["difficulty"]["1"]) / "difficulty.parquet")
        for r in (record, local)
    ]
    pd.testing.assert_frame_equal(*scores, atol=1e-6)
    rankings = [
        pd.read_parquet(Path(r["outputs"]["annotation"]) / "rankings.parquet")
        for r in (record, local)
    ]
    pd.testing.assert_frame_equal(*rankings)
    assert _metrics(record) == _metrics(local)


def test_mlflow_holds_the_run(alkd: CommandLine, record: dict) -> None:
    mlflow.set_tracking_uri(record["tracking"]["uri"])
    client = mlflow.MlflowClient()
    parent = client.get_run(record["tracking"]["run_id"])
    assert parent.info.status == "FINISHED"
    children = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
    )
    by_role = {run.data.tags["mlflow.runName"].split()[0].split("-")[0]: run for run in children}
    assert set(by_role) == {"student", "teacher", "distilled"}
    distilled = by_role["distilled"]
    assert distilled.data.params["selection.budget"] == "60"
    assert distilled.data.metrics["cost_dollars"] > 0
    assert distilled.inputs.dataset_inputs[0].dataset.digest
    names = {file.path for file in client.list_artifacts(distilled.info.run_id)}
    assert {"ranks.parquet", "rankings.parquet", "selection.json", "report.html"} <= names


def test_kill_in_the_middle_then_the_same_numbers(
    alkd: CommandLine, record: dict, tmp_path: Path
) -> None:
    """kill -9 during the annotation; the endpoint's own bill grows by at most those in flight.

    The endpoint is slow, because Ray's actors go on for a moment until they notice.
    """
    bill = tmp_path / "bill.jsonl"
    server = subprocess.Popen(
        alkd.command("llm", "serve", "--port", "0", "--bill", str(bill), "--latency", "0.8"),
        stdout=subprocess.PIPE,
        text=True,
        env=alkd.environment,
    )
    try:
        assert server.stdout is not None
        url = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        killed = CommandLine(tmp_path / "home", alkd.config)
        words = (
            "run",
            str(alkd.config),
            "llm.teacher=openai-chat",
            f"llm.options={{base_url: '{url}', model: simulated-title-reader, "
            "api_key_env: NO_SUCH_KEY, rates: {input_usd_per_million: 0.15, "
            "output_usd_per_million: 0.6}}",
            "annotation.in_flight=4",
            "hints.enabled=false",
        )
        driver = subprocess.Popen(
            killed.command(*words),
            env=killed.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while _billed(url) < 8 and time.monotonic() < deadline:
            assert driver.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        _wait_until_quiet(url)
        at_kill = _billed(url)
        again = json.loads(killed(*words, "--json").stdout)
        assert again["status"] == "complete"
        assert at_kill < 60 <= _billed(url) <= 60 + 4
        whole = CommandLine(tmp_path / "whole", alkd.config)
        undisturbed = json.loads(whole(*words, "--json").stdout)
        assert _metrics(again) == _metrics(undisturbed)
    finally:
        server.terminate()
        server.wait()


def _billed(url: str) -> int:
    """Answers that the endpoint has billed."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/bill") as answer:
        return json.load(answer)["requests"]


def _wait_until_quiet(url: str) -> None:
    billed = -1
    while billed != (billed := _billed(url)):
        time.sleep(2.0)  # longer than an answer takes


def _metrics(record: dict) -> list[dict]:
    with (Path(record["outputs"]["report"]) / "metrics.csv").open() as opened:
        return list(csv.DictReader(opened))


def _files(folder: Path) -> dict[str, int]:
    return {
        str(file): file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file() and "mlflow" not in file.parts and "store" not in file.parts
    }
