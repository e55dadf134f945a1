"""The command line itself: light to start, one clear sentence for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import CommandLine

HEAVY = ("torch", "ray", "mlflow", "openai", "aiohttp", "pandas", "pyarrow", "scipy", "matplotlib")


def test_help_and_import_stay_light() -> None:
    code = (
        "import sys, alkd_ray\n"
        "from alkd_ray.cli.main import build\n"
        "import typer.main\n"
        "typer.main.get_command(build())\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_verb_has_help(alkd: CommandLine) -> None:
    shown = alkd("--help").stdout
    for verb in (
        "run", "train", "score", "select", "annotate", "distill", "evaluate", "report",
        "data", "ledger", "llm", "config", "list", "doctor", "recommend", "export",
    ):  # fmt: skip
        assert verb in shown
        assert "Usage" in alkd(verb, "--help").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "none.yaml"], "none.yaml: there is no such config file"),
        (["run", "quickstart", "student.dim=0"], "student.dim"),
        (["run", "quickstart", "student.backbone=gru"], "unknown name 'gru'"),
        (["run", "quickstart", "oops"], "key=value"),
        (["run", "quickstart", "preset=fast"], "'paper' or 'strong' (it is 'fast')"),
        (
            [
                "run",
                "quickstart",
                "llm={teacher: openai-chat, options: {model: gpt-4o-mini, "
                "api_key_env: NO_SUCH_KEY}}",
            ],
            "'NO_SUCH_KEY' is not set",
        ),
        (
            ["run", "quickstart", "llm={teacher: openai-chat, options: {model: my-own}}"],
            "has no known price",
        ),
        (["config", "check", "quickstart", "budget.cents=3"], "no such field"),
        (["list", "kitchens"], "there is no room 'kitchens'"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    alkd: CommandLine, words: list[str], said: str
) -> None:
    done = alkd(*words, status=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not alkd.home.exists() or not any(alkd.home.iterdir())


def test_config_show_resolves_everything(alkd: CommandLine) -> None:
    shown = json.loads(alkd("config", "show", str(alkd.config), "student.dim=9", "--json").stdout)
    assert shown["student"]["dim"] == 9
    assert shown["candidates"]["size"] == 30
    assert shown["distillation"]["training"]["metric"] == "recall@50"


def test_a_budget_too_large_for_the_data(alkd: CommandLine, tmp_path: Path) -> None:
    here = CommandLine(tmp_path / "home", alkd.config)
    done = here(
        "select", str(alkd.config), "selection.budget=5000", "difficulty.engine=local", status=2
    )
    assert "selection.budget is 5000" in done.stderr


def test_doctor_and_list(alkd: CommandLine) -> None:
    assert "ray" in alkd("doctor").stdout
    assert {"fpmc", "stamp", "attmix"} <= set(
        json.loads(alkd("list", "--json").stdout)["recommenders"]
    )
