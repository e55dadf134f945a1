"""The report of a sweep: its numbers, its words, its figures, and what it withstands."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from alkd_ray.errors import InputError
from alkd_ray.evaluation.metrics import metric_values, summary
from alkd_ray.evaluation.ranks import write_ranks
from alkd_ray.evaluation.statistics import bootstrap, holm
from alkd_ray.reproduction import cells
from alkd_ray.reproduction import report as reproduction
from alkd_ray.reproduction.report import Reproduced
from alkd_ray.reproduction.studies import HETREC, STUDIES
from alkd_ray.sweeps import comparing, figures, report, sentences
from alkd_ray.sweeps import config as configs
from alkd_ray.sweeps.comparing import SweepReportData
from alkd_ray.sweeps.figures import Plot, Shown
from alkd_ray.sweeps.records import Setting, TrialRecord, short_names
from alkd_ray.sweeps.shared import Prepared, Shared, purchase_of
from alkd_ray.sweeps.standings import finalists, standings
from alkd_ray.types import Ranks
from tests.unit.test_reproduction_cells import entry

FILES = {"sweep.html", "sweep.md", "settings.csv", "finalists.csv", "trials.csv", "metrics.json"}
CSV_FILES = sorted(name for name in FILES if name.endswith(".csv"))
PLAIN = {"popularity": "p" * 16, "sequential-rules": "r" * 16}  # name -> key
METRIC = "ndcg@10"
NASTY = "=cmd|' /C calc'!A0 <script>alert(1)</script> | **b** $\\frac{ \n# head \"q\" _u"
SESSIONS = np.arange(500, 800)


class Page(HTMLParser):
    """Checks that elements nest; collects tags, attributes, and the rows of tables by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs).get("id") or "", [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


def ranks(seed: int, middle: float) -> Ranks:
    """Of the same sessions, lower where ``middle`` is lower."""
    ease = np.random.default_rng(0).normal(0, 1, len(SESSIONS))
    noise = np.random.default_rng([seed, round(100 * middle)]).normal(0, 0.6, len(SESSIONS))
    found = np.clip(np.exp(np.log(middle) + ease + noise), 1, 999).astype(np.int64)
    return Ranks(SESSIONS, found, 999)


def example(
    over: Mapping[str, Sequence[Any]],
    seeds: Sequence[int] = (1, 2, 3),
    wanted: int | str = "all",
    reasons: Mapping[int, tuple[str, str]] | None = None,
) -> SweepReportData:
    """A sweep of the crossed values.

    Args:
        over: axis -> its values.
        seeds: the seeds.
        wanted: finalists.
        reasons: number of a trial -> its status and reason, where it is not complete.
    """
    records, kept, paid = {}, {"student": ranks(90, 40.0), "teacher": ranks(91, 12.0)}, {}
    kept |= {key: ranks(92, middle) for key, middle in zip(PLAIN.values(), (400, 3), strict=True)}
    for number, values in enumerate(itertools.product(*over.values())):
        setting = Setting(dict(zip(over, values, strict=True)))
        paid[setting.id] = 1_000 * (number + 1)
        for place, seed in enumerate(seeds):
            trial = f"{setting.id}-{seed}"
            status, reason = (reasons or {}).get(number * len(seeds) + place, ("complete", ""))
            found = ranks(100 * number + seed, 30.0 - number)
            records[trial] = TrialRecord(
                trial,
                setting.point,
                seed,
                "inputs",
                status,  # type: ignore[arg-type]
                metrics=summary(found, (5, 10)) if status == "complete" else {},
                seconds=1.5,
                node="node-1",
                reason=reason,
                distilled="d" * 16,
            )
            kept[trial] = ranks(7_000 + 100 * number + seed, 30.0 - number)
    found = standings(records.values(), METRIC, seeds)
    tested = {
        f"{one.setting.id}-{seed}": {
            "distilled": f"{one.setting.id}-{seed}",
            "student": "student",
            "teacher": "teacher",
        }
        for one in finalists(found, wanted)
        for seed in seeds
    }
    return SweepReportData(
        title="many",
        generated="alkd_ray 0, sweep many-1",
        config={"name": "many"},
        metric=METRIC,
        axes=tuple(over),
        seeds=tuple(seeds),
        cutoffs=(5, 10),
        resamples=400,
        standings=tuple(found),
        records=records,
        shared=Shared(requests=30, unshared=120, sent=10, microusd=1_234_500),
        tested=tested,
        baselines={one.setting.id: PLAIN for one in finalists(found, wanted)},
        ranks=kept,
        microusd=paid,
        unit="simulated USD",
    )


OVER = {"selection.strategy": ["random", "exact"], "selection.budget": [30, 300, 3_000]}


def written(data: SweepReportData, folder: Path) -> tuple[Page, str, dict[str, Any]]:
    """Page, Markdown and numbers; a warning of a library is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.write(data, folder)
    assert {file.name for file in folder.iterdir()} == FILES
    page = Page((folder / "sweep.html").read_text("utf-8"))
    numbers = json.loads(
        (folder / "metrics.json").read_text("utf-8"), parse_constant=lambda name: pytest.fail(name)
    )
    return page, (folder / "sweep.md").read_text("utf-8"), numbers


def test_validation_means_intervals_and_tests_are_scipys(tmp_path: Path) -> None:
    data = example(OVER)
    page, _, numbers = written(data, tmp_path)
    best, *others = data.standings
    found = {one["setting"]: one for one in numbers["settings"]}
    p_values = []
    for row, one in zip(page.tables["settings"][1:], data.standings, strict=True):
        trials = [data.records[f"{one.setting.id}-{seed}"] for seed in data.seeds]
        for column, name in enumerate(("recall@5", "ndcg@5", "recall@10", METRIC), start=3):
            values = [trial.metrics[name] for trial in trials]
            low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            assert row[column] == f"{np.mean(values):.4f}± {(high - low) / 2:.4f}"
            told = found[one.setting.id]["validation"][name]
            assert told["mean"] == pytest.approx(np.mean(values), rel=1e-6)
            assert told["half_width"] == pytest.approx((high - low) / 2, rel=1e-6)
            assert list(told["by_seed"].values()) == pytest.approx(values, rel=1e-6)
    for one in others:
        pairs = [list(standing.by_seed.values()) for standing in (best, one)]
        test = stats.ttest_rel(*pairs)
        told = found[one.setting.id]["against_best"]
        interval = test.confidence_interval()
        assert told["p_value"] == pytest.approx(test.pvalue, rel=1e-6)
        assert told["mean"] - told["half_width"] == pytest.approx(interval.low, rel=1e-5)
        p_values.append(test.pvalue)
    corrected = [found[one.setting.id]["against_best"]["p_holm"] for one in others]
    assert corrected == pytest.approx(list(holm(p_values)), rel=1e-6)
    untold = sum(p >= 0.05 for p in holm(p_values))
    words = f"{untold} of 5 other settings cannot be told" if untold else "All 5 other settings are"
    assert any(said.startswith(words) for said in numbers["headline"])


@pytest.mark.parametrize("batch_rows", [1, 1_500])
def test_test_metrics_are_those_of_the_bootstrap(
    batch_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is resampled together: equal seeds draw equal sessions."""
    monkeypatch.setattr(comparing, "_BATCH_ROWS", batch_rows)
    data = example(OVER)
    page, markdown, numbers = written(data, tmp_path)
    found = {one["setting"]: one for one in numbers["settings"]}
    student = np.stack([metric_values(data.ranks["student"], METRIC)] * 3)
    p_values = []
    for one in data.standings:
        trials = [f"{one.setting.id}-{seed}" for seed in data.seeds]
        values = np.stack([metric_values(data.ranks[trial], METRIC) for trial in trials])
        alone = bootstrap([values, student], data.resamples, 1)
        told, wanted = found[one.setting.id], alone.estimate(0)
        tested = told["test"]["distilled"]
        assert tested["metrics"][METRIC]["mean"] == pytest.approx(values.mean(), rel=1e-6)
        assert tested["metrics"][METRIC]["low"] == pytest.approx(wanted.low, rel=1e-6)
        assert tested["metrics"][METRIC]["high"] == pytest.approx(wanted.high, rel=1e-6)
        assert list(tested["by_seed"].values()) == pytest.approx(values.mean(1), rel=1e-6)
        gap = alone.difference(0, 1)
        assert told["gain"]["mean"] == pytest.approx(values.mean() - student.mean(), rel=1e-6)
        assert told["gain"]["low"] == pytest.approx(gap.low, rel=1e-6, abs=1e-9)
        p_values.append(gap.p_value)
    corrected = [found[one.setting.id]["gain"]["p_bootstrap_holm"] for one in data.standings]
    assert corrected == pytest.approx(list(holm(p_values)), rel=1e-6)
    rows = page.tables["finalists"][1:]
    assert [row[0] for row in rows] == ["distilled"] * 6 + ["student", "teacher", *PLAIN]
    assert rows[6][1] == "of all finalists"
    recall = np.mean(data.ranks["teacher"].ranks <= 5)
    assert rows[7][2].startswith(f"{recall:.4f}")
    assert f"| teacher | of all finalists | {recall:.4f} (" in markdown


def test_the_csv_files_hold_everything(tmp_path: Path) -> None:
    data = example(OVER, wanted=2, reasons={0: ("failed", "nan")})
    written(data, tmp_path)
    settings = list(csv.DictReader((tmp_path / "settings.csv").open(encoding="utf-8")))
    assert [row["setting"] for row in settings] == [one.setting.id for one in data.standings]
    assert [bool(row["test distilled ndcg@10"]) for row in settings] == [True] * 2 + [False] * 4
    assert settings[-1]["state"] == "1 failed"
    for row, one in zip(settings, data.standings, strict=True):
        assert row["selection.budget"] == str(one.setting.point["selection.budget"])
        assert float(row["validation ndcg@10"]) == pytest.approx(one.mean, rel=1e-5)
        assert float(row["dollars"]) == data.microusd[one.setting.id] / 1e6
    trials = list(csv.DictReader((tmp_path / "trials.csv").open(encoding="utf-8")))
    assert {row["trial"] for row in trials} == set(data.records)
    for row in trials:
        record = data.records[row["trial"]]
        assert row["status"] == record.status
        assert bool(row["test teacher recall@5"]) == (row["trial"] in data.tested)
        if record.status == "complete":
            assert float(row["validation mrr@10"]) == pytest.approx(
                record.metrics["mrr@10"], rel=1e-5
            )
        if row["trial"] in data.tested:
            wanted = metric_values(data.ranks[row["trial"]], "recall@10").mean()
            assert float(row["test distilled recall@10"]) == pytest.approx(wanted, rel=1e-5)


def test_the_words_at_the_top(tmp_path: Path) -> None:
    data = example(OVER)
    page, markdown, numbers = written(data, tmp_path)
    best, second = data.standings[:2]
    said = numbers["headline"]
    assert said[0].startswith(f"Best setting by validation: {best.setting.label} (validation")
    p_value = stats.ttest_rel(list(best.by_seed.values()), list(second.by_seed.values())).pvalue
    verdict = "is below it" if p_value < 0.05 else "cannot be told from it"
    assert said[1].startswith(f"The runner-up, {second.setting.label}, {verdict} (")
    assert f"p = {p_value:.3f}" in said[1]
    assert "30 requests for rankings serve all settings; it would have been 120" in said[-2]
    assert "75% saved; 10 requests, hints included, were sent" in said[-2]
    assert said[-1] == "Rankings and hints cost 1.2345 simulated USD."
    assert any("The 6 finalists reach" in finding for finding in said)
    assert any("3 seeds are few" in note for note in numbers["notes"])
    assert not page.tags & {"script", "link", "iframe", "img", "object"}
    assert markdown.count("\n- ") == len(said) + len(numbers["notes"])


def test_plain_counts_stand_beside_the_finalists(tmp_path: Path) -> None:
    """In every form; one that is better than the best setting's student is told at the top."""
    data = example(OVER)
    page, markdown, numbers = written(data, tmp_path)
    rows = page.tables["finalists"][-2:]
    listed = list(csv.DictReader((tmp_path / "finalists.csv").open(encoding="utf-8")))
    for row, told, (name, key) in zip(rows, numbers["baselines"], PLAIN.items(), strict=True):
        values = metric_values(data.ranks[key], METRIC)[None]
        wanted = bootstrap([values], data.resamples, data.seeds[0]).estimate(0)
        text = f"{wanted.mean:.4f}{wanted.low:.4f}–{wanted.high:.4f}"
        assert row[:2] == [name, "plain count, on the data of all finalists"]
        assert row[5] == text
        assert (told["name"], told["evaluation"]) == (name, key)
        assert told["settings"] == [one.setting.id for one in data.standings]
        assert told["metrics"][METRIC]["low"] == pytest.approx(wanted.low, rel=1e-6)
        assert f"| {name} | plain count, on the data of all finalists |" in markdown
        (line,) = (one for one in listed if one["system"] == name and one["metric"] == METRIC)
        assert (line["role"], line["covers"], line["evaluations"]) == ("baseline", "sessions", key)
        assert float(line["high"]) == pytest.approx(wanted.high, rel=1e-5)
    assert len(listed) == (6 + 2 + 2) * 5
    best = data.standings[0].setting.id
    ours = np.stack([metric_values(data.ranks[f"{best}-{seed}"], METRIC) for seed in data.seeds])
    values = metric_values(data.ranks[PLAIN["sequential-rules"]], METRIC)[None]
    gap = bootstrap([ours, values], data.resamples, data.seeds[0]).difference(0, 1)
    told = numbers["settings"][0]["against_baseline"]
    assert (told["second"], told["verdict"]) == ("sequential-rules", "lower")
    assert (told["mean"], told["high"]) == pytest.approx((gap.mean, gap.high), rel=1e-6)
    words = "A count of co-occurrences, sequential-rules, beats the best setting's student; its "
    words += f"mean is above the teacher's too (test {METRIC} {ours.mean():.4f} against "
    (said,) = (one for one in numbers["headline"] if one.startswith(words))
    assert "6 of the 6 finalists have a lower mean than the best plain count" in said
    assert sentences.wording.markdown_cell(said) in markdown


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("student", "The best setting's student beats a count of occurrences, popularity"),
        ("same", "No difference is shown between the best setting's student and a count of"),
    ],
)
def test_a_plain_count_that_is_not_better(key: str, words: str) -> None:
    data = example(OVER)
    best = f"{data.standings[0].setting.id}-1"
    data = replace(
        data,
        ranks={**data.ranks, "same": data.ranks[best], "student": ranks(92, 400)},
        baselines={one.setting.id: {"popularity": key} for one in data.standings},
    )
    said = map(str, sentences.headline(data, comparing.analyse(data)))
    assert any(one.startswith(words) for one in said)


