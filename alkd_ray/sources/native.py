"""A dataset that was imported before, or written by another program, in native form."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from alkd_ray import datasets
from alkd_ray.registry import PluginConfig
from alkd_ray.types import Dataset


class NativeFolder:
    """A folder with ``sessions.parquet``, ``items.parquet`` and ``dataset.json``.

    Everything is checked on reading, the content's hash included (see :mod:`alkd_ray.datasets`).
    """

    class Config(PluginConfig):
        """Options."""

        path: str = Field(description="the dataset's folder, as alkd data import wrote it")

    def __init__(self, *, path: str) -> None:
        self.folder = Path(path)

    def load(self) -> Dataset:
        """The dataset as it was written.

        Raises:
            InputError: the folder is no dataset, or a damaged one; names the file, row and field.
        """
        return datasets.read(self.folder)
