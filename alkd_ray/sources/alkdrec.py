"""The layout in which the authors of ALKDRec published their sessions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from alkd_ray.errors import InputError
from alkd_ray.registry import PluginConfig
from alkd_ray.sessions import positional_split
from alkd_ray.sources._pickled_frame import read_columns
from alkd_ray.sources._sessionise import assemble
from alkd_ray.types import Catalogue, Dataset, SessionSet

_TITLE_ENDING = "_title.csv"
_TITLE_HEADER = ["itemID", "title"]


class ALKDRecFiles:
    """Sessions and titles as published with ALKDRec.

    Du et al., "Active Large Language Model-Based Knowledge Distillation for Session-Based
    Recommendation", AAAI 2025. The folder holds, for one X, ``X.pkl`` (a pickled pandas frame;
    ``session`` = list of source ids, ``label`` = source id) and ``X_title.csv`` (itemID, title).
    The files are not part of this project. Their content has terms of its own: HetRec2011-ML is
    GroupLens' (research, not commercial, with acknowledgement: Cantador, Brusilovsky and Kuflik,
    HetRec 2011), the games are Amazon reviews collected by the McAuley lab (research use).

    An item's index is its row in the title file, repeated item ids left out. Items without a row
    there are left out of the sessions; a session whose label has none, or of whose items none is
    left, is dropped. A session's id is its row among those kept. The split is by row, 60/20/20.

    The pickle is read without running anything (see ``_pickled_frame``).
    """

    class Config(PluginConfig):
        """Options."""

        path: str = Field(description="the folder that holds X.pkl and X_title.csv")
        name: str = Field("", description="short name for reports; the folder's name when empty")

    def __init__(self, *, path: str, name: str = "") -> None:
        self.folder = Path(path)
        self.name = name or self.folder.resolve().name

    def load(self) -> Dataset:
        """The whole dataset.

        Raises:
            InputError: a file is missing, damaged, or a pickle of something else.
        """
        frame_file, title_file = self._files()
        catalogue = _read_titles(title_file)
        columns = read_columns(frame_file, ("session", "label"))
        _check(frame_file, columns)
        sessions = _sessions(columns["session"], columns["label"], catalogue)
        if not len(sessions):
            raise InputError(
                f"{frame_file}: none of its sessions has items that {title_file.name} knows; "
                "do the two files belong together?"
            )
        return Dataset(
            name=self.name,
            catalogue=catalogue,
            sessions=sessions,
            split_rule="by row of the published file: 60% train, 20% valid, 20% test",
            source=f"ALKDRec files in {self.folder}",
        )

    def _files(self) -> tuple[Path, Path]:
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: there is no such folder; path must name one")
        titles = sorted(self.folder.glob(f"*{_TITLE_ENDING}"))
        if len(titles) != 1:
            raise InputError(
                f"{self.folder}: holds {len(titles)} files X{_TITLE_ENDING}, must hold one (beside "
                "X.pkl); path must name the folder of one dataset"
            )
        frame = self.folder / f"{titles[0].name.removesuffix(_TITLE_ENDING)}.pkl"
        if not frame.is_file():
            raise InputError(f"{frame}: is not there, beside {titles[0].name}; add it")
        return frame, titles[0]


def _read_titles(path: Path) -> Catalogue:
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            header = next(reader, [])
            if header != _TITLE_HEADER:
                raise InputError(
                    f"{path}: line 1 is {','.join(header)!r}, must be {','.join(_TITLE_HEADER)!r}"
                )
            titles: dict[str, str] = {}
            for row in reader:
                if len(row) != 2 or not row[0]:
                    raise InputError(
                        f"{path}: line {reader.line_num}, field itemID: the line has {len(row)} "
                        "fields or no item id, must be itemID,title; correct it"
                    )
                titles.setdefault(row[0], row[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 CSV: {error}") from error
    return Catalogue(np.array(list(titles), object), np.array(list(titles.values()), object))


def _check(path: Path, columns: dict[str, list[Any]]) -> None:
    """Sessions must be lists of texts, labels texts."""
    kinds = (
        ("session", _is_list_of_texts, "a list of item ids"),
        ("label", _is_text, "an item id"),
    )
    for field, holds, wanted in kinds:
        for row, value in enumerate(columns[field]):
            if not holds(value):
                raise InputError(
                    f"{path}: row {row}, field {field}: {str(value)[:60]!r} is not {wanted} (as "
                    "text); get the file again"
                )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _sessions(inputs: list[list[str]], labels: list[str], catalogue: Catalogue) -> SessionSet:
    index = pd.Index(catalogue.source_ids)
    lengths = np.array([len(items) for items in inputs], np.int64)  # [rows]
    flat = index.get_indexer([item for items in inputs for item in items])  # -1 = no title
    targets = index.get_indexer(labels)
    row_of = np.repeat(np.arange(len(inputs)), lengths)
    known = np.bincount(row_of[flat >= 0], minlength=len(inputs))
    keep = (targets >= 0) & (known > 0)  # [rows]
    return assemble(
        flat[(flat >= 0) & keep[row_of]].astype(np.int64),
        known[keep].astype(np.int64),
        targets[keep].astype(np.int64),
        positional_split(int(keep.sum())),
    )
