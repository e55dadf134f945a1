"""``alkd reproduce`` on small sweeps of the embedded world: report, failures, what goes wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alkd_ray import artifacts
from alkd_ray.errors import InputError
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.reproduction.studies import STUDIES
from alkd_ray.runtime import reproduce as making
from tests.e2e.conftest import CommandLine
from tests.sweep_files import RUN

HETREC, GAMES = "hetrec2011-ml", "amazon-games"
BACKBONES = {
    name: {"teacher.backbone": name, "student.backbone": name} for name in ("fpmc", "stamp")
}
SELECTIONS = {
    "Random": {"selection.strategy": "random"},
    "ALKDRec": {"selection.strategy": "alkdrec-paper"},
    "TR": {"distillation.method": "teacher-ranking"},
}
REPOSITORY = Path(__file__).parents[2]
METHODS = {
    "DE": {"distillation.method": "de", "distillation.options.experts": 2},
    # Diverges at its first step.
    "FTD": {"distillation.method": "ftd", "distillation.training.learning_rate": 1.0e30},
    "ALKDRec": {"distillation.method": "alkdrec"},
}
RUN_OF_TABLES = {**RUN, "selection": {"budget": 20}, "evaluation": {"resamples": 200}}


def write_sweep(folder: Path, name: str, columns: str, cases: dict) -> None:
    over = {"backbone": {"cases": BACKBONES}, columns: {"cases": cases}}
    given = {
        "name": name.replace("_", "-"),
        "run": RUN_OF_TABLES,
        "seeds": [1, 2],
        "over": over,
        "finalists": "all",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(given, sort_keys=False))


@pytest.fixture(scope="module")
def table1(tmp_path_factory: pytest.TempPathFactory) -> tuple[CommandLine, str, Path]:
    folder = tmp_path_factory.mktemp("reproduce")
    configs = folder / "configs"
    configs.mkdir()
    write_sweep(configs, "table1", "method", METHODS)
    write_sweep(configs, "table1_games", "method", {"ALKDRec": METHODS["ALKDRec"]})
    write_sweep(configs, "table2_games", "variant", SELECTIONS)
    alkd = CommandLine(folder / "home", configs / "table1.yaml")
    words = ("reproduce", "table1", "--configs", str(configs), "sweep.engine=local")
    said = alkd(*words, status=3).stdout
    return alkd, said, alkd.home / "reproduction" / "table1"


def numbers(folder: Path) -> dict:
    return json.loads((folder / "reproduction.json").read_text("utf-8"))


def cell(folder: Path, dataset: str, row: str, system: str, metric: str) -> dict:
    (found,) = (
        c
        for c in numbers(folder)["cells"]
        if (c["dataset"], c["row"], c["system"], c["metric"]) == (dataset, row, system, metric)
    )
    return found


def test_ours_stands_beside_the_papers(table1: tuple[CommandLine, str, Path]) -> None:
    _, said, folder = table1
    assert "(0.0215" in said  # the paper's recall@10 of ALKDRec with FPMC on HetRec
    assert "- (0.0187)" in said  # that of FTD, which failed here
    assert "…" not in said  # nothing is cut where it is piped
    page = (folder / "reproduction.html").read_text("utf-8")
    assert "Table 1" in page
    assert "http" not in page.split("<svg")[0].replace('xmlns="http', "")  # needs nothing else
    student = cell(folder, HETREC, "fpmc", "student", "recall@10")
    assert student["paper"] == 0.01055
    assert student["ours"]["seeds"] == 2
    for name in ("popularity", "item-knn", "sequential-rules", "vsknn"):
        assert cell(folder, GAMES, "", name, "ndcg@10")["ours"]["mean"] >= 0
        assert f">{name}<" in page


def test_a_cell_is_the_mean_over_its_runs(table1: tuple[CommandLine, str, Path]) -> None:
    """From the ranks that lie below the run root, found through the sweep's own record."""
    alkd, _, folder = table1
    found = cell(folder, HETREC, "stamp", "ALKDRec", "recall@10")
    (sweep,) = (alkd.home / "sweeps").glob("table1-[0-9a-f]*")
    lines = (sweep / "journal.jsonl").read_text("utf-8").splitlines()
    tested = next(e for e in map(json.loads, lines) if e["event"] == "tested")["keys"]
    ranks = [
        read_ranks(
            artifacts.found(alkd.home, "evaluation", tested[run]["distilled"]).folder
            / "ranks.parquet"
        ).ranks
        for run in found["runs"]
    ]
    hits = [int((one <= 10).sum()) for one in ranks]
    assert found["hits"] == np.mean(hits)
    assert found["ours"]["mean"] == pytest.approx(np.mean([(one <= 10).mean() for one in ranks]))
    file, row = f"../../sweeps/{sweep.name}/report/sweep.html", f"test-{found['setting']}"
    page = (folder / "reproduction.html").read_text("utf-8")
    # Its cells of four metrics, and three differences of each; what it reads; its trials.
    assert page.count(f'href="{file}#{row}"') == 4 + 4 * 3 + 1 + 1
    # The same with the differences from it, and between the two.
    assert page.count(f'href="{file}#{row}-teacher"') == 4 + 4 * 2 + 1
    assert " ".join(found["runs"]) in page
    report = (folder / file).resolve().read_text("utf-8")
    assert all(f'id="{row}{end}"' in report for end in ("", "-student", "-teacher"))
    text = (folder / "reproduction.md").read_text("utf-8")
    assert f"[{found['setting']}]({file}#{row}) | {' '.join(found['runs'])} |" in text


