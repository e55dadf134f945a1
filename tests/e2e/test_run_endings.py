"""What is told of a run whose rankings could not all be bought."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.annotation_rows import Server, serving
from tests.e2e.conftest import CommandLine
from tests.e2e.test_annotate_cli import endpoint, refusing


def test_a_pass_that_got_no_further_tells_why_it_ended(alkd: CommandLine, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        words = (*endpoint(server, "no-further"), "annotation.partial=true", "--json")
        capped = alkd("annotate", "run", str(alkd.config), *words, "budget.dollars=0.001", status=4)
    first = json.loads(capped.stdout)
    assert "cap of 0.001" in first["reason"]
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    with refusing(401, {"message": "this key was revoked"}, port):
        refused = alkd("annotate", "run", str(alkd.config), *words, "budget.dollars=0.1", status=4)
    second = json.loads(refused.stdout)
    assert "this key was revoked" in second["reason"]
    assert (second["answered"], second["cap_microusd"]) == (first["answered"], 100_000)


def test_a_run_without_an_answer_names_the_reason(alkd: CommandLine, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        pass  # nobody listens there any more
    words = endpoint(Server(server.url, Path()), "nobody")
    ended = alkd("run", str(alkd.config), *words, "annotation.tries=1", status=3)
    assert "60 of 60 rows failed, the first with" in ended.stdout
    assert "onnect" in ended.stdout
    assert "distillation" not in ended.stderr


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_that_nothing_is_lost(
    alkd: CommandLine, tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    slow = ["train", str(alkd.config), "teacher.training.max_steps=1000000"]
    slow += ["teacher.training.patience=1000000", "student.training.patience=1000000"]
    fresh = replace(alkd, home=tmp_path / "home")
    process = subprocess.Popen(
        fresh.command(*slow),
        env=fresh.environment,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "pretrain" in line:
                break
        process.send_signal(sent)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == status
    assert said.splitlines()[-1] == (
        "alkd: interrupted; what is done is kept, the same command goes on"
    )


def test_a_run_root_that_is_a_file_is_named(alkd: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "home"
    file.write_text("")
    for words in (("doctor",), ("train", str(alkd.config))):
        said = replace(alkd, home=file)(*words, status=2).stderr
        assert said == f"alkd: ALKD_HOME: {file} is not a folder; name one, which may be new\n"


def test_a_run_root_that_cannot_be_made_is_named(alkd: CommandLine) -> None:
    said = replace(alkd, home=Path("/proc/nope"))("train", str(alkd.config), status=1).stderr
    assert said.splitlines()[-1].startswith("alkd: /proc/nope")
    assert "Traceback" not in said
