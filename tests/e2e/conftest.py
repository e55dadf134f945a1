"""A run through the command line: its own run root, its own Ray, its own endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TINY = """
name: tiny
seeds: [1]
data:
  source: synthetic
  options: {size: tiny}
teacher: {dim: 32, training: {max_steps: 200}}
student: {dim: 8, training: {max_steps: 200}}
candidates: {size: 30}
selection: {budget: 60}
annotation: {wanted: 15, in_flight: 8}
distillation: {training: {max_steps: 100}}
evaluation: {resamples: 200}
"""


@dataclass(frozen=True)
class CommandLine:
    """Calls ``alkd`` in processes of their own, below one run root."""

    home: Path
    config: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ALKD_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": "",
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "alkd_ray", *words]

    def __call__(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == status, (
            f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def run(self, *overrides: str, status: int = 0) -> dict:
        """``alkd run`` with ``--json``: the run's record."""
        done = self("run", str(self.config), *overrides, "--json", status=status)
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def alkd(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    folder = tmp_path_factory.mktemp("alkd")
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    return CommandLine(folder / "home", config)