def test_failed_trials_are_said_and_the_rest_stands(table1: tuple[CommandLine, str, Path]) -> None:
    _, said, folder = table1
    assert "4 of 12 trials failed" in said
    page, text = ((folder / f"reproduction.{end}").read_text("utf-8") for end in ("html", "md"))
    assert "training diverged" in page
    failed = cell(folder, HETREC, "fpmc", "FTD", "ndcg@10")
    assert failed["ours"] is None
    assert failed["missing"] == "2 failed"
    assert failed["paper"] == 0.00901
    assert f'#setting-{failed["setting"]}">2 failed</a>' in page
    assert "paper 0.0090" in page
    assert "no result: 2 failed paper 0.0090 |" in text
    assert "-- (0.0090)" in (folder / "table.tex").read_text("utf-8")
    compared = {(gap["dataset"], gap["row"], gap["second system"]) for gap in gaps(folder)}
    assert (HETREC, "fpmc", "DE") in compared
    assert (HETREC, "fpmc", "student") in compared
    assert not [one for one in compared if one[2] == "FTD"]


def gaps(folder: Path) -> list[dict]:
    with (folder / "differences.csv").open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_teachers_are_held_against_their_students(
    table1: tuple[CommandLine, str, Path],
) -> None:
    found = [gap for gap in gaps(table1[2]) if gap["metric"] == "ndcg@10"]
    # Two backbones: student, teacher and DE on HetRec, student and teacher on Games; and the
    # teachers against the students of both.
    assert len(found) == (2 * 3 + 2 * 2) + 2 * 2
    pairs = [(gap["system"], gap["second system"]) for gap in found]
    assert pairs.count(("teacher", "student")) == 4


def test_the_table_for_a_paper_is_whole(table1: tuple[CommandLine, str, Path]) -> None:
    text = (table1[2] / "table.tex").read_text("utf-8")
    # Of each dataset the methods, and the plain counts below.
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}}") == 2 * 2
    assert text.count(r"\resizebox") == 2 * 2
    assert text.splitlines()[0] == r"% \usepackage{booktabs, graphicx}"
    assert len([line for line in text.splitlines() if line.startswith("vsknn")]) == 2
    assert "bold: the best" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "recall" in line]
    columns = {line.count(" & ") for line in body if line.startswith(("{fpmc}", "{stamp}"))}
    assert columns == {4 + 2, 2 + 2}  # student, teacher, DE, FTD, ALKDRec; without DE and FTD
    assert r"\textbf{" in text


