"""Data files are shipped with the package, and every config that ships loads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from alkd_ray.config import load

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "alkd_ray"
CONFIGS = [
    *(
        file
        for file in sorted((ROOT / "tune_configs").glob("*.yaml"))
        if "over" not in yaml.safe_load(file.read_text("utf-8"))  # those are sweeps
    ),
    PACKAGE / "presets" / "quickstart.yaml",
]


def test_every_data_file_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["alkd_ray"]
    shipped = {file for pattern in patterns for file in PACKAGE.glob(pattern)}
    data = {
        file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert data
    assert data <= shipped


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
@pytest.mark.parametrize("preset", ["paper", "strong"])
@pytest.mark.parametrize("backbone", ["fpmc", "stamp", "attmix"])
def test_every_config_that_ships_is_valid(file: Path, preset: str, backbone: str) -> None:
    overrides = [
        f"preset={preset}",
        *(f"{role}.backbone={backbone}" for role in ("teacher", "student")),
    ]
    config = load(file, overrides)
    assert config.preset == preset
    assert (config.teacher.dim, config.student.dim) == (100, 10)
    assert config.teacher.training.patience == {"paper": 20, "strong": 8}[preset]
    assert config.student.options.get("item_bias", False) == (preset == "strong")
    # The paper's AttMix is not the Atten-Mixer paper's, which is the plug-in's default.
    assert config.student.options.get("two_tables", False) == (
        (preset, backbone) == ("paper", "attmix")
    )
