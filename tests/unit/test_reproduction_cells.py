"""Cells beside the paper's numbers: places, corrections, layouts; and that the numbers are its."""

from __future__ import annotations

import csv
import io
import itertools
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from alkd_ray.cli import reproduce
from alkd_ray.evaluation.statistics import bootstrap, holm
from alkd_ray.reproduction import layout, report, sentences
from alkd_ray.reproduction.cells import Cell, Entry, analyse, pairs, reference_of
from alkd_ray.reproduction.published import PublishedCell, published
from alkd_ray.reproduction.report import Reproduced
from alkd_ray.reproduction.studies import GAMES, HETREC, STUDIES, TABLE_METRICS
from alkd_ray.seeds import numpy_stream
from alkd_ray.sweeps.config import load
from alkd_ray.sweeps.records import value_text

CONFIGS = Path(__file__).parents[2] / "tune_configs"
TABLE1, TABLE2 = STUDIES["table1"], STUDIES["table2"]
SESSIONS, SEEDS, RESAMPLES = 400, 3, 500


def values(rate: float, *names: str, metrics: tuple[str, ...] = TABLE_METRICS) -> dict:
    """Hits at a rate, the same for all metrics but for their own draws."""
    found = {}
    for metric in (*metrics, *{reference_of(metric) for metric in metrics}):
        rng = numpy_stream(1, "cells", *names, metric)
        found[metric] = (rng.random((SEEDS, SESSIONS)) < rate).astype(float)
    return found


def entry(row: str, column: str, rate: float, dataset: str = HETREC, **given) -> Entry:
    role = column if column in ("student", "teacher") else "distilled"
    return Entry(dataset, row, column, role, values(rate, row, column), **given)  # pyright: ignore


def entries() -> list[Entry]:
    plain = values(0.3, "plain")
    return [
        entry("fpmc", "student", 0.01),
        entry("fpmc", "teacher", 0.30),
        entry("fpmc", "DE", 0.02),
        Entry(HETREC, "fpmc", "FTD", "distilled", {}, "2 failed"),
        entry("fpmc", "ALKDRec", 0.20, rankings=500.0),
        entry("stamp", "DE", 0.03),
        entry("stamp", "ALKDRec", 0.04),
        Entry(HETREC, "", "item-knn", "baseline", {k: v[:1] for k, v in plain.items()}),
    ]


def test_the_papers_numbers_are_all_there() -> None:
    """2 x 3 x 9 x 4 of table 1 and 2 x 3 x 6 x 2 of table 2, some of them by hand."""
    tables = [cell.table for cell in published()]
    assert (tables.count("table1"), tables.count("table2")) == (216, 72)
    assert all(0 < value < 0.1 for value in published().values())
    by_hand = {
        ("table1", HETREC, "fpmc", "Student", "recall@10"): 0.01055,
        ("table1", HETREC, "attmix", "DLLM2Rec", "ndcg@10"): 0.00448,
        ("table1", GAMES, "stamp", "unKD", "recall@5"): 0.01643,
        ("table1", GAMES, "attmix", "ALKDRec", "ndcg@10"): 0.01343,
        ("table2", HETREC, "stamp", "Hardest", "recall@10"): 0.01582,
        ("table2", GAMES, "fpmc", "RAD-BC", "ndcg@10"): 0.02321,
    }
    for where, value in by_hand.items():
        assert published()[PublishedCell(*where)] == value
    # What both tables print of ALKDRec is the same.
    for cell, value in published().items():
        if cell.table == "table2" and cell.system == "ALKDRec":
            other = PublishedCell(
                "table1", *(getattr(cell, field.name) for field in fields(cell)[1:])
            )
            assert published()[other] == value


@pytest.mark.parametrize("name", list(STUDIES))
def test_the_sweeps_have_what_their_study_shows(name: str) -> None:
    """A misspelt case would silently lose the paper's numbers."""
    study = STUDIES[name]
    for dataset, file in study.sweeps.items():
        over = load(CONFIGS / f"{file}.yaml").config.over
        rows, columns = (
            [value_text(value) for value in over[axis].listed or []] if axis else []
            for axis in (study.rows, study.columns)
        )
        assert study.main in {"columns": columns, "rows": rows, "student": [""]}[study.contrast]
        cells = [c for c in published() if (c.table, c.dataset) == (name, dataset)]
        assert {cell.backbone for cell in cells} <= set(rows)
        assert {cell.system for cell in cells} - {"Student", "Teacher"} <= set(columns)
        assert bool(cells) == study.is_table