def test_finalists_with_other_data_have_plain_counts_of_their_own(tmp_path: Path) -> None:
    data = example({"data.options.size": ["tiny", "small"]})
    first, second = (one.setting.id for one in data.standings)
    fewer = {
        name: Ranks(one.session_ids[:200], one.ranks[:200], 999) for name, one in data.ranks.items()
    }
    kept = {**data.ranks, **{name: one for name, one in fewer.items() if name.startswith(second)}}
    kept |= {f"few {name}": one for name, one in fewer.items()}
    tested = {
        trial: keys
        if trial.startswith(first)
        else {**keys, "student": "few student", "teacher": "few teacher"}
        for trial, keys in data.tested.items()
    }
    beside = {first: PLAIN, second: {name: f"few {key}" for name, key in PLAIN.items()}}
    page, _, numbers = written(replace(data, ranks=kept, tested=tested, baselines=beside), tmp_path)
    rows = page.tables["finalists"][-4:]
    labels = [f"plain count, on the data of {one.setting.label}" for one in data.standings]
    assert [row[:2] for row in rows] == [[n, label] for label in labels for n in PLAIN]
    assert [one["metrics"][METRIC]["sessions"] for one in numbers["baselines"]] == [
        300,
        300,
        200,
        200,
    ]


def test_every_number_of_a_seed_leads_to_its_trial(tmp_path: Path) -> None:
    data = example(OVER, wanted=2)
    page, markdown, _ = written(data, tmp_path)
    links = {value for name, value in page.attributes if name == "href"}
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    shown = [cell for row in page.tables["seeds"] for cell in row]
    for one in data.standings[:2]:
        assert {f"test-{one.setting.id}{end}" for end in ("", "-student", "-teacher")} <= set(ids)
        assert f"{one.setting.label}{one.setting.id}" in [r[1] for r in page.tables["finalists"]]
        for seed in data.seeds:
            trial = f"{one.setting.id}-{seed}"
            number = f"{metric_values(data.ranks[trial], METRIC).mean():.4f}"
            assert f"../../../evaluation/{trial}/" in links
            assert f"{number}{trial}" in shown
            assert f"[{number}](../../../evaluation/{trial}/) {trial} |" in markdown
            assert f"{data.records[trial].metrics[METRIC]:.4f}{trial}" in shown
    for key in ("student", "teacher", *PLAIN.values()):
        assert f"../../../evaluation/{key}/" in links
        assert f"](../../../evaluation/{key}/)" in markdown
    assert f"../../../distillation/{'d' * 16}/" in links


