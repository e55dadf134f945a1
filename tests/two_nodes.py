"""Two nodes for tests: network namespaces with addresses, SSH servers and Rays of their own.

    laptop  10.77.0.1   where `ray up` is said        (bridge)
    head    10.77.0.2   sshd, later Ray's head
    worker  10.77.0.3   sshd, later a raylet

Each is one process in namespaces of its own (network, processes, mounts) and nothing else: when it
ends, so does everything in it, and its addresses and mounts are gone. It ends with this process.
The folders of the machine are shared, as by NFS; ``/tmp``, ``/dev/shm``, ``/run`` and the home
folder are each node's own, and out of the others' sight.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = {"laptop": "10.77.0.1", "head": "10.77.0.2", "worker": "10.77.0.3"}
NEEDED = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
}
PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A machine that is busy with other tests takes ten times as long.
PATIENCE_SECONDS = 120.0
# Each raylet believes that the whole machine is its own.
RAY_LIMITS = "--num-cpus=1 --memory=2000000000 --object-store-memory=200000000"

# Given: the node's folder, then folders below /tmp that it must see, "--", and what to become.
# The folders of the other nodes lie beside its own.
BOOT = """
set -e
node=$1; shift
mount --bind $node/passwd /etc/passwd
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
while [ "$1" != -- ]; do
  mkdir -p "$node/tmp${1#/tmp}"
  mount --bind "$1" "$node/tmp${1#/tmp}"
  shift
done
shift
mount --rbind $node/tmp /tmp
for other in $node/../laptop $node/../head $node/../worker; do
  [ $other -ef $node ] || mount -t tmpfs tmpfs $other
done
exec "$@"
"""


@dataclass
class Node:
    """One of the three."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]

    def entering(self, *words: str) -> list[str]:
        """The command that says ``words`` in there."""
        first = psutil.Process(self.process.pid).children()[0].pid
        return ["nsenter", "--target", str(first), "--net", "--mount", "--pid", "--", *words]

    def kill(self) -> None:
        """kill -9 of all that runs in there, as if its plug were pulled, until it is gone."""
        if self.process.poll() is None:
            first = psutil.Process(self.process.pid).children()
            self.process.kill()
            self.process.wait()
            psutil.wait_procs(first, timeout=PATIENCE_SECONDS)


