"""Sweep files: axes, draws, trials."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

from alkd_ray.annotation.planning import Plan
from alkd_ray.cli.console import RunDisplay
from alkd_ray.cli.sweep_display import approval
from alkd_ray.config import RunConfig
from alkd_ray.errors import BudgetError, InputError
from alkd_ray.plans import SharedPlan
from alkd_ray.runtime.sweep import configs_of
from alkd_ray.sweeps import config as sweeps
from alkd_ray.sweeps.search import OptunaSearch
from alkd_ray.sweeps.shared import deciding_axes, purchase_of
from alkd_ray.types import Amounts, Caps

CONFIGS = Path(__file__).parents[2] / "tune_configs"
SHIPPED = sorted(
    file for file in CONFIGS.rglob("*.yaml") if "over" in yaml.safe_load(file.read_text())
)
RUN = {"data": {"source": "synthetic", "options": {"size": "tiny"}}}


def written(folder: Path, **fields: object) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "many", "run": RUN, **fields}))
    return file


def settings(*given: object) -> tuple[sweeps.Sweep, list[RunConfig]]:
    sweep = sweeps.load(*given)  # type: ignore[arg-type]
    return sweep, [sweep.of(point) for point in sweeps.points(sweep.config)]


def test_grids_are_crossed_and_share_name_and_seeds(tmp_path: Path) -> None:
    over = {
        "selection.budget": {"grid": [10, 20]},
        "selection.strategy": {"grid": ["random", "rad-bc"]},
    }
    sweep, trials = settings(written(tmp_path, over=over, seeds=[4, 5]), ["student.dim=7"])
    assert [(t.selection.budget, t.selection.strategy) for t in trials] == [
        (10, "random"), (10, "rad-bc"), (20, "random"), (20, "rad-bc"),
    ]  # fmt: skip
    assert {t.name for t in trials} == {sweep.config.name} == {"many"}
    assert all(t.seeds == [4, 5] and t.student.dim == 7 for t in trials)


def test_draws_are_repeatable_and_keep_to_their_ranges(tmp_path: Path) -> None:
    over = {
        "student.training.learning_rate": {"loguniform": [1e-4, 1e-2]},
        "student.training.weight_decay": {"uniform": [0.0, 0.5]},
        "student.dim": {"choice": [5, 10]},
        "selection.budget": {"range": [3, 5]},
        "candidates.size": {"grid": [30, 40]},
    }
    file = written(tmp_path, over=over, samples=100)
    _, trials = settings(file)
    assert trials == settings(file)[1]
    assert len(trials) == 200
    rates = np.array([t.student.training.learning_rate for t in trials])
    assert rates.min() >= 1e-4
    assert rates.max() < 1e-2
    assert 0.35 < (rates < 1e-3).mean() < 0.65
    assert {t.student.dim for t in trials} == {5, 10}
    assert {t.selection.budget for t in trials} == {3, 4, 5}
    assert min(t.student.training.weight_decay for t in trials) >= 0


def test_a_run_may_be_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RUN | {"student": {"dim": 9}}))
    file = written(tmp_path, run="base.yaml", over={"selection.budget": {"grid": [3]}})
    assert settings(file)[1][0].student.dim == 9


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_sweep_that_ships_is_valid(file: Path) -> None:
    assert len(settings(file)[1]) > 1


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_a_table_with_dropout_differs_by_nothing_else(table: str) -> None:
    plain, dropped = (
        [
            trial
            for trial in settings(CONFIGS / folder / f"{table}.yaml")[1]
            if trial.student.backbone == "attmix"
        ]
        for folder in (".", "attmix_dropout")
    )
    assert len(plain) == 7
    for trial in plain:
        for model in (trial.student, trial.teacher):
            assert model.options.get("dropout", 0.0) == 0.0
            model.options["dropout"] = 0.1
    named = [trial.model_copy(update={"name": dropped[0].name}) for trial in plain]
    assert dropped == named


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"over": {"selection.budget": {"grid": [1], "choice": [2]}}}, "exactly one|give one of"),
        ({"over": {"selection.budget": {"grid": []}}}, "grid"),
        ({"over": {"selection.budgt": {"grid": [1]}}}, "budgt"),
        ({"over": {"selection.budget": {"grid": ["many"]}}}, "selection.budget"),
        ({"over": {"student.dim": {"loguniform": [0, 1]}}}, "no range"),
        ({"over": {"student.dim.deep": {"grid": [1]}}}, "dim"),
        ({"over": {}}, "over"),
        ({"over": {"student.dim": {"grid": [1]}}, "run": "nowhere.yaml"}, "no such config"),
        ({"over": {"student.dim": {"grid": [1]}}, "sead": 3}, "sead"),
        ({"over": {"budget.dollars": {"grid": [1, 2]}}}, "vary selection.budget"),
        ({"over": {"seeds": {"grid": [[1], [2]]}}}, "the sweep's own field seeds"),
        ({"over": {"name": {"choice": ["a", "b"]}}}, "name cannot vary"),
        ({"over": {"books": {"grid": [""]}}}, "books cannot vary"),
        ({"over": {"how": {"cases": {"a": {"storage": "/x"}}}}}, "over.how: storage cannot vary"),
        ({"over": {"tracking.enabled": {"grid": [True]}}}, "tracking.enabled cannot vary"),
        ({"over": {"student.dim": {"uniform": [0.1, math.nan]}}}, "finite"),
        ({"over": {"student.dim": {"loguniform": [0.1, math.inf]}}}, "finite"),
        (
            {"over": {"student.dim": {"grid": [4]}, "x": {"cases": {"a": {"student.dim": 6}}}}},
            "over.student.dim sets student.dim and over.x sets student.dim",
        ),
        (
            {"over": {"student.dim": {"grid": [4]}, "x": {"cases": {"a": {"student": {}}}}}},
            "the later one undoes the other",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said(
    tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        settings(written(tmp_path, **fields))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["name=other"], "give sweep.name"),
        (["seeds=[1]", "sweep.seeds=[2]"], "give one of them"),
        (["seeds=[99999999999999999999]"], "below 2\\^63"),
        (["student.training.learning_rate=.inf"], "finite"),
    ],
)
def test_what_is_wrong_with_overrides_of_a_sweep_is_said(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    file = written(tmp_path, over={"student.dim": {"grid": [4, 5]}})
    with pytest.raises(InputError, match=said):
        sweeps.load(file, overrides).of({})


def test_a_sweep_takes_values_from_the_environment_as_a_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "run: {selection: {budget: '${ALKD_TEST_SIZE:-30}'}}\nover: {student.dim: {grid: [4, 5]}}\n"
    )
    assert sweeps.load(file).of({}).selection.budget == 30
    monkeypatch.setenv("ALKD_TEST_SIZE", "12")
    assert sweeps.load(file).of({}).selection.budget == 12


@pytest.mark.parametrize(("other", "is_asked"), [("openai-chat", True), ("simulated", False)])
def test_it_is_asked_before_any_setting_costs_real_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str, is_asked: bool
) -> None:
    cases = {
        "free": {"llm.teacher": "simulated"},
        "other": {"llm.teacher": other, "selection.budget": 7},
    }
    if other != "simulated":
        cases["other"]["llm.options"] = {"model": "gpt-4o-mini"}
    sweep = sweeps.load(written(tmp_path, over={"llm": {"cases": cases}}))
    amounts = Amounts(900_000, 1_000, 10)
    plan = Plan(10, 10, amounts, amounts, amounts, amounts, "list price", Caps())
    answered: list[str] = []

    def no(question: str, **_: object) -> bool:
        answered.append(question)
        return False

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", no)
    ask = approval(sweep, RunDisplay(), yes=False)
    with pytest.raises(BudgetError) if is_asked else contextlib.nullcontext():
        ask(SharedPlan(plan, 2, 20))
    assert len(answered) == is_asked


@pytest.mark.parametrize(
    ("kinds", "deciding"),
    [
        (["consistency", "overlap"], {"difficulty.kind", "student.dim", "asked"}),
        (["consistency"], {"difficulty.kind", "asked"}),
    ],
)
def test_all_that_a_point_of_optuna_may_need_is_bought_before(
    tmp_path: Path, kinds: list[str], deciding: set[str]
) -> None:
    """Where the student decides what is selected, each student's selection is bought."""
    over = {
        "asked": {"cases": {"llm": {"distillation": {"method": "alkdrec"}}}},
        "difficulty.kind": {"grid": kinds},
        "student.dim": {"choice": [4, 5]},
        "distillation.training.learning_rate": {"loguniform": [1e-4, 1e-2]},
    }
    sweep = sweeps.load(written(tmp_path, over=over, search="optuna", samples=4))
    assert set(deciding_axes(sweep)) == deciding
    bought = {purchase_of(config) for config in configs_of(sweep).values()}
    search = OptunaSearch(sweep.config, [])
    while (setting := search.next()) is not None:
        assert purchase_of(sweep.of(setting.point)) in bought