def test_recordings_that_were_replayed_and_trials_that_were_found(tmp_path: Path) -> None:
    data = replace(example(OVER), replayed=True, shared=Shared(requests=30, unshared=120))
    found = {name: replace(one, reused=True, seconds=0.0) for name, one in data.records.items()}
    page, markdown, numbers = written(replace(data, records=found), tmp_path)
    assert numbers["headline"][-1] == (
        "Recorded rankings were replayed: nothing was asked or paid (30 of them serve all "
        "settings; it would have been 120 without sharing)."
    )
    assert not any("cost" in finding for finding in numbers["headline"])
    assert page.tables["nodes"][1:] == [["node-1", "18", "nothing run, all were found"]]
    assert "| node-1 | 18 | nothing run, all were found |" in markdown
    first = next(iter(data.records))
    page, _, _ = written(replace(data, records={**found, first: data.records[first]}), tmp_path)
    assert page.tables["nodes"][1:] == [["node-1", "18", "1.5 s; 17 were found"]]


def test_a_runner_up_that_is_told_and_one_that_is_the_same() -> None:
    data = example({"student.dim": [5, 10]}, seeds=range(6))
    first, second = data.standings
    below = {seed: value - 0.02 - 0.001 * seed for seed, value in first.by_seed.items()}
    data = replace(data, standings=(first, replace(second, by_seed=below)))
    assert "is below it (" in str(sentences.headline(data, comparing.analyse(data))[1])
    for shift, words in ((0.0, "did exactly as well"), (0.01, "is lower by the same amount")):
        same = {seed: value - shift for seed, value in first.by_seed.items()}
        data = replace(data, standings=(first, replace(second, by_seed=same)))
        rows = comparing.analyse(data)
        assert words in str(sentences.headline(data, rows)[1])
        assert rows[1].p_holm is None


