"""The files in ``cluster/``, and a real cluster of two nodes made by ``ray up``."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import two_nodes as nodes
from tests.two_nodes import PATIENCE_SECONDS, Cluster, Running, two_nodes

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "cluster").rglob("*.yaml"))
ENDPOINT = f"http://{nodes.ADDRESSES['head']}:8123"
BILL = f"import urllib.request as r; print(r.urlopen('{ENDPOINT}/bill').read().decode())"

RUN = f"""
name: two-nodes
data: {{source: synthetic, options: {{size: tiny}}}}
teacher: {{dim: 32, training: {{max_steps: 200}}}}
student: {{dim: 8, training: {{max_steps: 200}}}}
candidates: {{size: 30}}
difficulty: {{engine: ray, shards: 8}}
selection: {{budget: 60}}
llm:
  teacher: openai-chat
  options:
    base_url: {ENDPOINT}/v1
    model: simulated-title-reader
    api_key_env: ""
    rates: {{input_usd_per_million: 0.15, output_usd_per_million: 0.6}}
annotation: {{wanted: 15, in_flight: 2, engine: ray, actors: 8}}
distillation: {{training: {{max_steps: 100}}}}
evaluation: {{resamples: 200}}
"""


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / name).read_text("utf-8")))


@pytest.mark.parametrize("name", ["local.yaml", "aws.yaml", "gcp.yaml"])
def test_ray_accepts_the_cluster_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (given,) = read(name)
    prepared = prepare_config(given)
    validate_config(prepared)
    assert prepared["head_start_ray_commands"] == given["head_start_ray_commands"]
    for here in given["file_mounts"].values():
        assert here.startswith("~") or (ROOT / here).exists()


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml"])
def test_kuberay_pods_run_the_pinned_ray_with_a_token(name: str) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned
    (ray,) = [d for d in read(name) if d["kind"] in ("RayCluster", "RayJob")]
    spec = ray["spec"].get("rayClusterSpec", ray["spec"])
    assert spec["rayVersion"] == pinned[1]
    assert spec["authOptions"] == {"mode": "token"}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    known = {d["metadata"]["name"] for d in [*read("kuberay/raycluster.yaml"), *read(name)]}
    for pod in (group["template"]["spec"] for group in groups):
        mounted = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            claim, made = volume.get("persistentVolumeClaim"), volume.get("configMap")
            if "emptyDir" not in volume:
                assert (claim["claimName"] if claim else made["name"]) in known


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml"])
def test_a_worker_may_write_where_the_heads_run_root_is(name: str) -> None:
    """It is told of that path, and keeps its copies there."""
    (ray,) = [d for d in read(name) if d["kind"] in ("RayCluster", "RayJob")]
    spec = ray["spec"].get("rayClusterSpec", ray["spec"])
    roots, kinds = set(), []
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (root,) = [e["value"] for e in container["env"] if e["name"] == "ALKD_HOME"]
        (mount,) = [m for m in container["volumeMounts"] if root.startswith(m["mountPath"] + "/")]
        (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
        roots.add(root)
        kinds.append(next(kind for kind in volume if kind != "name"))
    assert len(roots) == 1
    assert kinds == ["persistentVolumeClaim", "emptyDir"]


def test_every_file_of_the_folder_is_one_of_those() -> None:
    assert [str(file.relative_to(ROOT / "cluster")) for file in FILES] == [
        "aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "local.yaml",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("two_nodes")) as made:
        made.up()
        yield made


@pytest.fixture(scope="module")
def config(cluster: Cluster) -> Iterator[Path]:
    """A run's config, and on the head the endpoint that it asks."""
    file = cluster.folder / "run.yaml"
    file.write_text(RUN)
    serve = f"alkd llm serve --host {cluster.head_ip} --port 8123"
    with cluster.running("ray", "exec", str(cluster.config), serve) as server:
        await_answer(cluster, f"{ENDPOINT}/bill", server)
        yield file


def await_answer(cluster: Cluster, url: str, server: Running) -> str:
    """What ``url`` says to the laptop, once it says anything; ``server`` must not end before."""
    program = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).read().decode())"
    deadline = time.monotonic() + 2 * PATIENCE_SECONDS
    while "Error" in (answer := cluster.run("python", "-c", program, status=None)):
        assert server.process.poll() is None, server.text
        assert time.monotonic() < deadline, f"{answer}\n{server.text}"
    return answer


def record(cluster: Cluster, budget: int) -> dict[str, Any]:
    """The run's record with that ``selection.budget``, as left in the folder of all nodes."""
    records = [
        json.loads(file.read_text("utf-8"))
        for file in (cluster.shared / "home" / "records").glob("*/run.json")
    ]
    (found,) = [each for each in records if each["config"]["selection"]["budget"] == budget]
    return found


def tasks(cluster: Cluster) -> list[dict[str, Any]]:
    """All tasks that the cluster remembers, as Ray tells them."""
    output = cluster.on_head("ray list tasks --detail --format json --limit 10000")
    return json.JSONDecoder().raw_decode(output, output.index("[{"))[0]