def test_where_the_papers_number_lies() -> None:
    found = analyse(TABLE1, entries(), RESAMPLES, 1).cells
    student = found[HETREC, "fpmc", "student", "recall@10"]
    assert student.paper == 0.01055
    assert student.verdict == "inside"
    assert found[HETREC, "fpmc", "ALKDRec", "recall@10"].verdict == "paper lower"
    assert found[HETREC, "fpmc", "FTD", "recall@10"].ours is None
    assert found[HETREC, "fpmc", "FTD", "recall@10"].verdict == ""
    assert found[HETREC, "", "item-knn", "recall@10"].paper is None


def test_the_papers_ndcg_is_held_against_its_own_kind() -> None:
    """Its "ndcg" is another quantity; the recall is one."""
    given = values(0.01, "own")
    given["reference_ndcg@10"] = np.ones((SEEDS, SESSIONS))
    one = Entry(HETREC, "fpmc", "student", "student", given)
    cells = analyse(TABLE1, [one], RESAMPLES, 1).cells
    ndcg = cells[HETREC, "fpmc", "student", "ndcg@10"]
    assert ndcg.reference is not None
    assert ndcg.reference.mean == 1
    assert ndcg.verdict == "paper lower"
    assert cells[HETREC, "fpmc", "student", "recall@10"].reference is None


def test_hits_are_the_mean_over_seeds() -> None:
    one = entries()[4]
    cell = analyse(TABLE1, [one], RESAMPLES, 1).cells[HETREC, "fpmc", "ALKDRec", "recall@5"]
    assert cell.hits == one.values["recall@5"].sum() / SEEDS
    assert cell.hits == pytest.approx(cell.ours.mean * SESSIONS)  # pyright: ignore


def test_differences_are_paired_and_corrected_within_their_metric() -> None:
    given = entries()
    found = analyse(TABLE1, given, RESAMPLES, 1)
    by_metric = {
        metric: [gap for gap in found.contrasts if gap.comparison.metric == metric]
        for metric in TABLE_METRICS
    }
    # ALKDRec against student, teacher and DE with FPMC, and against DE with STAMP; not FTD.
    assert [len(gaps) for gaps in by_metric.values()] == [4] * 4
    measured = [e for e in given if e.values and e.role != "baseline"]
    series = [e.values["ndcg@10"] for e in measured]
    assert found.resamples == 200 * 4  # more than were asked for, for Holm's sake
    resampled = bootstrap(series, found.resamples, 1)
    place = {(e.row, e.column): number for number, e in enumerate(measured)}
    plain = [
        resampled.difference(
            *(place[one.row, one.column] for one in (gap.first, gap.second)),
        )
        for gap in by_metric["ndcg@10"]
    ]
    for gap, difference, p in zip(
        by_metric["ndcg@10"], plain, holm([d.p_value for d in plain]), strict=True
    ):
        assert gap.comparison.difference.mean == pytest.approx(difference.mean)
        assert gap.comparison.p_bootstrap == pytest.approx(p)
    holding = {(g.second.row, g.second.column) for g in by_metric["ndcg@10"] if g.holds}
    assert holding == {("fpmc", "student"), ("fpmc", "teacher"), ("fpmc", "DE")}


def test_a_family_is_that_of_one_dataset() -> None:
    """Else a p-value would depend on whether the command made one dataset or both."""
    given = entries()
    alone = analyse(TABLE1, given, RESAMPLES, 1)
    beside = analyse(TABLE1, [*given, *(replace(e, dataset=GAMES) for e in given)], RESAMPLES, 1)
    ours = [gap for gap in beside.contrasts if gap.first.dataset == HETREC]
    assert beside.resamples == alone.resamples
    assert [gap.comparison for gap in ours] == [gap.comparison for gap in alone.contrasts]
    assert len(beside.contrasts) == 2 * len(alone.contrasts)
    assert [gap.comparison.metric for gap in beside.teachers] == [
        metric for metric in TABLE_METRICS for _ in (HETREC, GAMES)
    ]