def test_a_second_call_finds_everything(table1: tuple[CommandLine, str, Path]) -> None:
    alkd, _, folder = table1
    before = (folder / "cells.csv").read_bytes()
    made = len(list((alkd.home / "distillation").iterdir()))
    words = ("reproduce", "table1", "--configs", str(alkd.config.parent), "sweep.engine=local")
    answer = json.loads(alkd(*words, "--json", status=3).stdout)
    assert answer["status"] == "partial"
    assert Path(answer["report"]) == folder / "reproduction.html"
    assert (folder / "cells.csv").read_bytes() == before
    assert len(list((alkd.home / "distillation").iterdir())) == made


def test_one_dataset_alone_has_a_report_of_its_own(table1: tuple[CommandLine, str, Path]) -> None:
    alkd, _, folder = table1
    words = ("reproduce", "table1", "--configs", str(alkd.config.parent), "sweep.engine=local")
    answer = json.loads(alkd(*words, "--dataset", GAMES, "--json").stdout)
    assert answer["status"] == "complete"
    own = Path(answer["report"]).parent
    assert own == folder.with_name(f"table1-{GAMES}")
    assert {c["dataset"] for c in numbers(own)["cells"]} == {GAMES}
    of_both = cell(folder, GAMES, "fpmc", "ALKDRec", "ndcg@5")
    # Fewer differences, so fewer resamples: the interval may move, the mean may not.
    assert cell(own, GAMES, "fpmc", "ALKDRec", "ndcg@5")["ours"]["mean"] == of_both["ours"]["mean"]
    said = alkd("reproduce", "figure2a", "--dataset", GAMES, status=2).stderr
    assert "figure2a is not made of 'amazon-games'" in said


def test_what_failed_still_has_its_models_and_the_papers_numbers(
    table1: tuple[CommandLine, str, Path],
) -> None:
    alkd, _, _ = table1
    words = ("reproduce", "table1", "--configs", str(alkd.config.parent), "sweep.engine=local")
    rate = "distillation.training.learning_rate=1.0e30"
    said = alkd(*words, "--dataset", GAMES, rate, status=3).stdout
    assert "- (0.0575)" in said
    (own,) = (alkd.home / "reproduction").glob(f"table1-{GAMES}-*")
    assert cell(own, GAMES, "fpmc", "ALKDRec", "recall@10")["missing"] == "2 failed"
    for role in ("student", "teacher"):
        found, whole = (cell(at, GAMES, "fpmc", role, "recall@10") for at in (own, table1[2]))
        assert found["ours"]["mean"] == whole["ours"]["mean"]
        assert found["reference"] is None  # that of recall
        assert found["runs"] == []


def test_what_another_sweep_made_is_found(table1: tuple[CommandLine, str, Path]) -> None:
    alkd, _, _ = table1
    words = ("reproduce", "table1", "--configs", str(alkd.config.parent), "sweep.engine=local")
    answer = json.loads(alkd(*words, "--dataset", GAMES, "sweep.seed=2", "--json").stdout)
    for end in ("html", "md"):
        text = Path(answer["report"]).with_suffix(f".{end}").read_text("utf-8")
        assert "4 trials, all found, nothing run" in text.replace("\\", "")


