"""A Ray that is slow to start is started again; any other failure is not hidden."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest
import ray

from alkd_ray.errors import AlkdError, InputError
from alkd_ray.runtime import cluster

# What Ray raises, word for word.
SLOW = (
    "The current node timed out during startup. This could happen because some of the raylet "
    "failed to startup or the GCS has become overloaded."
)


def failing(monkeypatch: pytest.MonkeyPatch, *failures: str) -> list[dict]:
    """Has the first starts fail; counts them all."""
    started: list[dict] = []

    def init(**given: object) -> None:
        started.append(given)
        if len(started) <= len(failures):
            raise Exception(failures[len(started) - 1])

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return started


def test_a_slow_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started = failing(monkeypatch, SLOW, SLOW)
    assert cluster.ensure_ray(num_cpus=2)
    assert len(started) == 3
    assert started[0] == started[2]


def test_a_machine_that_is_always_too_busy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    started = failing(monkeypatch, *[SLOW] * 9)
    with pytest.raises(AlkdError, match="did not start within 30 seconds, 3 times"):
        cluster.ensure_ray()
    assert len(started) == cluster.STARTS


def test_another_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    started = failing(monkeypatch, "no room in /dev/shm")
    with pytest.raises(Exception, match="no room"):
        cluster.ensure_ray()
    assert len(started) == 1


def test_the_words_are_those_of_the_ray_that_is_installed() -> None:
    found = importlib.util.find_spec("ray._private.node")
    assert found is not None
    assert found.origin is not None
    assert cluster.TOO_SLOW in Path(found.origin).read_text("utf-8")


def test_an_address_without_a_ray_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself looks for it for minutes, and then ends the process."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(AlkdError, match=r"no Ray can be reached at 127\.0\.0\.1"):
            cluster.ensure_ray()


def node(cpus: float, gpus: float = 0.0, alive: bool = True) -> dict:
    resources = {"CPU": cpus, "memory": 1e9, **({"GPU": gpus} if gpus else {})}
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1, 0, 14), (0.1, 0, 140), (3, 0, 3), (1, 1, 2), (0.5, 0.5, 4)]
)
def test_actors_fit_on_nodes_not_on_sums_of_them(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: float, room: int
) -> None:
    nodes = [node(4), node(8, 2), node(2), node(64, 8, alive=False)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert cluster.room_for_actors(cpus, gpus) == room


@pytest.mark.parametrize(("cpus", "gpus"), [(1, 1), (6, 0)])
def test_actors_for_which_no_node_has_room_are_refused(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: float
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(4), node(4)])
    with pytest.raises(InputError, match=r"no node has room .* 4 CPUs and 0 GPUs, 4 CPUs"):
        cluster.room_for_actors(cpus, gpus)