def test_what_a_study_compares() -> None:
    def named(study: str, *places: tuple[str, str]) -> set[tuple[str, ...]]:
        given = [entry(row, column, 0.1) for row, column in places]
        return {
            (first.row, first.column, second.row, second.column)
            for first, second in pairs(STUDIES[study], given)
        }

    grid = list(itertools.product(("100", "500"), ("random", "alkdrec-exact")))
    assert named("figure3b", *grid) == {
        ("500", "random", "100", "random"),
        ("500", "alkdrec-exact", "100", "alkdrec-exact"),
    }
    dims = [("5", "student"), ("5", "distilled"), ("20", "distilled"), ("20", "student")]
    assert named("figure2a", *dims, ("", "teacher")) == {
        ("5", "distilled", "5", "student"),
        ("20", "distilled", "20", "student"),
    }


def test_the_layout_has_a_line_for_each_row_and_metric() -> None:
    given = entries()
    found = analyse(TABLE1, given, RESAMPLES, 1)
    (grid,) = layout.grids(TABLE1, given, found)
    assert grid.columns == ("student", "teacher", "DE", "FTD", "ALKDRec")
    assert [(line.row, line.metric, line.is_first) for line in grid.lines[3:5]] == [
        ("fpmc", "ndcg@10", False),
        ("stamp", "recall@5", True),
    ]
    assert [entry.column for entry in grid.others] == ["item-knn"]
    stamp = grid.lines[4]
    assert stamp.cells[0] is None  # no student of STAMP was given
    assert stamp.best == max(c.ours.mean for c in stamp.cells if c and c.ours)
    # The teacher is above, but it is no distilled student.
    assert grid.lines[0].best < found.cells[HETREC, "fpmc", "teacher", "recall@5"].ours.mean  # pyright: ignore


def test_csv_rows_are_as_long_as_their_headers() -> None:
    found = analyse(TABLE1, entries(), RESAMPLES, 1)
    for lines in (layout.cell_lines(found), layout.contrast_lines(found)):
        assert {len(line) for line in lines} == {len(lines[0])}
    assert len(layout.cell_lines(found)) == 1 + len(found.cells)


