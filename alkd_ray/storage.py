"""Stage outputs on a path or URL that all nodes reach: a shared folder, S3, Google Cloud Storage.

A run root holds what one machine works with; a storage holds a copy of each output, so that other
machines find it instead of making it again. Below its URL lie

    <stage>/<key>/<upload>/...     the files of one upload
    <stage>/<key>/stage.json       written last; names the upload that is the output, and its files
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, TypeVar

from alkd_ray import temporary
from alkd_ray.errors import AlkdError, InputError
from alkd_ray.storage_url import checked_storage

if TYPE_CHECKING:  # a storage is rare, and pyarrow takes its time to be imported
    from pyarrow import fs

# The URL where a config names none.
STORAGE_ENVIRONMENT = "ALKD_STORAGE"
RECORD = "stage.json"
# Waits before the tries after the first; the clouds' libraries try again by themselves before that.
WAITS_SECONDS = (1.0, 3.0)
CHUNK_BYTES = 8 * 2**20
FILES_AT_ONCE = 8
# Small objects in one request instead of three; Google's library would go on for 15 minutes.
_SETTINGS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=5"}
_REFUSED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|EXPIRED|UNRECOGNIZED_CLIENT|"
    "PERMISSION_DENIED|UNAUTHENTICATED|OAuth2|HTTP status (code: )?40[13]"
)
_FINAL = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EFBIG,
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where an output lies: the folder of its upload, and the files in it."""

    upload: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """A storage that was reached: its file system, its path there, and whether that is a folder."""

    files: fs.FileSystem
    path: str
    is_folder: bool

    def read(self, name: str, sink: IO[bytes]) -> None:
        """Copies a stored file, byte by byte, whatever its name ends in."""
        source = self.files.open_input_stream(f"{self.path}/{name}", compression=None)
        with source:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)

    def write(self, source: IO[bytes], name: str) -> None:
        """Copies into a file that appears in one step: renamed in folders, a request elsewhere."""
        path = PurePosixPath(self.path, name)
        written = str(path)
        if self.is_folder:  # buckets have no folders
            self.files.create_dir(str(path.parent), recursive=True)
            written = str(path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"))
        with self.files.open_output_stream(written, compression=None) as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
        if self.is_folder:
            self.files.move(written, str(path))


class Storage:
    """Stage outputs below a URL, whole or not there at all.

    Durability: an output is there from the moment its ``stage.json`` is, which is written after
    all its files, in one step. An upload that was killed leaves files that nothing names; they are
    never read.

    Concurrency: any number of processes may upload and download, also the same output at once.
    Each upload has a folder of its own, so no file that is read is ever written again, and what
    is downloaded is one upload, never a mixture of two.

    Credentials come from the environment, as the cloud's own tools read them.

    Args:
        url: an absolute path of a folder that is there, ``file://``, ``s3://`` or ``gs://``.

    Raises:
        InputError: no such URL; later also: no such folder or bucket, or access is refused.
        AlkdError: from any method: the storage cannot be reached, after some tries.
    """

    def __init__(self, url: str) -> None:
        self.url = checked_storage(url)
        self._known: set[str] = set()  # outputs that were seen there
        self._reached: _Place | None = None

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)  # another process connects with its own credentials

    @staticmethod
    def of(url: str = "") -> Storage | None:
        """The storage at ``url``, else at ``ALKD_STORAGE``, else none; one object a URL."""
        given = url or os.environ.get(STORAGE_ENVIRONMENT, "")
        if not given:
            return None
        return _storage(checked_storage(given, "storage" if url else STORAGE_ENVIRONMENT))

    def has(self, stage: str, key: str) -> bool:
        """Whether the whole output is there."""
        return f"{stage}/{key}" in self._known or self._find(stage, key) is not None

    def fetch(self, stage: str, key: str, folder: Path) -> bool:
        """Downloads an output into ``folder``, which appears whole or not at all.

        Returns:
            Whether the output is there.

        Raises:
            AlkdError: a file of the output is missing.
        """
        stored = self._find(stage, key)
        if stored is None:
            return False
        fetched = temporary.beside(folder)
        fetched.mkdir(parents=True)
        try:
            self._each(
                stored.files,
                lambda name: self._download(stage, key, f"{stored.upload}/{name}", fetched / name),
            )
            temporary.take_place(fetched, folder, RECORD)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        self._known.add(f"{stage}/{key}")
        return True

    def keep(self, stage: str, key: str, folder: Path) -> None:
        """Uploads the whole output in ``folder``, unless it is there."""
        if not self.has(stage, key):
            upload = uuid.uuid4().hex[:12]
            names = sorted(
                f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()
            )
            record = json.loads((folder / RECORD).read_text("utf-8"))
            record |= {"upload": upload, "files": names}
            try:
                self._each(
                    names,
                    lambda name: self._upload(folder / name, f"{stage}/{key}/{upload}/{name}"),
                )
                text = json.dumps(record, indent=1, ensure_ascii=False).encode()
                self._tried(
                    lambda: self._place().write(io.BytesIO(text), f"{stage}/{key}/{RECORD}")
                )
            except FileNotFoundError as error:  # somebody removed the bucket, or this folder
                raise AlkdError(f"storage {self.url}: {_in_short(error)}") from error
        self._known.add(f"{stage}/{key}")

    def _find(self, stage: str, key: str) -> _Stored | None:
        try:
            text = self._tried(lambda: self._read(f"{stage}/{key}/{RECORD}"))
        except FileNotFoundError:
            return None
        try:
            record = json.loads(text)
            stored = _Stored(str(record["upload"]), tuple(record["files"]))
            names = [PurePosixPath(stored.upload, name) for name in stored.files]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(stage, key, f"its {RECORD} cannot be read") from error
        if any(name.is_absolute() or ".." in name.parts for name in names):
            raise self._damaged(stage, key, f"its {RECORD} names files elsewhere")
        return stored

    def _read(self, name: str) -> bytes:
        found = io.BytesIO()
        self._place().read(name, found)
        return found.getvalue()

    def _download(self, stage: str, key: str, name: str, to: Path) -> None:
        def receive() -> None:
            with to.open("wb") as sink:
                self._place().read(f"{stage}/{key}/{name}", sink)

        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._tried(receive)
        except FileNotFoundError as error:
            raise self._damaged(stage, key, f"it lacks {name}") from error

    def _upload(self, file: Path, name: str) -> None:
        def send() -> None:
            with file.open("rb") as source:
                self._place().write(source, name)

        self._tried(send)

    def _each(self, names: Iterable[str], do: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="storage") as threads:
            list(threads.map(do, names))

    def _place(self) -> _Place:
        if self._reached is None:
            self._reached = self._open()
        return self._reached

    def _open(self) -> _Place:
        import pyarrow as pa
        from pyarrow import fs

        settings = _SETTINGS.get(self.url.partition("://")[0])
        url = f"{self.url}{'&' if '?' in self.url else '?'}{settings}" if settings else self.url
        try:
            files, path = fs.FileSystem.from_uri(url)
        except pa.ArrowException as error:
            raise InputError(f"storage {self.url}: {_in_short(error)}") from error
        is_folder = isinstance(files, fs.LocalFileSystem)
        container = path if is_folder else path.split("/")[0]
        if files.get_file_info(container).type is not fs.FileType.Directory:
            raise InputError(
                f"storage {self.url}: there is no such folder here; make it, or mount it"
                if is_folder
                else f"storage {self.url}: there is no bucket {container!r}; make it"
            )
        return _Place(files, path.rstrip("/"), is_folder)

    def _tried(self, do: Callable[[], T]) -> T:
        """``do()``, tried again while the error may pass.

        Raises:
            FileNotFoundError: of ``do``.
            AlkdError: for any other error of the storage.
        """
        import pyarrow as pa

        for wait in (*WAITS_SECONDS, None):
            try:
                return do()
            except FileNotFoundError:
                raise
            # Arrow's own: an upload in parts that is out of step with the server, for one, is
            # refused as invalid, and begun anew here.
            except (OSError, pa.ArrowException) as error:
                explained = self._explained(error)
                if wait is None or explained is not None:
                    raise explained or AlkdError(
                        f"storage {self.url}: cannot be reached, tried {len(WAITS_SECONDS) + 1} "
                        f"times; the same command goes on later: {_in_short(error)}"
                    ) from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _explained(self, error: Exception) -> AlkdError | None:
        """What to tell of an error that trying again does not help; None for one that may pass."""
        text = str(error)
        if _REFUSED.search(text):
            return InputError(
                f"storage {self.url}: access is refused, or there are no credentials in the "
                f"environment: {_in_short(error)}"
            )
        if "NO_SUCH_BUCKET" in text:
            return InputError(f"storage {self.url}: there is no such bucket: {_in_short(error)}")
        if isinstance(error, OSError) and error.errno in _FINAL:
            return AlkdError(f"storage {self.url}: {_in_short(error)}")
        return None

    def _damaged(self, stage: str, key: str, why: str) -> AlkdError:
        return AlkdError(
            f"storage {self.url}: {stage}/{key} is damaged, {why}; delete it there, and it will be "
            "made again"
        )


@functools.lru_cache(maxsize=16)
def _storage(url: str) -> Storage:
    return Storage(url)


def _in_short(error: BaseException) -> str:
    """An error of a library, in one line, without what only its authors understand."""
    text = re.sub(r"\s*\(Request ID: [^)]*\)|error_info=.*|;? Details: .*", "", str(error))
    return " ".join(text.split())[:300]
