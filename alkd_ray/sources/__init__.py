"""Contract of the room: a source yields a dataset. One file = one format."""

from __future__ import annotations

from typing import Protocol

from alkd_ray.types import Dataset


class Source(Protocol):
    """Reads, or makes, sessions with item titles."""

    def load(self) -> Dataset:
        """The whole dataset.

        Raises:
            InputError: the file, the line or row, the field, and what to do.
        """
        ...
