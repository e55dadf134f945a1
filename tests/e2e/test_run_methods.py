"""Runs that differ from the default in what they buy: nothing at all, or only a part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from alkd_ray import config, pipeline, plans
from alkd_ray.annotation import worker
from alkd_ray.annotation.planning import Plan
from alkd_ray.annotation.worker import AnnotationJob
from alkd_ray.artifacts import StageOutput
from alkd_ray.errors import BudgetError
from alkd_ray.results import RunResult
from alkd_ray.stages import Context
from alkd_ray.types import AnnotationOutcome
from tests.e2e.conftest import CommandLine

LOCAL = ("difficulty.engine=local", "annotation.engine=local", "tracking.enabled=false")


class Silent:
    """A listener that says nothing."""

    def stage_started(self, stage: str, seed: int | None) -> None: ...

    def stage_finished(self, output: StageOutput, seed: int | None) -> None: ...

    def progress(self, done: int, total: int, text: str) -> None: ...


def test_a_method_without_rankings_selects_and_buys_nothing(alkd: CommandLine) -> None:
    words = ("distillation.method=teacher-ranking", *LOCAL)
    record = alkd.run(*words)
    assert record["status"] == "complete"
    assert record["cost"] is None
    assert not {"selection", "annotation", "hints"} & set(record["outputs"])
    assert "distilled" in record["outputs"]
    refused = alkd("annotate", "plan", str(alkd.config), *words, status=2)
    assert "reads no LLM rankings" in refused.stderr


def test_a_plan_sends_nothing_and_a_run_pays_what_it_said(
    alkd: CommandLine, tmp_path: Path
) -> None:
    here = CommandLine(tmp_path / "home", alkd.config)
    plan = json.loads(here("annotate", "plan", str(alkd.config), *LOCAL, "--json").stdout)
    assert plan["requests"] == plan["to_send"] == 61  # 60 rankings and the hints
    assert not (here.home / "store").exists()
    bought = json.loads(here("annotate", "run", str(alkd.config), *LOCAL, "--json").stdout)
    assert bought["status"] == "complete"
    least, most = plan["least"]["microusd"], plan["most"]["microusd"]
    assert least < bought["settled_microusd"] < most
    # An estimate for people: right within a factor of two.
    assert 0.5 < plan["expected"]["microusd"] / bought["settled_microusd"] < 2
    again = json.loads(here("annotate", "plan", str(alkd.config), *LOCAL, "--json").stdout)
    assert again["to_send"] == 0


def test_a_cap_stops_a_run_with_its_own_exit_status(alkd: CommandLine, tmp_path: Path) -> None:
    here = CommandLine(tmp_path / "home", alkd.config)
    refused = here("run", str(alkd.config), *LOCAL, "budget.requests=20", status=4)
    assert "annotation.partial=true" in refused.stderr
    record = here.run(*LOCAL, "budget.requests=20", "annotation.partial=true", status=4)
    assert record["status"] == "stopped"
    rankings = pd.read_parquet(Path(record["outputs"]["annotation"]) / "rankings.parquet")
    assert len(rankings) == 19  # and the hints
    # The rest is bought once the cap allows it, and nothing twice.
    whole = here.run(*LOCAL, "budget.requests=200")
    assert whole["status"] == "complete"
    assert whole["cost"]["sent"] == 41


def test_a_stopped_pass_gives_each_seed_its_own_rankings(alkd: CommandLine, tmp_path: Path) -> None:
    """Two seeds ask different questions about the same sessions; the first was not asked."""
    resolved = config.load(
        str(alkd.config), [*LOCAL, "seeds=[1,2]", "selection.strategy=easiest", "budget.dollars=5"]
    )

    def skip_the_first_seed(job: AnnotationJob, progress: object = None) -> AnnotationOutcome:
        outcome = worker.annotate(job)
        # The seeds are asked about in turns.
        kept = tuple(a for a in outcome.annotations if a.row % 2)
        return replace(outcome, annotations=kept, status="stopped", reason="for the test")

    result = pipeline.run(
        resolved, tmp_path, Silent(), pipeline.Engines(annotate=skip_the_first_seed), "annotation"
    )
    assert result.annotation is not None
    ids, _ = result.annotation.rankings(1)
    assert len(ids) == 0
    ids, rankings = result.annotation.rankings(2)
    assert len(ids) == 60
    table = pd.read_parquet(result.by_seed["candidates"][2].folder / "candidates.parquet")
    candidates = table.set_index("session_id")["candidates"]
    for session_id, ranking in zip(ids, rankings, strict=True):
        assert set(ranking) <= set(candidates[session_id])


def test_what_will_be_paid_is_looked_at_once_before_anything_is_sent(
    alkd: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = config.load(str(alkd.config), [*LOCAL, "seeds=[1,2]", "budget.dollars=5"])
    planned: list[Plan] = []
    counted = []

    def plan(context: Context, inputs: plans.Inputs) -> Plan | None:
        counted.append(inputs)
        return plans.plan_together([(context, inputs)]).plan

    def refuse(plan: Plan) -> None:
        raise BudgetError("too dear")

    def run(approve: Callable[[Plan], None]) -> RunResult:
        engines = pipeline.Engines(approve=approve)
        return pipeline.run(resolved, tmp_path, Silent(), engines, "annotation")

    monkeypatch.setattr(plans, "plan", plan)
    with pytest.raises(BudgetError, match="too dear"):
        run(refuse)
    assert not (tmp_path / "store").exists()
    result = run(planned.append)
    assert result.status == "complete"
    # Hints of both seeds and rankings of both, in one plan.
    assert [found.to_send for found in planned] == [2 + result.annotation.cost.requests]
    # A run that has nothing to ask is not planned at all: that takes every prompt once more.
    counted.clear()
    assert run(refuse).status == "complete"
    assert counted == []