def test_one_seed_claims_no_more_than_it_can(tmp_path: Path) -> None:
    data = example(OVER, seeds=[7])
    page, markdown, numbers = written(data, tmp_path)
    assert "one seed, no interval" in numbers["headline"][0]
    assert "with one seed there is no test over seeds" in numbers["headline"][1]
    assert "One seed: another training run may differ" in " ".join(numbers["notes"])
    for one in numbers["settings"]:
        assert one["validation"][METRIC]["half_width"] is None
        tested = one["test"]["distilled"]["metrics"][METRIC]
        assert tested["low"] < tested["mean"] < tested["high"]
    assert "intervals cover sessions." in markdown
    assert not any("±" in cell for row in page.tables["settings"] for cell in row)


def test_failed_and_dropped_trials_are_told_and_the_rest_stands(tmp_path: Path) -> None:
    reasons = {4: ("failed", "loss is not a number"), 17: ("dropped", "dropped at step 100")}
    data = replace(example(OVER, reasons=reasons), status="partial", reason="1 of 18 trials failed")
    page, markdown, numbers = written(data, tmp_path)
    for number, (status, reason) in reasons.items():
        record = list(data.records.values())[number]
        row = [record.setting.label, str(record.seed), status, reason]
        assert row in page.tables["unfinished"]
        assert "| " + " | ".join(row[1:]) + " |" in markdown
    states = [one["state"] for one in numbers["settings"]]
    assert sorted(states[-2:]) == ["1 dropped", "1 failed"]
    assert set(states[:-2]) == {"whole"}
    assert all(one["against_best"] is None for one in numbers["settings"][-2:])
    assert "The sweep ended partial: 1 of 18 trials failed" in numbers["notes"]
    assert "2 of 6 settings are not whole: not in figures." in numbers["notes"]
    assert numbers["headline"][0].startswith("Best setting by validation")
    assert len(page.tables["finalists"]) == 1 + 4 + 2 + 2