def test_selections_are_seen_afterwards(table1: tuple[CommandLine, str, Path]) -> None:
    """On the page, and as plain numbers."""
    alkd, _, folder = table1
    words = ("reproduce", "table2", "--configs", str(alkd.config.parent), "sweep.engine=local")
    answer = json.loads(alkd(*words, "--dataset", GAMES, "--json").stdout)
    own = Path(answer["report"]).parent
    assert own.name == f"table2-{GAMES}"
    with (own / "effects.csv").open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["strategy"] for row in rows] == ["random", "alkdrec-paper"] * 2  # TR selects none
    written = numbers(own)
    assert len(written["effects"]) == len(rows)
    page = (own / "reproduction.html").read_text("utf-8")
    for row, found in zip(rows, written["effects"], strict=True):
        assert row["id"] == found["id"]
        shares = [float(row[kind]) for kind in ("effective", "similar", "incorrect", "unanswered")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert f'#test-{row["id"]}">{row["setting"]}</a>' in page
        own_guarantee = found["guaranteed own log10"]
        assert (own_guarantee is None) == (row["strategy"] == "random")
        assert own_guarantee in (None, pytest.approx(found["guaranteed paper log10"]))
    asked = {(one["row"], one["system"]): one["LLM rankings"] for one in written["rankings"]}
    assert asked["fpmc", "ALKDRec"] == 20
    assert asked["stamp", "TR"] == 0
    with (folder / "rankings.csv").open(encoding="utf-8", newline="") as opened:
        datasets = [row["dataset"] for row in csv.DictReader(opened)]
    assert datasets == [HETREC] * 6 + [GAMES] * 2


STRATEGIES = "selection.strategy: {grid: [random, easiest]}"


@pytest.mark.parametrize(
    ("override", "why"),
    [
        (f"sweep.over={{{STRATEGIES}, selection.budget: {{range: [10, 30]}}}}", "to be listed"),
        (f"sweep.over={{{STRATEGIES}}}", "has no 'selection.budget'"),
        (
            f"sweep.over={{{STRATEGIES}, selection.budget: {{grid: [10, 30]}}, "
            "student.dim: {grid: [5, 10]}}",
            "several settings would share a place",
        ),
        ("sweep.finalists=1", "sweep.finalists is 1"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_before_it_runs(override: str, why: str) -> None:
    """Else the report would fail when all is paid, or be others' under their name."""

    def shown(_: object) -> Any:
        pytest.fail("the sweep was begun")

    with pytest.raises(InputError, match=why):
        making.make(STUDIES["figure3b"], REPOSITORY / "tune_configs", [override], shown)


def test_efficiency_prices_some_sessions_against_all(
    published_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's 8.6 and 347.0 USD for Games lie within ours; a sweep's override is no matter."""
    monkeypatch.setenv("ALKD_DATA_DIR", str(published_data))
    alkd = CommandLine(tmp_path / "home", tmp_path / "none.yaml")
    words = ("reproduce", "efficiency", "sweep.engine=local", "--dataset", GAMES)
    (found,) = json.loads(alkd(*words, "--json").stdout).values()
    for row in found["rows"]:
        if row["published"] and row["form"] == "numbers":
            assert row["dollars"]["low"] < row["published"]["dollars"] < row["dollars"]["high"]
    assert sum(row["published"] is not None for row in found["rows"]) == 2 * 2
    folder = alkd.home / "reproduction" / "efficiency"
    with (folder / "efficiency.csv").open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert [float(line["USD expected"]) for line in lines] == pytest.approx(
        [row["dollars"]["expected"] for row in found["rows"]], rel=1e-5
    )
    assert {line["paper USD"] for line in lines} == {"", "8.6", "347"}
    assert f"{GAMES}: Prices: " in (folder / "notes.txt").read_text("utf-8")
    said = alkd(*words).stdout
    assert all(str(folder / f"efficiency.{kind}") in said for kind in ("html", "csv"))
    page = (folder / "efficiency.html").read_text("utf-8")
    assert "http" not in page  # needs nothing else
    for row in found["rows"]:
        assert f">{row['dollars']['expected']:,.1f}<" in page
        assert not row["published"] or f">{row['published']['dollars']:,.1f}</td>" in page
    assert "; the paper: 8.6 and 347.0<" in page
    assert "…" not in said
    assert all(f"{row['sessions']:,}" in said for row in found["rows"])


def test_a_wrong_target_and_a_missing_file_are_said(tmp_path: Path) -> None:
    alkd = CommandLine(tmp_path / "home", tmp_path / "none.yaml")
    assert "known: table1, table2" in alkd("reproduce", "table3", status=2).stderr
    for words in (("all",), ("efficiency",)):
        assert "'movies'" in alkd("reproduce", *words, "--dataset", "movies", status=2).stderr
    said = alkd("reproduce", "figure2a", "--configs", str(tmp_path), status=2).stderr
    assert "figure2_dims.yaml: there is no such file" in said
