"""A process that has started Ray ends on SIGTERM as it would without Ray."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from alkd_ray.runtime import cluster
cluster.ensure_ray(num_cpus=2)
print("up", flush=True)
time.sleep(300)
"""


def test_ray_takes_no_signal_away() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 143, said
    assert "SIGTERM received" not in said
