"""Starting, or joining, Ray: once, quietly, and ended by whoever began it."""

from __future__ import annotations

import atexit
import logging
import os

import ray

# Set before Ray starts, so that its processes inherit it; whoever wants to see more sets his own.
QUIET_ENVIRONMENT = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
}


def ensure_ray(num_cpus: int | None = None) -> bool:
    """Joins the cluster named by ``RAY_ADDRESS``, else starts Ray on this machine.

    Args:
        num_cpus: CPUs of a Ray that is started here; default: those of the machine, at least 2.

    Returns:
        True when this call started or joined it (then :func:`shutdown` ends that).
    """
    if ray.is_initialized():
        return False
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        ray.init(address=address, **quiet)
    else:
        ray.init(num_cpus=num_cpus or max(2, os.cpu_count() or 2), include_dashboard=False, **quiet)
    atexit.register(shutdown)
    return True


def shutdown() -> None:
    """Ends this process's connection, and the Ray that it started."""
    if ray.is_initialized():
        ray.shutdown()
