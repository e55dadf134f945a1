"""``alkd sweep`` as a user types it: run, show, log, plan, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import CommandLine
from tests.sweep_files import RUN, written

LOCAL = "sweep.engine=local"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[CommandLine, str]:
    folder = tmp_path_factory.mktemp("sweep")
    over = {"distillation.training.learning_rate": {"grid": [0.001, 0.01]}}
    run = {**RUN, "tracking": {"enabled": True}}
    file = written(folder, run=run, over=over, finalists="all")
    alkd = CommandLine(folder / "home", file)
    return alkd, alkd("sweep", str(file), LOCAL).stdout


def runs(uri: str) -> list[dict]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    return [run.data.tags for run in client.search_runs(experiments)]


def test_a_sweep_ends_with_a_table_a_report_and_where_to_look(
    sweep: tuple[CommandLine, str],
) -> None:
    alkd, said = sweep
    assert "ndcg@10, validation" in said
    assert "Best setting by validation" in said
    assert "rankings serve all settings" in said
    assert "models:/small/1, alias champion" in said
    (folder,) = (alkd.home / "sweeps").iterdir()
    report = (folder / "report" / "sweep.html").read_text("utf-8")
    assert "learning_rate" in report
    assert (folder / "report" / "trials.csv").read_text("utf-8").count("complete") == 4
    assert not (folder / "tune").exists()


def test_how_it_stands_is_shown_without_running_anything(sweep: tuple[CommandLine, str]) -> None:
    alkd, _ = sweep
    (first, _second) = json.loads(alkd("sweep", "show", str(alkd.config), "--json").stdout)
    assert first["state"] == "whole"
    assert set(first["by_seed"]) == {"1", "2"}
    assert "complete" in alkd("sweep", "show", str(alkd.config)).stdout
    other = alkd("sweep", "show", str(alkd.config), "student.dim=3", status=2)
    assert "was not begun" in other.stdout + other.stderr


def test_mlflow_can_be_told_again_and_holds_nothing_twice(
    sweep: tuple[CommandLine, str], tmp_path: Path
) -> None:
    alkd, _ = sweep
    uri = f"sqlite:///{alkd.home / 'mlflow' / 'mlflow.db'}"
    before = runs(uri)
    assert sum("alkd.setting" in tags for tags in before) == 2
    alkd("sweep", "log", str(alkd.config))
    assert len(runs(uri)) == len(before) == 3


def test_the_same_command_goes_on_and_says_the_same(sweep: tuple[CommandLine, str]) -> None:
    alkd, said = sweep
    again = alkd("sweep", str(alkd.config), LOCAL, "--resume").stdout
    table = said[: said.index("Best setting")]
    assert again.startswith(table)
    missing = alkd("sweep", "run", str(alkd.config), "--resume", "student.dim=3", status=2)
    assert "no such sweep to resume" in missing.stderr


def test_a_plan_counts_equal_requests_once_and_sends_nothing(
    sweep: tuple[CommandLine, str],
) -> None:
    alkd, _ = sweep
    plan = alkd("sweep", "plan", str(alkd.config), "selection.budget=15", "--json").stdout
    found = json.loads(plan)
    assert found["settings"] == 2
    assert found["unshared"] == 2 * found["plan"]["requests"]
    assert found["plan"]["requests"] == 2 * 15


def test_failed_trials_end_with_three_and_are_named(sweep: tuple[CommandLine, str]) -> None:
    alkd, _ = sweep
    words = ["sweep", str(alkd.config), LOCAL, "distillation.training.weight_decay=1e38"]
    done = alkd(*words, status=3)
    assert "trials failed" in done.stdout
    assert "learning_rate=0.001" in done.stdout
    assert "diverged" in done.stdout


def test_what_is_wrong_is_one_sentence(sweep: tuple[CommandLine, str], tmp_path: Path) -> None:
    alkd, _ = sweep
    file = written(tmp_path, over={"selection.budgt": {"grid": [1]}})
    for words in (
        ["sweep", str(file)],
        ["sweep", "none.yaml"],
        ["sweep", str(file), "sweep.pak=1"],
    ):
        done = alkd(*words, status=2)
        assert done.stderr.startswith("alkd: ")
        assert "Traceback" not in done.stderr
