"""What several tests with MLflow need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has made; making one takes seconds, so the others are copies."""
    from mlflow import MlflowClient  # which most tests here do not need

    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file
