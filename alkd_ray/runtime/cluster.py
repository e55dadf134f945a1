"""Starting, or joining, Ray: once, quietly, and ended by whoever began it."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alkd_ray.errors import AlkdError, InputError
from alkd_ray.storage import Storage

# Set before Ray starts, so that its processes inherit it; whoever wants to see more sets his own.
QUIET_ENVIRONMENT = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
}

REACHED_WITHIN_SECONDS = 20.0
STARTS = 3
TOO_SLOW = "timed out during startup"  # part of what Ray says then

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def ensure_ray(num_cpus: int | None = None) -> bool:
    """Joins the cluster named by ``RAY_ADDRESS``, else starts a Ray of its own on this machine.

    Args:
        num_cpus: CPUs of a Ray that is started here; default: those of the machine, at least 2.

    Returns:
        True when this call started or joined it (then :func:`shutdown` ends that).

    Raises:
        AlkdError: there is no Ray at ``RAY_ADDRESS``, or none could be started.
    """
    if ray.is_initialized():
        return False
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    at_end = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        _join(address, **quiet)
    else:
        cpus = num_cpus or max(2, os.cpu_count() or 2)
        _start(num_cpus=cpus, include_dashboard=False, **quiet)
    if callable(at_end) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, at_end)  # Ray's own prints a dump and aborts
    atexit.register(shutdown)
    return True


def _join(address: str, **given: Any) -> None:
    """Joins the Ray at ``address``; one that is not there Ray would look for for minutes.

    Raises:
        AlkdError: it cannot be reached.
    """
    host, _, port = address.rpartition(":")
    try:
        if "://" not in address and port.isdigit():  # else Ray finds out by itself, and soon
            where = (host.strip("[]"), int(port))
            socket.create_connection(where, timeout=REACHED_WITHIN_SECONDS).close()
        ray.init(address=address, **given)
    except (OSError, OverflowError, ValueError) as error:
        raise AlkdError(
            f"RAY_ADDRESS: no Ray can be reached at {address} ({' '.join(str(error).split())}); "
            "start it, or unset RAY_ADDRESS to work on this machine alone"
        ) from error


def _start(**given: Any) -> None:
    """Starts Ray; again if it was too slow: it gives itself 30 seconds, few on a busy machine.

    What a start in vain leaves running ends with this process. A Ray that somebody else runs on
    this machine is left alone ("local"): without an address Ray would join it, unasked.

    Raises:
        AlkdError: it was too slow every time.
    """
    for _ in range(STARTS):
        try:
            ray.init(address="local", **given)
        except Exception as error:  # Ray raises no kind of its own for it
            if TOO_SLOW not in str(error):
                raise
        else:
            return
    raise AlkdError(
        f"Ray did not start within 30 seconds, {STARTS} times; the machine may be too busy: try "
        "again later, or join a running Ray (RAY_ADDRESS)"
    )


def shutdown() -> None:
    """Ends this process's connection, and the Ray that it started."""
    if ray.is_initialized():
        ray.shutdown()


def this_node() -> NodeAffinitySchedulingStrategy:
    """Where something must run to reach what this process reaches: its own node."""
    return on(ray.get_runtime_context().get_node_id())


def on(node: str) -> NodeAffinitySchedulingStrategy:
    """On the node with this id, or not at all."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def room_for_actors(cpus: float, gpus: float) -> int:
    """How many actors that take so many CPUs and GPUs the nodes hold together.

    Raises:
        InputError: not one: Ray would wait for a node that has room, without a word.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    room = sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items())
        for node in nodes
    )
    if not room:
        has = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise InputError(
            f"no node has room for an actor of {cpus:g} CPUs and {gpus:g} GPUs (sweep.trial_cpus, "
            f"sweep.trial_gpus), they have {has}; ask for less, or go on once larger ones are there"
        )
    return room


def check_root(root: Path, storage: Storage | None) -> None:
    """Makes sure that what is made on one node is found on the others.

    Raises:
        InputError: there are nodes that do not see the run root, and no storage.
    """
    if storage is None and not all_nodes_see(root):
        raise InputError(
            f"not all nodes see the run root {root}; set storage to a folder or bucket that all "
            "of them reach, or ALKD_HOME to a shared folder"
        )


def all_nodes_see(folder: Path) -> bool:
    """Whether a folder of this node is the same on the others; asks each of them."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return True
    token = folder / f".seen-{uuid4().hex}"
    token.touch()
    try:
        look = ray.remote(_sees)
        asked = [look.options(num_cpus=0, scheduling_strategy=on(node)) for node in nodes]
        seen = ray.get([one.remote(token) for one in asked])
    finally:
        token.unlink()
    return all(seen)


def _sees(token: Path) -> bool:
    return token.is_file()


def quiet_tune() -> None:
    """Keeps Tune from printing tables, writing files of its own, and catching Ctrl-C."""
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