def test_teachers_are_compared_with_their_students_apart() -> None:
    """Their family is their own: one difference a metric, so nothing is added to its p-value."""
    found = analyse(TABLE1, entries(), RESAMPLES, 1)
    assert [gap.comparison.metric for gap in found.teachers] == list(TABLE_METRICS)
    assert all(gap.holds for gap in found.teachers)
    assert all(
        gap.comparison.p_bootstrap == gap.comparison.difference.p_value for gap in found.teachers
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_cuts_no_number(width: int) -> None:
    """Six strategies are too many columns for most; each has its own heading nevertheless."""
    study = STUDIES["figure3b"]
    columns = ("alkdrec-paper", "alkdrec-exact", "rad-bc", "random", "easiest", "hardest")
    given = [entry(f"{100 * row}", column, 0.1) for row in range(1, 10) for column in columns]
    found = analyse(study, given, RESAMPLES, 1)
    (grid,) = layout.grids(study, given, found)
    said = io.StringIO()
    reproduce._print_grid(Console(file=said, width=width), grid)
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in said.getvalue()
    words = said.getvalue().split()
    assert all(words.count(column) == 1 for column in columns)
    for cell in found.cells.values():
        if cell.metric == "recall@10" and cell.ours is not None:
            assert f"{cell.ours.mean:.4f}" in words
            low, high = (f"{end:.4f}".removeprefix("0") for end in (cell.ours.low, cell.ours.high))
            assert f"{low}-{high}" in words


def test_brackets_in_latex_are_no_options() -> None:
    r"""A bracket after a line break or a rule would be read as its length."""
    study = STUDIES["figure3a"]
    given = [entry("[1, 5, 4]", "alkdrec-exact", 0.1), entry("[1, 1, 8]", "alkdrec-exact", 0.2)]
    found = analyse(study, given, RESAMPLES, 1)
    text = layout.latex(study, layout.grids(study, given, found), found)
    assert "[0." in text
    assert r"\\[" not in text
    assert "\\midrule\n[" not in text
    assert text.count("{") == text.count("}")


def test_latex_text_is_escaped() -> None:
    assert layout.tex("50% of a_b & {c} ~ ^") == (r"50\% of a\_b \& \{c\} \textasciitilde{} \^{}")


def test_what_is_said() -> None:
    found = analyse(TABLE1, entries(), RESAMPLES, 1)
    said = [str(finding) for finding in sentences.headline(TABLE1, found, [])]
    assert any(
        "against the student before distillation in 1 of 1, against the teacher in 0 of 1, "
        "against the others in 2 of 2" in text
        for text in said
    )
    assert any("1 more could not be taken: one of the two has no result" in text for text in said)
    assert any(
        "3 of these 4 differences hold after Holm's correction for all of a dataset in one metric"
        in text
        for text in said
    )
    assert not any("have no result" in text for text in said)  # failures are said from the sweep
    assert any("item-knn, is above that of the best distilled student" in text for text in said)
    assert any(
        "is above its student's in 1 of 1 pairs (the difference holds" in text for text in said
    )


def test_settings_that_were_dropped_are_said() -> None:
    given = [
        *entries(),
        Entry(HETREC, "fpmc", "HTD", "distilled", {}, "2 dropped"),
        Entry(HETREC, "stamp", "HTD", "distilled", {}, "not tested"),
    ]
    said = [
        str(finding)
        for finding in sentences.headline(TABLE1, analyse(TABLE1, given, RESAMPLES, 1), [])
    ]
    where = f"{HETREC}, fpmc, HTD: 2 dropped; {HETREC}, stamp, HTD: not tested"
    assert any(f"2 settings have no result ({where})" in text for text in said)


def test_other_settings_than_the_files_are_said(tmp_path: Path) -> None:
    """The study's notes speak of the settings that its files hold."""
    given = entries()
    report.write(Reproduced(TABLE1, given, [], RESAMPLES), tmp_path / "own")
    changed = Reproduced(TABLE1, given, [], RESAMPLES, overrides=["preset=strong"])
    report.write(changed, tmp_path / "changed")
    own, other = ((tmp_path / name / report.PAGE).read_text() for name in ("own", "changed"))
    assert "ALKDRec has the paper" in own
    assert "ALKDRec has the paper" not in other
    assert "Made with preset=strong" in other
    assert f"{SESSIONS} test sessions" in own


def test_the_money_figures_tell_the_strategies_apart(tmp_path: Path) -> None:
    """Of both metrics; where all ask for equally many sessions there is no such figure."""
    given = [
        entry(row, column, 0.1, rankings=0.0 if column == "Easiest" else 500.0)
        for row in ("fpmc", "stamp")
        for column in ("student", "Random", "Easiest", "ALKDRec")
    ]
    alike = [replace(one, rankings=500.0) for one in given]
    captions = []
    for number, shown in enumerate((given, alike)):
        data = Reproduced(TABLE2, shown, [], RESAMPLES, dollars_per_ranking={HETREC: 0.01})
        report.write(data, tmp_path / f"{number}")
        page = (tmp_path / f"{number}" / report.PAGE).read_text("utf-8")
        captions.append(re.findall("<figcaption>(.*?)</figcaption>", page))
    assert [len(texts) for texts in captions] == [3, 1]
    assert [text for text in captions[0] if "marked by variant" in text] == captions[0][1:]
    assert ["test ndcg@10" in text for text in captions[0]] == [True, True, False]


def test_nothing_to_compare_is_said() -> None:
    one = Entry(HETREC, "fpmc", "ALKDRec", "distilled", {}, "5 failed")
    found = analyse(TABLE2, [one], RESAMPLES, 1)
    assert "Nothing could be compared" in map(
        lambda f: f.claim, sentences.headline(TABLE2, found, [])
    )
    assert isinstance(found.cells[HETREC, "fpmc", "ALKDRec", "ndcg@10"], Cell)


def test_the_published_file_is_read_as_it_stands() -> None:
    from importlib import resources

    text = (resources.files("alkd_ray.reproduction") / "published.csv").read_text("utf-8")
    assert len(list(csv.DictReader(text.splitlines()))) == len(published()) == 288
