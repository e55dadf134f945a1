"""A sweep on two real nodes, of which one is lost in the middle."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import sweep_files
from tests.faults.test_sweep_kills import SLOW
from tests.two_nodes import PATIENCE_SECONDS, Cluster, two_nodes

OWN_ROOTS = {"ALKD_HOME": "$HOME/alkd_runs"}  # the nodes do not see each other's


def events(cluster: Cluster) -> list[dict[str, Any]]:
    """The journal on the head, as far as it is written; [] before it is begun."""
    said = cluster.on_head("cat $ALKD_HOME/sweeps/*/journal.jsonl || true")
    lines = [line for line in said.splitlines() if line.startswith('{"event"')]
    return [json.loads(line) for line in lines if line.endswith("}")]


def trials(cluster: Cluster) -> list[dict[str, Any]]:
    return [event for event in events(cluster) if event["event"] == "trial"]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_both_nodes_work_and_the_loss_of_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sweep_files.written(tmp_path, run=SLOW)
    monkeypatch.setenv("ALKD_HOME", str(tmp_path / "here"))
    here = sweep_files.run(file, "sweep.engine=local")
    with two_nodes(tmp_path / "nodes") as cluster:
        cluster.up(OWN_ROOTS)
        at = str(cluster.config)
        seen = sweep_files.written(cluster.folder, run=SLOW)
        cluster.run("ray", "rsync-up", at, str(seen), "~/sweep.yaml")
        words = ["cluster/submit.py", "--", "sweep", "~/sweep.yaml", "--yes", "sweep.pack=2"]
        with cluster.running("ray", "submit", at, *words) as sweep:
            deadline = time.monotonic() + 5 * PATIENCE_SECONDS
            while len({event["node"] for event in trials(cluster)}) < 2:
                assert sweep.process.poll() is None, sweep.text
                assert time.monotonic() < deadline, sweep.text
                time.sleep(1)
            cluster.kill_worker()
            assert sweep.process.wait(5 * PATIENCE_SECONDS) == 0, sweep.text
        found = trials(cluster)
        shown = json.loads(cluster.on_head("alkd sweep show ~/sweep.yaml --json"))
    assert {event["node"] for event in found} == {cluster.head_ip, cluster.worker_ip}
    assert len({event["trial"] for event in found}) == 16
    assert max(Counter(e["trial"] for e in found if not e["reused"]).values()) == 1
    by_setting = {one["setting"]: one["by_seed"] for one in shown}
    assert by_setting == {
        s.setting.id: {str(seed): value for seed, value in s.by_seed.items()}
        for s in here.standings
    }
    assert [one["setting"] for one in shown] == [s.setting.id for s in here.standings]
