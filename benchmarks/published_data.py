"""The published HetRec sessions, or random ones of their size where the files are absent."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from alkd_ray import registry
from alkd_ray.seeds import numpy_stream
from alkd_ray.sessions import from_lists, positional_split
from alkd_ray.types import Catalogue, Dataset

FOLDERS = {"hetrec2011-ml": "ML", "amazon-games": "Games"}
SIZES = {"hetrec2011-ml": (12_323, 8_475), "amazon-games": (20_091, 26_138)}  # sessions, items


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option that says where the published files lie."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("ALKD_DATA_DIR") or "../shared/data"),
        help="folder that holds alkdrec/original/{ML,Games} (default: $ALKD_DATA_DIR)",
    )


def read(data: Path, name: str) -> Dataset:
    """The dataset ``name`` (a key of ``FOLDERS``), random where ``data`` does not hold it."""
    folder = data / "alkdrec" / "original" / FOLDERS[name]
    if folder.is_dir():
        return registry.build("sources", "alkdrec", {"path": str(folder), "name": name}).load()
    sessions, items = SIZES[name]
    rng = numpy_stream(1, "benchmark sessions")
    lengths = 1 + rng.poisson(7, sessions)
    drawn = [rng.integers(items, size=length) for length in lengths]
    names = np.array([str(item) for item in range(items)], dtype=object)
    return Dataset(
        name=f"random matrix of the size of {name}",
        catalogue=Catalogue(names, names),
        sessions=from_lists(
            np.arange(sessions),
            drawn,
            rng.integers(items, size=sessions),
            positional_split(sessions),
        ),
        split_rule="by row: 60% train, 20% valid, 20% test",
        source=f"random numbers: {folder} is absent",
    )
