"""What a recommender from outside has made is found again only while its options are the same."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from alkd_ray import artifacts, stages
from alkd_ray.artifacts import StageOutput
from alkd_ray.config import RunConfig, make
from alkd_ray.recommenders.fpmc import Fpmc
from tests.unit.test_storage import Told


def keys(config: RunConfig, folder: Path) -> list[str]:
    """Of the teacher, and of the evaluation of a plain recommender from outside."""
    imported = StageOutput("import", "data", folder, True, 0.0)
    context = stages.Context(config, folder, Told())
    made: list[str] = []

    def produce(stage: str, write: object, **parts: object) -> None:
        parts.pop("of")
        made.append(artifacts.stage_key(stage, seed=None, **parts))  # type: ignore[arg-type]

    teacher = artifacts.stage_key(
        "pretrain", **stages._pretraining(context, "teacher", imported, 1)
    )
    stages.evaluate_baseline(
        SimpleNamespace(config=config, produce=produce),  # type: ignore[arg-type]
        imported,
        "somebodys:Mine",
    )
    return [teacher, *made]


def test_a_changed_default_of_a_plugin_makes_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for default in (0.1, 0.2, 0.1):

        class Mine(Fpmc):
            class Config(Fpmc.Config):
                init_std: float | None = default

        module = ModuleType("somebodys")
        module.Mine = Mine  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "somebodys", module)
        found.append(keys(make({"teacher": {"backbone": "somebodys:Mine"}}), tmp_path))
    assert found[0] == found[2]
    assert not set(found[0]) & set(found[1])
