"""What logging to MLflow costs a sweep: its time with logging on against off, in one run.

python benchmarks/sweep_logging.py           trials one after another, in this process
python benchmarks/sweep_logging.py --server  the same, to a local `mlflow server`

The same sweep is run in turn with and without a logger, each time in a process of its own and with
what its trials share made beforehand. So the figures hold all that logging does: importing MLflow,
connecting, writing, and registering the best student at the end. MLflow's store is there already.
Wall time counts what training had to wait for; processor time is that of the whole process. On a
busy machine both waver by more than logging takes; the processor time of the logger's own thread,
as a share of the process's in the same run, does not. Some 4 s of processor time are the same for
any sweep, so that short sweeps (`--settings 8`) show a larger share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alkd_ray.runtime.sweep_log import SweepLogger
from alkd_ray.runtime.tracking import default_tracking_uri
from alkd_ray.stages import Silent
from alkd_ray.sweeps import journal
from alkd_ray.sweeps.config import load

WANTED = 1.05
OF_TRIALS = ("distillation", "validation", "evaluation", "sweeps")  # made anew in each round
# The driver's own logging is off: it is the benchmark that says whether there is any.
SWEEP = """
name: logging
run:
  data: {{source: synthetic, options: {{size: tiny}}}}
  teacher: {{training: {{max_steps: 100}}}}
  student: {{training: {{max_steps: 100}}}}
  distillation: {{training: {{max_steps: {steps}, patience: 1000}}}}
  difficulty: {{engine: local}}
  annotation: {{engine: local}}
  tracking: {{enabled: false}}
seeds: {seeds}
over:
  selection.budget: {{grid: [60]}}
  distillation.training.learning_rate: {{loguniform: [1.0e-4, 1.0e-2]}}
samples: {settings}
engine: local
"""


class _Told(Silent):
    """A listener that passes on that something was journalled, where there is a logger."""

    def __init__(self, logger: SweepLogger | None) -> None:
        self._logger = logger

    def trials(self, queue: Any, found: Any) -> None:
        if self._logger is not None:
            self._logger.notify()

    def shared(self, shared: Any) -> None:
        if self._logger is not None:
            self._logger.notify()


def run_here(file: Path, uri: str) -> dict[str, float]:
    """Runs the sweep of a file, logging it to ``uri``; "" = not at all."""
    from alkd_ray.runtime import sweep as running

    sweep = load(file)
    # What both need is loaded before the clock starts.
    import torch  # noqa: F401

    wall, processor = time.perf_counter(), time.process_time()
    logger = SweepLogger(sweep, journal.folder_of(sweep), uri) if uri else None
    outcome = running.execute(sweep, _Told(logger), lambda plan: None)
    of_logger = _logger_seconds()
    over_wall, over_processor = time.perf_counter() - wall, time.process_time() - processor
    if logger is not None:
        tracked = logger.finish(600)
        if isinstance(tracked, str):
            raise SystemExit(tracked)
    return {
        "trials": len(outcome.records),
        "sweep wall": over_wall,
        "sweep processor": over_processor,
        "logger": of_logger,
        "whole wall": time.perf_counter() - wall,
        "whole processor": time.process_time() - processor,
    }


def _logger_seconds() -> float:
    """Processor time of the logger's thread so far (Linux counts it for each thread)."""
    for thread in threading.enumerate():
        if thread.name == "sweep-log":
            text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
            return int(text.split()[0]) / 1e9
    return 0.0


def run_apart(home: Path, file: Path, uri: str) -> dict[str, float]:
    """:func:`run_here` in a process of its own, below a run root."""
    environment = {**os.environ, "ALKD_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--here", str(file), "--uri", uri]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def compare(folder: Path, file: Path, uri: str, rounds: int) -> None:
    """Prints times with and without logging, in turn, and their ratios."""
    home = folder / "home"
    run_apart(home, file, "")  # makes what the trials share
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for turn in range(rounds):
        for is_on in (False, True) if turn % 2 == 0 else (True, False):
            for name in OF_TRIALS:
                shutil.rmtree(home / name)
            # Each round is logged as a sweep that MLflow does not have yet.
            given = folder / f"round-{turn}" / file.name
            given.parent.mkdir(exist_ok=True)
            given.write_text(file.read_text() + f"asha: {{first_step: {turn + 1}}}\n")
            times = run_apart(home, given, uri if is_on else "")
            found[is_on].append(times)
            print(
                f"  {'on ' if is_on else 'off'}  {times['trials']:.0f} trials"
                f"  wall {times['sweep wall']:.1f} s, with the end {times['whole wall']:.1f} s"
                f"  processor {times['sweep processor']:.1f} s,"
                f" with the end {times['whole processor']:.1f} s",
                flush=True,
            )
    print("logging on / off                            goal")
    for name in ("sweep wall", "whole wall", "sweep processor", "whole processor"):
        of_turns = [on[name] / off[name] for on, off in zip(found[True], found[False], strict=True)]
        shown = name.replace("whole", "with the end,").replace("sweep", "until the last trial,")
        print(f"{shown:<37}{statistics.median(of_turns):6.3f}  {WANTED:.2f}")
    until = statistics.median(1 / (1 - on["logger"] / on["sweep processor"]) for on in found[True])
    # At the end nothing but the logger works.
    whole = statistics.median(
        on["whole processor"] / (on["sweep processor"] - on["logger"]) for on in found[True]
    )
    print("the same, by the time of the logger's own thread in the runs with logging")
    print(f"{'until the last trial, processor':<37}{until:6.3f}  {WANTED:.2f}")
    print(f"{'with the end, processor':<37}{whole:6.3f}  {WANTED:.2f}", flush=True)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A local MLflow server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1",
        "--artifacts-destination", str(folder / "served"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("wb") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            while process.poll() is None:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2),
                ):
                    break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="of a trial's training")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--uri", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here is not None:
        print(json.dumps(run_here(given.here, given.uri)))
        return
    with tempfile.TemporaryDirectory(prefix="alkd-benchmark-") as scratch:
        folder = Path(scratch)
        file = folder / "logging.yaml"
        seeds = list(range(1, given.seeds + 1))
        file.write_text(SWEEP.format(steps=given.steps, seeds=seeds, settings=given.settings))
        where = server(folder) if given.server else contextlib.nullcontext("")
        with where as address:
            uri = address or default_tracking_uri(folder)
            from alkd_ray.runtime._mlflow_connection import connect

            with connect(uri):  # makes the store
                pass
            print(f"{given.settings} settings of {given.seeds} seeds, to {uri.split(':')[0]}")
            compare(folder, file, uri, given.rounds)


if __name__ == "__main__":
    main()
