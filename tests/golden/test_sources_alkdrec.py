"""The published files, imported, equal the portable tables made from them by another program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alkd_ray import datasets
from alkd_ray.sources.alkdrec import ALKDRecFiles
from alkd_ray.types import SPLITS

# Folder, portable tables, and the paper's sessions, items and interactions.
CASES = [
    ("ML", "hetrec2011-ml", (12_323, 8_475, 112_034)),
    ("Games", "amazon-games", (20_091, 26_138, 132_677)),
]


@pytest.mark.parametrize(("folder", "portable", "counted"), CASES)
def test_import_equals_the_portable_tables(
    published_data: Path, folder: str, portable: str, counted: tuple[int, int, int], tmp_path: Path
) -> None:
    imported = ALKDRecFiles(path=str(published_data / "alkdrec" / "original" / folder)).load()
    datasets.write(imported, tmp_path / "dataset")
    for dataset in (imported, datasets.read(tmp_path / "dataset")):
        items = pd.read_parquet(published_data / "alkdrec" / portable / "items.parquet")
        assert items["item_id"].tolist() == list(range(len(dataset.catalogue)))
        assert items["source_id"].tolist() == dataset.catalogue.source_ids.tolist()
        assert items["title"].fillna("").tolist() == dataset.catalogue.titles.tolist()
        wanted = pd.read_parquet(published_data / "alkdrec" / portable / "sessions.parquet")
        sessions = dataset.sessions
        assert wanted["session_id"].tolist() == sessions.ids.tolist()
        assert wanted["target"].tolist() == sessions.targets.tolist()
        assert wanted["split"].tolist() == [SPLITS[code] for code in sessions.split]
        assert wanted["items"].map(len).tolist() == sessions.lengths.tolist()
        assert np.array_equal(np.concatenate(wanted["items"].tolist()), sessions.flat_items)
        found = datasets.counts(dataset)
        assert (found["sessions"], found["items"], found["interactions"]) == counted


def test_facts_of_hetrec(published_data: Path) -> None:
    """Shares counted here by sets, one session at a time."""
    dataset = ALKDRecFiles(path=str(published_data / "alkdrec" / "original" / "ML")).load()
    sessions = dataset.sessions
    seen: set[int] = set()
    test, unseen, repeated = 0, 0, 0
    for row in range(len(sessions)):
        if sessions.split[row] == 0:
            seen |= {*sessions.items_of(row).tolist(), int(sessions.targets[row])}
    for row in range(len(sessions)):
        if sessions.split[row] == 2:
            test += 1
            unseen += int(sessions.targets[row]) not in seen
            repeated += int(sessions.targets[row]) in sessions.items_of(row)
    facts = datasets.describe(dataset)
    assert facts["unseen_test_targets"] == round(unseen / test, 4) > 0
    assert facts["repeated_test_targets"] == round(repeated / test, 4)
    assert facts["session_length"]["min"] == 5
