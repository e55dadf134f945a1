"""The files of a report: whole, self-contained, safe, the same numbers in each, the same bytes."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from alkd_ray import figures, report
from alkd_ray.evaluation.statistics import Estimate
from alkd_ray.report import ReportData
from tests.report_example import example

FILES = {"report.html", "report.md", "metrics.csv", "metrics.json"}
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and collects ids, attributes and the text of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


def parsed(folder: Path) -> Page:
    page = Page()
    page.feed((folder / "report.html").read_text("utf-8"))
    page.close()
    return page


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example(seeds=3, sessions=600, resamples=300)


@pytest.fixture(scope="module")
def folder(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(data, folder)
    return folder


def test_all_files_and_nothing_else(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == FILES


def test_equal_data_gives_equal_bytes(folder: Path, tmp_path: Path) -> None:
    report.write(example(seeds=3, sessions=600, resamples=300), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_page_is_whole_and_needs_nothing_else(folder: Path) -> None:
    page = parsed(folder)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed"}
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith("#"), (name, value)
    text = (folder / "report.html").read_text("utf-8")
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]+)\)", text))
    assert "@import" not in text
    assert "<style" not in text[text.index("</head>") :]


def test_every_figure_has_a_label_and_its_references(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    drawn = re.findall(r"<svg [^>]*>.*?</svg>", text, flags=re.DOTALL)
    assert len(drawn) == 4  # bars, difficulty, two validation metrics
    for svg in drawn:
        assert re.match(r'<svg viewBox="0 0 [\d. ]+" role="img" aria-label="[^"]{20,}"', svg)
        assert "var(--text)" in svg
        # every colour is the page's: none of the stand-ins, none of matplotlib's own
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        defined = set(re.findall(r' id="([^"]+)"', svg))
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert {first or second for first, second in used} <= defined


def test_the_tables_agree_with_the_numbers(folder: Path, data: ReportData) -> None:
    numbers = report.read(folder)
    long = list(csv.DictReader((folder / "metrics.csv").open(encoding="utf-8")))
    assert len(long) == len(data.rows) * 5
    rows = {row[0]: row for row in parsed(folder).rows if len(row) == 9}
    markdown = (folder / "report.md").read_text("utf-8")
    for system in numbers["systems"]:
        for column, (name, estimate) in enumerate(system["metrics"].items(), start=1):
            shown = "{mean:.4f} {low:.4f} {high:.4f}".format(**estimate)
            cell = re.findall(r"\d\.\d{4}", rows[system["name"]][column])
            assert " ".join(cell) == shown
            assert "{} ({}–{})".format(*shown.split()) in markdown
            entry = next(e for e in long if (e["system"], e["metric"]) == (system["name"], name))
            assert float(entry["mean"]) == pytest.approx(estimate["mean"], rel=1e-5)
            assert float(entry["high"]) == pytest.approx(estimate["high"], rel=1e-5)
            assert entry["covers"] == estimate["covers"]
    table = numbers["table"]
    assert table[0][:3] == ["system", "parameters", "recall@5"]
    assert [row[0] for row in table[1:]] == [row.name for row in data.rows]
    assert {len(row) for row in table} == {len(table[0])}


def test_what_a_reader_must_be_told_is_there(folder: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text("utf-8")
        for wanted in (
            "cover both seeds and sessions",
            "occur in no training session",
            "no difference shown",
            "0.4312",
            "1,234,567",
            "alkdrec-exact",
            "min gain exact",
            "8 of 500 rankings failed",
            "1 h 02 min",
            "simulated",
        ):
            assert wanted in text, (name, wanted)


def test_text_of_others_cannot_become_markup(data: ReportData, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script> | **bold** \n# head \" ' &amp;"
    assert data.selection is not None
    report.write(
        replace(
            data,
            dataset={**data.dataset, "name": nasty, nasty: nasty},
            notes=(nasty,),
            selection=replace(data.selection, strategy=nasty, notes={nasty: nasty}),
            config={**data.config, "name": nasty},
        ),
        tmp_path,
    )
    page = parsed(tmp_path)
    assert page.open == []
    assert "script" not in page.tags
    markdown = (tmp_path / "report.md").read_text("utf-8")
    assert "<script" not in markdown.replace("\\<script", "")
    assert "\n# head" not in markdown
    widths = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in markdown.split("## Data")[1].splitlines()
        if line.startswith("|")
    }
    assert widths == {3}


def test_what_is_not_there_is_left_out(data: ReportData, tmp_path: Path) -> None:
    only = next(row for row in data.rows if row.role == "student")
    report.write(
        replace(data, rows=(only,), cost=None, selection=None, curves={}, notes=()), tmp_path
    )
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "What was selected" not in text
    assert "Is the difference real?" not in text
    assert text.count("<svg") == 1
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["cost"] is None


def test_a_difference_without_spread_has_no_least_detectable(
    data: ReportData, tmp_path: Path
) -> None:
    teacher = next(row for row in data.rows if row.role == "teacher")
    rows = [replace(r, ranks=teacher.ranks) if r.role == "student" else r for r in data.rows]
    rows = [replace(r, ranks=teacher.ranks) if r.role == "distilled" else r for r in rows]
    report.write(replace(data, rows=tuple(rows)), tmp_path)
    numbers = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    same = [one for one in numbers["comparisons"] if one["second"] == "teacher"]
    assert [one["least_detectable"] for one in same] == [None] * 5
    cells = [row for row in parsed(tmp_path).rows if "no difference shown" in row]
    assert sum(row[-1] == "–" for row in cells) == 10  # against teacher and student
    lines = (tmp_path / "report.md").read_text("utf-8").splitlines()
    assert sum("no difference shown" in line and line.endswith("| – |") for line in lines) == 10


def test_a_bar_may_lie_outside_its_interval() -> None:
    estimate = Estimate(0.5, 0.6, 0.7, 0.1, 3, 10)
    svg = figures.metric_bars([figures.Bar("a<b", "student", estimate)], "ndcg@10", 'x "y"')
    assert "a&lt;b" in svg
    assert 'aria-label="x &quot;y&quot;"' in svg


def test_difficulties_that_are_all_equal() -> None:
    svg = figures.difficulty_histogram(np.full(50, 0.25), np.zeros(50, bool), "equal")
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
