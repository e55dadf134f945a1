"""Shared fixtures: where the published data lies, if it is here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def published_data() -> Path:
    """The folder of the published ALKDRec files and the portable tables."""
    folder = Path(os.environ.get("ALKD_DATA_DIR") or ROOT.parent / "shared" / "data").resolve()
    if not (folder / "alkdrec").is_dir():
        pytest.skip(f"the published data is not in {folder} (set ALKD_DATA_DIR)")
    return folder