def test_all_trials_failed(tmp_path: Path) -> None:
    data = example(OVER, reasons={number: ("failed", "out of memory") for number in range(18)})
    page, _, numbers = written(data, tmp_path)
    assert numbers["headline"][0].startswith("No setting has a value for every seed")
    assert len(page.tables["unfinished"]) == 19
    assert "svg" not in page.tags
    assert all(one["validation"] == {} for one in numbers["settings"])


def test_no_settings_at_all(tmp_path: Path) -> None:
    data = replace(
        example(OVER), standings=(), records={}, tested={}, baselines={}, ranks={}, microusd={},
        shared=Shared(), status="stopped", reason="the cap",
    )  # fmt: skip
    page, markdown, numbers = written(data, tmp_path)
    assert numbers["settings"] == []
    assert "The sweep ended stopped: the cap" in markdown
    assert any("nothing was asked or paid" in finding for finding in numbers["headline"])
    assert set(page.tables) == set()
    for name in CSV_FILES:
        assert len(list(csv.reader((tmp_path / name).open(encoding="utf-8")))) == 1


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    over = {f"llm.{NASTY}": [NASTY, "-1+1", {"a": [NASTY]}], "selection.budget": [1, -2]}
    data = replace(
        example(over, reasons={0: ("failed", NASTY)}), title=NASTY, status="partial", reason=NASTY
    )
    page, markdown, _ = written(data, tmp_path)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script" not in markdown.replace("\\<script", "")
    assert "\n# head" not in markdown
    for part in markdown.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        tables = itertools.groupby(lines, lambda line: len(re.findall(r"(?<!\\)\|", line)))
        widths = [(width, len(list(rows))) for width, rows in tables]
        assert all(count >= 3 for _, count in widths), widths
    for name in CSV_FILES:
        lines = list(csv.reader((tmp_path / name).open(encoding="utf-8", newline="")))
        assert len({len(line) for line in lines}) == 1
        cells = {cell for line in lines for cell in line}
        assert {cell for cell in cells if cell[:1] in tuple("=+@\t\r-")} <= {"-2"}
        assert f"'{NASTY}" in cells or name == "finalists.csv"


