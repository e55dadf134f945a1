"""``alkd data`` in processes of its own: import, describe, validate, and the page about them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alkd_ray import datasets
from alkd_ray.cli.main import main
from alkd_ray.sources.table import Table
from tests.e2e.conftest import CommandLine

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("user=user_id", "item=item_id", "time=ts", "title=name")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    items = rng.integers(0, 30, 400)
    table = pd.DataFrame(
        {
            "user_id": rng.integers(0, 25, 400),
            "item_id": [f"B{item}" for item in items],
            "ts": 1_700_000_000 + rng.integers(0, 20_000, 400),
            "name": [f"Title, {item}" for item in items],
        }
    )
    table.to_csv(tmp_path / "log.csv", index=False)
    return tmp_path / "log.csv"


def test_import_describe_validate(alkd: CommandLine, log: Path) -> None:
    folder = log.parent / "deep" / "mine"
    done = alkd("data", "import", "table", str(log), "--out", str(folder), *COLUMNS)
    assert str(folder) in done.stdout
    assert "interactions" in done.stdout
    dataset = datasets.read(folder)
    facts = json.loads(alkd("data", "describe", str(folder), "--json").stdout)
    assert facts == datasets.describe(dataset)
    assert facts["counts"]["interactions"] > 200
    shown = alkd("data", "describe", str(folder)).stdout
    assert f"{facts['counts']['sessions']:,}" in shown
    assert f"{facts['popularity']['gini']:.3f}" in shown
    assert "valid" in alkd("data", "validate", str(folder)).stdout
    assert json.loads(alkd("data", "validate", str(folder), "--json").stdout)["problems"] == []

    items = pd.read_parquet(folder / "items.parquet")
    items.loc[3, "item_id"] = 99
    items.to_parquet(folder / "items.parquet")
    done = alkd("data", "validate", str(folder), status=2)
    assert f"{folder}/items.parquet: row 3, field item_id: is 99, must be 3" in done.stderr
    found = json.loads(alkd("data", "validate", str(folder), "--json", status=2).stdout)
    assert not found["valid"]
    assert "row 3, field item_id" in found["problems"][0]
    done = alkd("data", "describe", str(folder), status=2)
    assert len(done.stderr.strip().splitlines()) == 1


def test_damaged_lines_and_folders_that_are_taken(alkd: CommandLine, log: Path) -> None:
    folder = log.parent / "mine"
    words = ("data", "import", "table", str(log), "--out", str(folder), *COLUMNS)
    with log.open("a") as opened:
        opened.write("u1,B1,soon,T\nu1,B1\n")
    done = alkd(*words, "--json", status=2)
    assert f"{log}: line 402, field ts: 'soon' is not a time" in done.stderr
    assert f"{log}: line 403: has 2 fields, must have 4" in done.stderr
    assert "Traceback" not in done.stderr
    assert {file.name for file in log.parent.iterdir()} == {"log.csv"}
    done = alkd(*words, "--max-bad", "2")
    assert "left out: " in done.stderr
    assert datasets.read(folder).damaged_lines == 2
    assert "--force replaces it" in alkd(*words, "--max-bad", "2", status=2).stderr
    made = json.loads(alkd(*words, "max_bad=2", "name=second", "--force", "--json").stdout)
    assert made["folder"] == str(folder)
    assert datasets.read(folder).name == "second"
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt" in alkd(*words, "--max-bad", "2", "--force", status=2).stderr
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-source"], "unknown name 'no-such-source' in sources"),
        (["table", "log.csv", "colour=red"], "no such field; known: path, name, user"),
        (["table", "log.csv", "oops"], "'oops' is not of the form key=value"),
        (["table", "log.csv", "path=other.csv"], "path is given twice"),
        (["table", "none.csv", "session=s"], "none.csv: there is no such file"),
        (["synthetic", "size=tiny", "--max-bad", "3"], "--max-bad"),
        (["synthetic", "size=tiny", "--out", f"{__file__}/mine"], "is a file, and no folder can"),
    ],
)
def test_bad_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("ALKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["alkd", "data", "import", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not any(tmp_path.iterdir())


def test_default_folder_and_config(alkd: CommandLine, log: Path) -> None:
    done = json.loads(alkd("data", "import", "synthetic", "size=tiny", "--json").stdout)
    folder = Path(done["folder"])
    assert folder.parent == alkd.home / "data"
    config = log.parent / "mine.yaml"
    config.write_text(
        f"name: mine\ndata: {{source: native, options: {{path: {json.dumps(str(folder))}}}}}\n"
    )
    native = json.loads(alkd("data", "describe", str(config), "--json").stdout)
    assert native["hash"] == done["hash"]
    direct = json.loads(alkd("data", "describe", str(alkd.config), "--json").stdout)
    assert direct["hash"] == done["hash"]


def test_published_files(alkd: CommandLine, published_data: Path) -> None:
    folder = published_data / "alkdrec" / "original" / "ML"
    done = json.loads(alkd("data", "import", "alkdrec", str(folder), "--json").stdout)
    assert done["counts"] == {
        "sessions": 12_323, "items": 8_475, "interactions": 112_034,
        "train": 7_393, "valid": 2_465, "test": 2_465,
    }  # fmt: skip
    assert done["folder"] == str(alkd.home / "data" / "ML")


def test_the_page_about_data_runs_as_it_stands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 4
    script = f'set -eu\nalkd() {{ "{sys.executable}" -m alkd_ray "$@"; }}\n' + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "ALKD_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"The first of these says `(.*?)`", page, flags=re.DOTALL)
    assert said is not None
    assert " ".join(said[1].split()) in done.stderr
    assert datasets.read(tmp_path / "data" / "damaged").damaged_lines == 1
    options = re.findall(r"^\| `(\w+)`(?: / `(\w+)`)? \|", page, flags=re.MULTILINE)
    named = {name for pair in options for name in pair if name}
    prose = {"titles_item", "gap_minutes", "seed"}  # described within another option's row
    assert named | prose >= set(Table.Config.model_fields)
    assert all(f"`{name}`" in page for name in Table.Config.model_fields)
