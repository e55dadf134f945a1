"""Reads a pickled pandas frame without running a line of its, pandas' or numpy's code.

A pickle is a program: it names functions and calls them. Here each name that a frame of object
columns needs stands for a record of this file that only keeps what it is given, and any other name
is refused before anything is called. So a file cannot run code, and it does not matter which
version of pandas wrote it (1.x to 3.x tried; the published files are of 1.x).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from alkd_ray.errors import InputError


class _Record:
    """Keeps the arguments that a pickle makes it with, and the state that it sets."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments
        self.state: Any = named

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Frame(_Record):
    """``pandas.DataFrame``: state holds ``_mgr``."""


class _Manager(_Record):
    """``BlockManager(blocks, axes)``."""


class _Block(_Record):
    """``_unpickle_block(values, placement, dimensions)``."""


class _Index(_Record):
    """``_new_Index(class, fields)``."""


class _Array(_Record):
    """``numpy.ndarray``: state is (version, shape, dtype, is Fortran order, content)."""


class _Slice(_Record):
    """``slice(start, stop, step)``."""


class _Other(_Record):
    """What a frame needs and is not looked at: dtypes, row labels, bytes."""


_NUMPY_MODULES = ("numpy.core", "numpy._core")
_STANDS_FOR: dict[tuple[str, str], type[_Record]] = {
    ("pandas", "DataFrame"): _Frame,
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals.managers", "BlockManager"): _Manager,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.indexes.base", "_new_Index"): _Index,
    ("pandas.core.indexes.base", "Index"): _Other,
    ("pandas", "Index"): _Other,
    ("pandas.core.indexes.range", "RangeIndex"): _Other,
    ("pandas", "RangeIndex"): _Other,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Other,
    ("builtins", "slice"): _Slice,
    ("__builtin__", "slice"): _Slice,  # as protocol 2 spells it
    ("_codecs", "encode"): _Other,  # protocol 2 writes bytes as such a call
    **{(f"{module}.multiarray", "_reconstruct"): _Array for module in _NUMPY_MODULES},
    **{(f"{module}.numeric", "_frombuffer"): _Other for module in _NUMPY_MODULES},
}


class _RefusedError(Exception):
    """A name that no frame of object columns needs."""


class _FrameUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Record]:
        try:
            return _STANDS_FOR[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


def read_columns(path: Path, names: tuple[str, ...]) -> dict[str, list[Any]]:
    """The named columns of the frame pickled in ``path``, as lists of Python objects.

    Raises:
        InputError: the file names anything else than such a frame needs (nothing was run), is
            damaged, or has no such column.
    """
    try:
        with path.open("rb") as opened:
            frame = _FrameUnpickler(opened).load()
        columns = _columns(frame)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _RefusedError as error:
        raise InputError(
            f"{path}: asks for {error}, which is none of the classes that a pickled pandas frame "
            "of object columns needs; nothing of it was run; if you trust the file, save its frame "
            "as Parquet and import that as a table"
        ) from error
    except Exception as error:  # damaged bytes surface as nearly any exception
        raise InputError(
            f"{path}: is not a pickled pandas frame, or is damaged ({type(error).__name__}: "
            f"{error}); get the file again"
        ) from error
    missing = [name for name in names if name not in columns]
    if missing:
        raise InputError(
            f"{path}: there is no column {missing[0]!r}; there are {', '.join(map(str, columns))}"
        )
    return {name: columns[name] for name in names}


def _columns(frame: _Frame) -> dict[Any, list[Any]]:
    blocks, axes = _expect(frame.state["_mgr"], _Manager).arguments
    labels = _matrix(_expect(axes[0], _Index).arguments[1]["data"])[0]
    columns: dict[Any, list[Any]] = {}
    for block in blocks:
        values, placement, _ = _expect(block, _Block).arguments
        if _expect(values, _Array).state and isinstance(values.state[4], list):
            where = range(len(labels))[slice(*_expect(placement, _Slice).arguments)]
            columns |= zip((labels[place] for place in where), _matrix(values), strict=True)
    return columns


def _matrix(array: _Array) -> list[list[Any]]:
    """The rows of an object array of one or two dimensions; a block's rows are columns."""
    _, shape, _, fortran, content = _expect(array, _Array).state
    rows, length = shape if len(shape) == 2 else (1, *shape)
    if rows * length != len(content):
        raise ValueError(f"an array of {len(content)} values has the shape {shape}")
    if fortran:
        return [content[row::rows] for row in range(rows)]
    return [content[row * length : (row + 1) * length] for row in range(rows)]


def _expect(value: Any, kind: type[_Record]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__[1:]} was expected")
    return value