def shown(over: Mapping[str, Sequence[Any]], **changed: Any) -> Plot:
    found = [
        Shown(dict(zip(over, values, strict=True)), 0.1 + 0.001 * n, 0.05, 0.2, 0.01 * n)
        for n, values in enumerate(itertools.product(*over.values()))
    ]
    return replace(Plot(found, tuple(over), f"test {METRIC}", 0.08), **changed)


STRATEGY, BACKBONE = ["random", "exact", "rad-bc"], ["fpmc", "stamp"]
MU, DIM, BUDGET = [0.1, 0.5, 0.9], [5, 10, 20, 40], [10, 100, 1_000]


@pytest.mark.parametrize(
    ("over", "kind", "panels"),
    [
        ({"a.budget": BUDGET}, "lines", 1),
        ({"a.strategy": STRATEGY, "a.budget": BUDGET}, "lines", 1),
        ({"a.strategy": STRATEGY, "b.backbone": BACKBONE, "a.budget": BUDGET}, "lines", 2),
        ({"a.strategy": STRATEGY, "c": list("pqrstuvw"), "a.budget": BUDGET}, "lines", 3),
        ({"a.mu": MU, "a.dim": DIM}, "heat", 1),
        ({"a.mu": MU, "a.dim": DIM, "a.strategy": STRATEGY}, "heat", 3),
        ({"a.mu": MU, "a.dim": DIM, "a.budget": list(range(8))}, "heat", 3),
        ({"a.mu": MU, "a.dim": DIM, "b": list("pqrstuvw")}, "heat", 6),
        ({"a.strategy": STRATEGY}, "dots", 1),
        ({"a.strategy": [True, None, 3]}, "dots", 1),
        ({"a.strategy": STRATEGY, "b.backbone": BACKBONE, "c": ["x", "y"]}, "dots", 2),
        ({"a.strategy": [f"s{n}" for n in range(40)]}, "dots", 1),
        ({"a.budget": [100]}, "none", 0),
    ],
)
def test_the_figure_fits_the_axes(over: dict[str, Any], kind: str, panels: int) -> None:
    plot = shown(over)
    assert figures.layout(plot).kind == kind
    drawn = figures.draw(plot)
    assert len(drawn) == (0 if kind == "none" else 2)
    ids: list[str] = []
    for number, figure in enumerate(drawn):
        assert figure.svg.startswith('<svg viewBox="0 0 ')
        Page(figure.svg)
        assert not re.findall(r"#[0-9a-f]{6}\b", figure.svg), "a colour is not the page's"
        assert "nan" not in figure.svg
        if number == 0:
            x_labels = figure.svg.count(f">{plot.metric}<")
            names = short_names(plot.axes)
            main = names[figures.layout(plot).main[0]]
            of_panels = x_labels if kind == "dots" else figure.svg.count(f">{main}<")
            assert of_panels == panels
            assert figure.wide == (panels > 1)
        ids += re.findall(r' id="([^"]+)"', figure.svg)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("dearest", "count"), [(6.42, 0), (6.8, 1)])
