"""What asks every node, on two raylets of this machine (two real nodes: ``test_cluster_local``)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from alkd_ray.errors import AlkdError, InputError
from alkd_ray.runtime import cluster
from alkd_ray.runtime.tasks import by_tasks

# So long that one node has not done all before the other has started a worker.
SECONDS = 1.5


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        stack.callback(nodes.shutdown)
        nodes.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", str(nodes.address))
        assert cluster.ensure_ray()
        stack.callback(cluster.shutdown)
        yield


def test_every_node_is_asked_whether_it_sees_a_folder(two_nodes: None, tmp_path: Path) -> None:
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    assert cluster.all_nodes_see(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_ray_that_somebody_runs_here_is_not_joined_unasked(two_nodes: None) -> None:
    """The two nodes are where Ray itself looks first, for whoever names no address."""
    program = (
        "from alkd_ray.runtime import cluster; import ray;"
        "print(cluster.ensure_ray(num_cpus=3), ray.cluster_resources()['CPU'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "True 3.0\n", done.stderr


def test_tasks_are_spread_and_answer_in_order(two_nodes: None, tmp_path: Path) -> None:
    def where(number: int) -> tuple[int, str]:
        time.sleep(SECONDS)
        return number, ray.get_runtime_context().get_node_id()

    told: list[int] = []
    found = by_tasks(where, [(number,) for number in range(6)], tmp_path, None, told.append)
    assert [number for number, _ in found] == list(range(6))
    assert len({node for _, node in found}) == 2
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_task_says_what_is_meant_for_the_user(two_nodes: None, tmp_path: Path) -> None:
    def refuse(number: int) -> int:
        if number == 2:
            raise InputError("row 2 is no good")
        return number

    with pytest.raises(AlkdError) as caught:
        by_tasks(refuse, [(number,) for number in range(4)], tmp_path, None, lambda done: None)
    assert str(caught.value) == "row 2 is no good"


def test_a_root_that_not_all_see_is_refused(
    two_nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "all_nodes_see", lambda folder: False)
    with pytest.raises(InputError, match="not all nodes see the run root"):
        by_tasks(print, [(1,)], tmp_path, None, lambda done: None)
    assert os.listdir(tmp_path) == []
