"""Folders and files in the making: until they are whole, their hidden name says whose they are.

Several machines may share a folder. Whether a process is alive can be asked on its own machine
alone, and two machines give the same number to different processes, so the name holds both.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path
from uuid import uuid4


def beside(path: Path) -> Path:
    """A name beside ``path`` for what will take its place; no other call gives the same."""
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.{uuid4().hex[:8]}.tmp")


def sweep_abandoned(path: Path) -> None:
    """Removes what killed processes of this machine left beside ``path``."""
    for left in path.parent.glob(f".{path.name}.{_machine()}.*.tmp"):
        process = left.name.split(".")[-3]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(left, ignore_errors=True)


def take_place(made: Path, folder: Path, record: str) -> None:
    """Renames ``made``, a whole output, to ``folder``.

    An output that is there already, with the file ``record`` in it, stays: another process was
    first, with the same content. What else is there are remains of one, which are removed.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        made.rename(folder)
    except OSError:
        if (folder / record).is_file():
            return
        if not folder.is_dir():
            raise
        remains = beside(folder)
        folder.rename(remains)
        try:
            made.rename(folder)
        finally:
            shutil.rmtree(remains, ignore_errors=True)


def _machine() -> str:
    """The machine's name, or the container's or pod's, whose processes are its own as well."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "machine"