def test_money_that_is_much_the_same_is_not_drawn(dearest: float, count: int) -> None:
    plot = shown({"a.strategy": ["x", "y", "z"]})
    paid = [6.395, 6.4, dearest]
    found = [replace(one, dollars=d) for one, d in zip(plot.shown, paid, strict=True)]
    assert len(figures.money(replace(plot, shown=found))) == count
    assert figures.money(replace(plot, shown=())) == []


def test_strategies_are_told_apart_by_the_money() -> None:
    """Though it is the backbones that the other figure tells apart."""
    plot = shown({"variant": STRATEGY, "backbone": BACKBONE}, selecting="variant")
    assert figures.layout(plot).series == "backbone"
    (figure,) = figures.money(plot)
    assert figure.caption == (
        f"test {METRIC} against the USD for the rankings of a setting, all seeds, marked by "
        "variant; bars: 95% intervals."
    )
    assert all(f">\u200b{name}<" in figure.svg for name in STRATEGY)
    assert not any(f">\u200b{name}<" in figure.svg for name in BACKBONE)


def test_a_papers_table_shows_recall_by_the_money_too() -> None:
    """Strategies told apart; the other figures of a table are of its main metric alone."""
    entries = [
        entry(row, column, 0.02, rankings=100.0 * number)
        for row in BACKBONE
        for number, column in enumerate(("Random", "Easiest", "ALKDRec"), start=1)
    ]
    study = STUDIES["table2"]
    data = Reproduced(study, entries, [], 100, dollars_per_ranking={HETREC: 0.01})
    drawn = reproduction._figures(data, cells.analyse(study, entries, 100, 1))
    assert [figure.caption.split(";")[0] for figure in drawn] == [
        f"{HETREC}, test ndcg@10 by variant and backbone",
        f"{HETREC}, test ndcg@10 against the USD for one student's rankings, as priced, marked by "
        "variant",
        f"{HETREC}, test recall@10 against the USD for one student's rankings, as priced, marked "
        "by variant",
    ]