@pytest.mark.slow
def test_a_submitted_run_is_worked_on_by_both_nodes(cluster: Cluster, config: Path) -> None:
    at = str(cluster.config)
    cluster.run("ray", "rsync-up", at, str(config), "~/run.yaml")
    # It has a terminal there, so it would ask before it pays.
    words = ["cluster/submit.py", "--", "run", "~/run.yaml", "--yes"]
    output = cluster.run("ray", "submit", at, *words)
    assert "distilled" in output
    found = record(cluster, 60)
    assert found["status"] == "complete"

    known = tasks(cluster)
    scoring = {t["node_id"] for t in known if t["type"] == "NORMAL_TASK"}
    asking = {t["node_id"] for t in known if t["name"] == "_Annotator.run"}
    keeping = {t["node_id"] for t in known if t["name"].startswith("_Desk.")} - {"", None}
    print(f"scored by {scoring}, asked by {asking}, books kept by {keeping}")
    assert len(scoring) == len(asking) == 2
    assert len(keeping) == 1

    bill = json.loads(cluster.on_head(f"python -c {shlex.quote(BILL)}"))
    ledger = json.loads(cluster.on_head("alkd ledger show two-nodes --json"))
    assert bill["requests"] == 61
    assert ledger["budgets"][0]["settled"]["microusd"] == bill["microusd"] > 0


@pytest.mark.slow
def test_its_results_are_in_the_mlflow_ui_of_the_head(cluster: Cluster, config: Path) -> None:
    ui = "mlflow ui --port 5000 --backend-store-uri sqlite:///$ALKD_HOME/mlflow/mlflow.db"
    words = ["ray", "exec", str(cluster.config), "--port-forward", "5000", ui]
    with cluster.running(*words) as server:
        await_answer(cluster, "http://localhost:5000/health", server)
        program = (
            "import mlflow; mlflow.set_tracking_uri('http://localhost:5000');"
            "runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
            "print('runs', sorted(run.info.run_name for run in runs))"
        )
        output = cluster.run("python", "-c", program)
    assert "runs ['distilled-1', 'student-1', 'teacher-1', 'two-nodes']" in output


@pytest.mark.slow
def test_a_job_needs_the_token_and_nothing_else(cluster: Cluster, config: Path) -> None:
    address = "http://localhost:8265"
    with cluster.running("ray", "dashboard", str(cluster.config)) as tunnel:
        await_answer(cluster, f"{address}/", tunnel)
        folder = config.parent / "job"
        folder.mkdir()
        (folder / "run.yaml").write_text(config.read_text())
        words = ["ray", "job", "submit", "--address", address, "--working-dir", str(folder)]
        words += ["--", "alkd", "run", "run.yaml", "selection.budget=70"]
        refused = cluster.run("env", "RAY_AUTH_TOKEN=another", *words, status=None)
        assert "succeeded" not in refused
        assert "401" in refused or "authenticat" in refused.lower()
        output = cluster.run(*words)
    assert "succeeded" in output
    assert record(cluster, 70)["status"] == "complete"


@pytest.mark.slow
def test_ray_down_ends_ray_on_both_nodes(cluster: Cluster) -> None:
    assert raylets(cluster, "head") == raylets(cluster, "worker") == 1
    cluster.run("ray", "down", "--yes", str(cluster.config))
    assert raylets(cluster, "head") == 0
    # Nobody tells the worker's Ray; it ends when it has missed its head for a minute.
    deadline = time.monotonic() + 4 * PATIENCE_SECONDS
    while raylets(cluster, "worker"):
        assert time.monotonic() < deadline
        time.sleep(1)


def raylets(cluster: Cluster, name: str) -> int:
    first = psutil.Process(cluster.nodes[name].process.pid)
    return sum(each.name() == "raylet" for each in first.children(recursive=True))


@pytest.mark.slow
def test_a_head_whose_worker_is_unplugged_goes_on(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as cluster:
        cluster.up()
        cluster.kill_worker()
        cluster.wait_for_nodes(1)
        words = ["run", "quickstart", "data.options.size=tiny", "difficulty.engine=ray"]
        words += ["teacher.training.max_steps=100", "student.training.max_steps=100"]
        words += ["selection.budget=20", "seeds=[1]"]
        at = str(cluster.config)
        cluster.run("ray", "submit", at, "cluster/submit.py", "--", *words)
        assert record(cluster, 20)["status"] == "complete"


def test_nodes_leave_nothing_when_a_test_fails(tmp_path: Path) -> None:
    processes: list[psutil.Process] = []
    with pytest.raises(ZeroDivisionError), two_nodes(tmp_path) as cluster:  # noqa: PT012
        processes += everything(cluster)
        raise ZeroDivisionError
    assert len(processes) >= 6
    assert_gone(processes)
    assert not any((tmp_path / name).exists() for name in nodes.ADDRESSES)


def test_nodes_leave_no_process_when_their_test_is_killed(tmp_path: Path) -> None:
    nodes._skip_where_impossible()
    program = (
        "import sys, time; from pathlib import Path; from tests.two_nodes import two_nodes\n"
        "with two_nodes(Path(sys.argv[1])) as cluster: print('up', flush=True); time.sleep(600)"
    )
    test = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert test.stdout is not None
    assert test.stdout.readline() == "up\n"
    processes = psutil.Process(test.pid).children(recursive=True)
    test.send_signal(signal.SIGKILL)
    test.communicate()
    assert len(processes) >= 6
    assert_gone(processes)


def everything(cluster: Cluster) -> list[psutil.Process]:
    first = [psutil.Process(node.process.pid) for node in cluster.nodes.values()]
    return [each for process in first for each in [process, *process.children(recursive=True)]]


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    assert not alive