@dataclass(frozen=True)
class Running:
    """A command that was said on the laptop."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        """What it printed until now."""
        return self.output.read_text("utf-8", errors="replace")


@dataclass
class Cluster:
    """Both nodes, and the laptop that commands them.

    Attributes:
        config: the copy of ``cluster/local.yaml`` for these nodes; :meth:`up` needs it.
        shared: a folder of which every node sees the same.
        ssh_key: the private key that opens both nodes.
    """

    folder: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    said: int = 0

    @property
    def head_ip(self) -> str:
        return ADDRESSES["head"]

    @property
    def worker_ip(self) -> str:
        return ADDRESSES["worker"]

    @property
    def ssh_key(self) -> Path:
        return self.folder / "key"

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    @property
    def config(self) -> Path:
        return self.folder / "cluster.yaml"

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[Running]:
        """Says ``words`` on the laptop, in the project's folder; ends them with the block."""
        settings = {
            "PATH": f"{Path(sys.executable).parent}:{PROGRAMS}",
            "HOME": str(self.folder / "laptop" / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TERM": "dumb",
            "COLUMNS": "200",
        }
        # A file, not a pipe: ssh leaves a master behind that would keep a pipe open.
        self.said += 1
        output = self.folder / f"said-{self.said}.log"
        with output.open("wb") as log:
            process = subprocess.Popen(
                self.nodes["laptop"].entering("env", f"--chdir={ROOT}", *words),
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield Running(process, output)
        finally:
            started = [process]
            with contextlib.suppress(psutil.NoSuchProcess):
                started += psutil.Process(process.pid).children(recursive=True)
            for each in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()

    def run(self, *words: str, timeout: float = 600, status: int | None = 0) -> str:
        """Says ``words`` on the laptop; what they print.

        Args:
            words: program and arguments.
            timeout: seconds to wait for their end.
            status: the exit status that is asserted; None for any.
        """
        with self.running(*words) as running:
            try:
                ended = running.process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{words}: no end after {timeout} s\n{running.text}") from None
        assert status in (None, ended), f"{words}: {ended}\n{running.text}"
        return running.text

    def on_head(self, command: str, timeout: float = 300, status: int | None = 0) -> str:
        """Says a line to a login shell of the head, without a terminal; its output."""
        line = f"bash --login -c {shlex.quote('. ~/.bashrc; ' + command)}"
        return self.run(*self._ssh("head"), line, timeout=timeout, status=status)

    def up(self, environment: Mapping[str, str] | None = None) -> None:
        """``ray up``, and the wait until the worker has joined.

        Args:
            environment: more variables for both nodes, after those of ``cluster/environment.sh``;
                ``$HOME`` in them is the node's.
        """
        self._write_config(environment or {})
        self.run("ray", "get-auth-token", "--generate")
        self.run("ray", "up", "--yes", "--no-config-cache", str(self.config))
        self.wait_for_nodes(2)

    def wait_for_nodes(self, count: int) -> None:
        """Returns when the head knows of exactly ``count`` nodes that live."""
        program = (
            "import ray; ray.init('auto', log_to_driver=False);"
            "print('living', sum(node['Alive'] for node in ray.nodes()))"
        )
        output = ""
        deadline = time.monotonic() + 3 * PATIENCE_SECONDS
        while time.monotonic() < deadline:
            output = self.on_head(f"python -c {shlex.quote(program)}", status=None)
            if f"living {count}\n" in output:
                return
        raise AssertionError(f"not {count} nodes: {output}\n{self.logs()}")

    def kill_worker(self) -> None:
        """Pulls the worker's plug; the head is left to find out."""
        self.nodes["worker"].kill()

    def logs(self) -> str:
        """The ends of what sshd and Ray's autoscaler wrote."""
        files = [*self.folder.glob("*/sshd.log")]
        files += sorted(self.folder.glob("head/tmp/ray/session_2*/logs/monitor*"))
        return "\n".join(f"--- {file}\n{file.read_text('utf-8')[-4000:]}" for file in files)

    def _ssh(self, name: str) -> list[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        options += ["IdentitiesOnly=yes", "ConnectTimeout=5"]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-i", str(self.ssh_key), *words, f"root@{ADDRESSES[name]}"]

    def _write_config(self, environment: Mapping[str, str]) -> None:
        config = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text("utf-8"))
        config["provider"].update(head_ip=self.head_ip, worker_ips=[self.worker_ip])
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.ssh_key)}
        for field_name in ("head_start_ray_commands", "worker_start_ray_commands"):
            *before, last = config[field_name]
            config[field_name] = [*before, f"{last} {RAY_LIMITS}"]
        variables = {
            "ALKD_HOME": str(self.shared / "home"),
            "ALKD_STORAGE": str(self.shared / "storage"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        told = (ROOT / "cluster" / "environment.sh").read_text("utf-8")
        told += "".join(f'export {name}="{value}"\n' for name, value in variables.items())
        here = self.folder / "environment.sh"
        here.write_text(told, encoding="utf-8")
        config["file_mounts"]["~/alkd_environment.sh"] = str(here)
        self.config.write_text(yaml.safe_dump(config), encoding="utf-8")

    def _boot(self, name: str) -> None:
        folder = self.folder / name
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        (folder / "passwd").write_text(_passwd(folder / "home"), encoding="utf-8")
        # The environment is there already; `ray up` would install it otherwise.
        path = f"{Path(sys.executable).parent}:$PATH"
        (folder / "home" / ".bashrc").write_text(f'export PATH="{path}"\n', encoding="utf-8")
        program = ["sleep", "infinity"] if name == "laptop" else _sshd(self.folder, folder)
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid"]
        command += ["--fork", "--kill-child", "--mount-proc", "bash", "-c", BOOT, "boot"]
        command += [str(folder), *_below_tmp(self.folder), "--", *program]
        with (folder / "boot.log").open("wb") as log:
            process = subprocess.Popen(
                command, env={"PATH": PROGRAMS}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.nodes[name] = Node(name, folder, process)

    def _connect(self) -> None:
        """The laptop has the bridge; each node's cable ends in it."""
        laptop = self.nodes["laptop"]
        _ip(laptop, "link add cables type bridge")
        _ip(laptop, f"addr add {laptop.address}/24 dev cables")
        _ip(laptop, "link set cables up")
        for node in self.nodes.values():
            _ip(node, "link set lo up")
            if node is laptop:
                continue
            _ip(laptop, f"link add {node.name} type veth peer eth0 netns {node.process.pid}")
            _ip(laptop, f"link set {node.name} master cables up")
            _ip(node, f"addr add {node.address}/24 dev eth0")
            _ip(node, "link set eth0 up")
            # Leads nowhere, but Ray finds a node's own address by asking for a route.
            _ip(node, f"route add default via {laptop.address}")

    def _wait_for_doors(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        for name in ("head", "worker"):
            while (output := self.run(*self._ssh(name), "echo open", status=None)) != "open\n":
                assert time.monotonic() < deadline, f"{name}: {output}\n{self.logs()}"


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    """Both nodes with their SSH servers, without Ray; the test is skipped where that cannot be.

    Args:
        folder: an empty folder; what nodes keep in it is removed in the end.
    """
    _skip_where_impossible()
    cluster = Cluster(folder)
    (cluster.shared / "storage").mkdir(parents=True)
    try:
        for key in (cluster.ssh_key, folder / "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(command, check=True)
        for name in ADDRESSES:
            (folder / name).mkdir()
        for name in ADDRESSES:
            cluster._boot(name)
        for node in cluster.nodes.values():
            _wait_for_first_process(node)
        cluster._connect()
        cluster._wait_for_doors()
        yield cluster
    finally:
        for node in cluster.nodes.values():
            node.kill()
        for node in cluster.nodes.values():
            shutil.rmtree(node.folder)


def _skip_where_impossible() -> None:
    if os.getuid() != 0:
        pytest.skip("two nodes need network namespaces, and those need root")
    missing = {package for name, package in NEEDED.items() if not shutil.which(name, path=PROGRAMS)}
    if missing:
        pytest.skip(f"two nodes need {', '.join(sorted(missing))}: apt-get install them")
    attempt = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "ip", "link", "add",
         "cables", "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if attempt.returncode:
        pytest.skip(f"two nodes need namespaces and bridges: {attempt.stderr.strip()}")
    if not (Path(sys.executable).parent / "ray").is_file():
        pytest.skip(f"there is no ray beside {sys.executable}")
    if not all(map(importlib.util.find_spec, ("aiohttp_cors", "opencensus"))):
        pytest.skip("two nodes need the dashboard and jobs of ray: pip install 'ray[default]'")


def _wait_for_first_process(node: Node) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not psutil.Process(node.process.pid).children():
        log = (node.folder / "boot.log").read_text("utf-8")
        assert node.process.poll() is None, f"{node.name} did not start: {log}"
        assert time.monotonic() < deadline, node.name
        time.sleep(0.02)


def _ip(node: Node, words: str) -> None:
    """``ip`` in the node's network alone, where process numbers are this machine's."""
    command = ["nsenter", "--target", str(node.process.pid), "--net", "ip", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{node.name}: ip {words}: {done.stderr}"


def _below_tmp(folder: Path) -> list[str]:
    """What a node must see of ``/tmp``, which is its own otherwise."""
    needed = {ROOT, folder, Path(sys.prefix), Path(sys.base_prefix), *map(Path, sys.path)}
    return sorted(str(path) for path in needed if path.is_relative_to("/tmp") and path.is_dir())


def _passwd(home: Path) -> str:
    """The machine's accounts, with another home for root and one for sshd's unprivileged part."""
    root = f"root:x:0:0:root:{home}:/bin/bash"
    others = [
        ":".join([a.pw_name, "x", str(a.pw_uid), str(a.pw_gid), a.pw_gecos, a.pw_dir, a.pw_shell])
        for a in pwd.getpwall()
        if a.pw_name not in ("root", "sshd")
    ]
    return "\n".join([root, "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin", *others]) + "\n"


def _sshd(folder: Path, node: Path) -> list[str]:
    options = {
        "AuthorizedKeysFile": str(folder / "key.pub"),
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    sshd = shutil.which("sshd", path=PROGRAMS)
    assert sshd is not None
    log = str(node / "sshd.log")
    return [sshd, "-D", "-E", log, "-f", "/dev/null", "-h", str(folder / "host_key"), *words]
