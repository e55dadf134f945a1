"""Configs: precedence, and errors that name the field and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from alkd_ray import config, registry
from alkd_ray.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


def test_precedence_defaults_preset_file_override(tmp_path: Path) -> None:
    file = write(tmp_path, "preset: strong\nstudent: {dim: 12, training: {batch_size: 7}}\n")
    strong = config.preset_values("strong")["student"]["training"]
    loaded = config.load(file, ["student.dim=14", "selection.budget=33"])
    assert loaded.student.dim == 14
    assert loaded.student.training.batch_size == 7
    assert loaded.student.training.loss == strong["loss"]
    assert loaded.selection.budget == 33
    assert loaded.annotation.wanted == 25


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, "student: {training: {learning_rate: 1e-3}}"))
    assert loaded.student.training.learning_rate == 0.001


def test_environment_with_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "name: ${ALKD_TEST_NAME:-fallback}\n")
    assert config.load(file).name == "fallback"
    monkeypatch.setenv("ALKD_TEST_NAME", "given")
    assert config.load(file).name == "given"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("student.dim=0", ["student.dim", "greater than or equal to 1", "0"]),
        ("student.backbone=gru", ["unknown name 'gru'", "attmix", "fpmc", "stamp"]),
        ("student.training.loss=hinge", ["student.training.loss", "pairwise", "softmax"]),
        ("student.training.metric=auc", ["student.training.metric"]),
        ("selection.strategy=best", ["unknown name 'best'", "alkdrec-exact", "rad-bc"]),
        ("selection.options={nu: 3}", ["selection.options.nu", "no such field", "mu"]),
        ("selekt=1", ["selekt", "no such field", "selection"]),
        ("budget.dolars=1", ["budget.dolars", "no such field", "dollars", "tokens"]),
        ("student.training.los=1", ["student.training.los", "no such field", "max_steps"]),
        ("budget.dollars=.inf", ["budget.dollars", "finite"]),
        ("data.source=:Class", ["cannot load ':Class'"]),
        ("data.source=os:path", ["cannot load 'os:path'", "no nested class Config"]),
        ("seeds=[1, 1]", ["seeds", "distinct"]),
        ("teacher.backbone=item-knn", ["teacher.backbone", "'item-knn'", "only counts", "fpmc"]),
        ("evaluation.baselines=[fpmc]", ["evaluation.baselines", "'fpmc'", "item-knn"]),
        ("student.training.soft_labels=[stamp]", ["student.training.soft_labels", "'stamp'"]),
        ("distillation.training.soft_labels=[item-knn]", ["soft_labels", "must be empty"]),
        ("evaluation.cutoffs=[10, 10]", ["evaluation.cutoffs", "distinct"]),
        ("annotation.wanted=99", ["annotation.wanted", "50 candidates"]),
        ("preset=best", ["preset", "paper", "strong"]),
        ("budget.dollars=-1", ["budget.dollars"]),
        ("nonsense", ["key=value"]),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        config.load(write(tmp_path, "name: x\n"), [override])
    for part in parts:
        assert part in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such config file"):
        config.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        config.load(write(tmp_path, "a: [1\n"))
    with pytest.raises(InputError, match="mapping of fields"):
        config.load(write(tmp_path, "- 1\n"))
    twice = "budget: {dollars: 1}\nseeds: [1]\nbudget: {dollars: 9}\n"
    with pytest.raises(InputError, match=r"(?s)'budget' stands there twice.*line 3"):
        config.load(write(tmp_path, twice))


def test_the_quickstart_ships_with_the_package() -> None:
    assert config.load("quickstart").name == "quickstart"


@pytest.mark.parametrize("room", registry.ROOMS)
def test_every_plugin_is_found_and_has_defaults_or_required_fields_named(room: str) -> None:
    assert registry.names(room)
    for name in registry.names(room):
        plugin = registry.find(room, name)
        assert plugin.__doc__
        required = [f for f, info in plugin.Config.model_fields.items() if info.is_required()]
        if required:
            with pytest.raises(InputError) as caught:
                registry.options(room, name, {})
            assert required[0] in str(caught.value)
        else:
            registry.options(room, name, {})


def test_a_plugin_from_outside() -> None:
    found = registry.find("strategies", "alkd_ray.strategies.random:Random")
    assert found is registry.find("strategies", "random")
    with pytest.raises(InputError, match="cannot load"):
        registry.find("strategies", "no.such.module:Thing")
