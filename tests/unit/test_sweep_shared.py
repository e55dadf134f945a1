"""What trials share: the keys by which they are told apart, and how the buying is summed up."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alkd_ray.artifacts import StageOutput
from alkd_ray.bought import Bought, Cost
from alkd_ray.config import RunConfig, make
from alkd_ray.sweeps import shared as sharing
from alkd_ray.sweeps.records import Setting
from alkd_ray.sweeps.shared import Prepared, Shared, purchase_of
from alkd_ray.types import RunStatus

SETTING = Setting({"selection.budget": 5})


def inputs(config: RunConfig) -> str:
    """Of the trial of a setting whose purchase is always the same."""
    found = Shared(by_purchase={purchase_of(config): Prepared("data", {1: "teacher"}, "bought")})
    (trial,) = found.trials(SETTING, config)
    return trial.inputs


@pytest.mark.parametrize(
    "changed",
    [
        {"student": {"training": {"patience": 99}}},
        {"student": {"options": {"item_bias": True}}},
        {"distillation": {"training": {"learning_rate": 1e-4}}},
        {"distillation": {"options": {"alphas": [1.0, 1.0, 1.0]}}},
        {"data": {"window": 5}},
    ],
)
def test_a_trial_of_another_training_is_another_one(changed: dict[str, object]) -> None:
    """The sweep's id does not see a changed preset or default; its journal must not be believed."""
    assert inputs(make({"seeds": [1], **changed})) != inputs(make({"seeds": [1]}))


def test_a_trial_is_another_one_once_a_file_that_its_distillation_reads_has_changed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "embeddings.npy"
    options = {"text_embeddings_path": str(file)}
    config = make({"seeds": [1], "distillation": {"method": "dllm2rec", "options": options}})
    found = []
    for number in (0.0, 1.0, 0.0):
        np.save(file, np.full((5, 3), number, np.float32))
        found.append(inputs(config))
    assert found[0] == found[2] != found[1]


def test_a_trial_is_the_same_however_it_is_watched() -> None:
    same = make({"seeds": [1], "name": "other", "evaluation": {"resamples": 300}})
    assert inputs(same) == inputs(make({"seeds": [1]}))


def bought(folder: Path, status: RunStatus, failures: dict[str, str]) -> Bought:
    folder.mkdir()
    table = {"key": list(failures), "failure": list(failures.values())}
    rows = pa.table({**table, "cost_microusd": [10] * len(failures)})
    pq.write_table(rows, folder / "rankings.parquet")
    failed = sum(map(bool, failures.values()))
    reason = f"{failed} of {len(failures)} rows failed" if failed else ""
    output = StageOutput("annotation", folder.name, folder, False, 0.0)
    cost = Cost(10 * len(failures), 0, 0, len(failures), 0, 0.0)
    return Bought(output, status, reason, cost, len(failures) - failed, failed)


def hints_of(folder: Path, key: str, microusd: int) -> StageOutput:
    folder.mkdir()
    (folder / "hints.json").write_text(json.dumps({"key": key, "cost_microusd": microusd}))
    return StageOutput("hints", folder.name, folder, False, 0.0)


@pytest.mark.parametrize(
    ("status", "answered", "ends"),
    [
        ("complete", {"bought": 0}, False),  # nothing was asked: TR and others read no rankings
        ("partial", {"bought": 1, "other": 0}, False),
        ("partial", {"bought": 0, "": 0}, False),  # one setting reads none
        ("partial", {"bought": 0, "other": 0}, True),
        ("stopped", {"bought": 0, "": 0}, False),
        ("stopped", {"bought": 0}, True),
        ("breached", {"bought": 5, "": 0}, True),
    ],
)
def test_a_sweep_ends_before_its_trials_where_none_could_learn(
    status: RunStatus, answered: dict[str, int], ends: bool
) -> None:
    prepared = {
        f"purchase of {rankings}": Prepared("data", {}, rankings, answered=count)
        for rankings, count in answered.items()
    }
    assert Shared(prepared, status=status).ends_the_sweep is ends


def test_failed_requests_are_counted_over_all_settings_each_once(tmp_path: Path) -> None:
    shared = Shared()
    by_purchase = {
        "first": bought(tmp_path / "a", "partial", {"k1": "", "k2": "no answer", "k3": ""}),
        "second": bought(tmp_path / "b", "partial", {"k2": "no answer", "k4": "empty"}),
        "third": bought(tmp_path / "c", "complete", {"k5": ""}),
    }
    hints = [hints_of(tmp_path / key, key, 7) for key in ("h1", "h2")]
    hints += [hints_of(tmp_path / "again", "h1", 7), hints_of(tmp_path / "named", "", 0)]
    sharing._count(shared, by_purchase, Counter({"first": 2, "second": 1, "third": 1}), hints)
    assert shared.status == "partial"
    assert shared.reason == "2 of 5 different requests failed"
    assert (shared.requests, shared.unshared, shared.microusd) == (5, 9, 50 + 2 * 7)


def test_where_all_requests_failed_it_is_told_what_was_said(tmp_path: Path) -> None:
    shared = Shared()
    one = bought(tmp_path / "a", "partial", {"k1": "no answer", "k2": "no answer"})
    sharing._count(shared, {"first": one}, Counter({"first": 1}), [])
    assert shared.reason == "2 of 2 different requests failed (2 of 2 rows failed)"