def test_drawn_axes_are_shown_one_by_one() -> None:
    rng = np.random.default_rng(3)
    found = [
        Shown({"a.rate": float(rate), "a.dim": n % 7 + n // 9, "b": "uvw"[n % 3]}, 0.1, None, None)
        for n, rate in enumerate(10 ** rng.uniform(-4, -1, 20))
    ]
    plot = Plot(found, ("a.rate", "a.dim", "b"), f"validation {METRIC}")
    assert figures.layout(plot) == figures.Layout("slices", ("a.rate", "a.dim", "b"))
    (figure,) = figures.draw(plot)
    for name in ("rate", "dim", "b", "u", "v", "w", "0.001"):
        assert f">{name}<" in figure.svg
    assert "student before" not in figure.svg


def test_what_spans_much_is_on_a_logarithmic_scale() -> None:
    for budgets, is_log in (([100, 200, 2_900], False), ([100, 200, 3_100], True)):
        plot = shown({"a.budget": budgets}, reference=None)
        (figure, _) = figures.draw(plot)
        uses = re.findall(r"<use [^>]*>", figure.svg)
        spots = [re.findall(r' x="([\d.]+)"', use) for use in uses if "var(--line-1)" in use]
        marks = sorted({float(x) for found in spots for x in found} - {0.0})
        assert len(marks) == 3
        share = (marks[1] - marks[0]) / (marks[2] - marks[0])
        wanted = math.log(2) / math.log(budgets[2] / 100) if is_log else 100 / (budgets[2] - 100)
        assert share == pytest.approx(wanted, rel=0.02)


def test_figures_show_the_test_sessions_only_where_all_were_tested(tmp_path: Path) -> None:
    for wanted, split, level in (("all", "test", True), (1, "validation", False)):
        written(example(OVER, wanted=wanted), tmp_path)
        text = (tmp_path / "sweep.html").read_text("utf-8")
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
        assert [" against the simulated USD" in caption for caption in captions] == [
            False,
            True,
            True,
        ]
        assert [caption.split()[:2] for caption in captions] == [
            [split, METRIC], [split, METRIC], [split, "recall@10"],
        ]  # fmt: skip
        assert ("student before distillation" in text) == level


def test_equal_data_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        report.write(example(OVER), tmp_path / name)
    for name in FILES:
        first, second = ((tmp_path / folder / name) for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name


def test_names_are_short_but_not_the_same() -> None:
    axes = ["student.dim", "teacher.dim", "selection.budget", "dim"]
    assert short_names(axes) == {
        "student.dim": "student.dim", "teacher.dim": "teacher.dim",
        "selection.budget": "budget", "dim": "dim",
    }  # fmt: skip


def test_collecting_reads_ranks_and_finds_what_was_paid(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    run = {"data": {"source": "synthetic", "options": {"size": "tiny"}}}
    over = {"selection.budget": {"grid": [10, 20]}}
    file.write_text(yaml.safe_dump({"name": "many", "run": run, "over": over, "seeds": [1, 2]}))
    sweep = configs.load(file)
    data = example({"selection.budget": [10, 20]}, seeds=[1, 2])
    key = ""
    for key, found in data.ranks.items():
        folder = tmp_path / "evaluation" / key
        folder.mkdir(parents=True)
        write_ranks(found, folder / "ranks.parquet")
        (folder / "stage.json").write_text('{"seconds": 1}')
    shared = replace(data.shared)
    for dollars, point in ((3, {"selection.budget": 10}), (5, {"selection.budget": 20})):
        prepared = Prepared("data", {1: "t", 2: "t"}, "rankings", dollars * 1_000_000)
        shared.by_purchase[purchase_of(sweep.of(point))] = prepared
    given = (sweep, data.standings, data.records, data.tested, data.baselines, shared, tmp_path)
    found = report.collect(*given)
    assert found.microusd == {
        Setting({"selection.budget": 10}).id: 3_000_000,
        Setting({"selection.budget": 20}).id: 5_000_000,
    }
    assert found.unit == "simulated USD"
    assert not found.replayed
    assert found.metric == METRIC
    assert found.resamples == sweep.of({}).evaluation.resamples
    many = {f"trial {number}": {"distilled": key} for number in range(90)}
    more = report.collect(*given[:3], many, *given[4:])
    assert more.resamples == 45 * 200, "Holm's correction of 45 gains needs more"
    tested = {key for by in data.tested.values() for key in by.values()}
    assert set(found.ranks) == tested | set(PLAIN.values())
    for key, one in found.ranks.items():
        np.testing.assert_array_equal(one.ranks, data.ranks[key].ranks)
    written(found, tmp_path / "report")
    run["llm"] = {"teacher": "replay", "options": {"path": "answers"}}
    over = {"kind": {"cases": {"r": {"selection.strategy": "random"}}}, **over}
    file.write_text(yaml.safe_dump({"name": "many", "run": run, "over": over, "seeds": [1, 2]}))
    sweep = configs.load(file)
    data = example({"kind": ["r"], "selection.budget": [10, 20]}, seeds=[1, 2])
    free = Prepared("data", {1: "t", 2: "t"}, "rankings", 0, 10, 10)
    shared = Shared({purchase_of(sweep.of(s.setting.point)): free for s in data.standings}, 10, 20)
    told = report.collect(sweep, data.standings, data.records, {}, {}, shared, tmp_path)
    assert (told.replayed, told.unit, told.selecting) == (True, "USD", "kind")
    told = report.collect(
        sweep, data.standings, data.records, {}, {}, replace(shared, microusd=5), tmp_path
    )
    assert not told.replayed, "hints may have been paid"
    (tmp_path / "evaluation" / "teacher" / "stage.json").unlink()
    with pytest.raises(InputError, match="teacher"):
        report.collect(*given)
