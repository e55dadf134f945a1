"""The page of a reproduced table in a real browser, at a desk, on a phone and on paper."""

from __future__ import annotations

import json
import re
from html import escape, unescape
from pathlib import Path

import pytest

from alkd_ray.active.gains import Gains
from alkd_ray.reproduction import effects_table, report
from alkd_ray.reproduction.cells import Entry
from alkd_ray.reproduction.effects import EffectsRow, Gained, Scaled, SeedEffects
from alkd_ray.reproduction.further import Linked, Table
from alkd_ray.reproduction.report import Reproduced
from alkd_ray.reproduction.studies import HETREC, STUDIES
from tests.e2e.test_report_browser import CHROMIUM, browse
from tests.unit.test_reproduction_cells import entry, values

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: `make browser`")

COLUMNS = ("student", "teacher", "DE", "FTD", "HTD", "unKD", "DSL", "DLLM2Rec", "ALKDRec")
WIDTHS = (1440, 420)
PROBE = """
<script>
addEventListener("load", () => {
  const seen = {
    needed: document.documentElement.scrollWidth,
    width: innerWidth,
    figures: [...document.querySelectorAll("figure svg")].map((e) => {
      const b = e.getBoundingClientRect(); return [b.width, b.height];}),
    drawn: [...document.querySelectorAll("figure svg")].map(
      (e) => e.querySelectorAll("path, use, rect").length),
    hidden: [...document.querySelectorAll(".scroll")].map((e) => e.scrollWidth - e.clientWidth),
    outside: [...document.querySelectorAll(".out")].map((e) => e.textContent),
    broken: [...document.querySelectorAll(".more td")].filter(
      (e) => e.getClientRects().length && e.textContent.match(/[0-9]e-/) &&
        e.clientHeight > 1.9 * parseFloat(getComputedStyle(e).lineHeight)).length,
    fetched: performance.getEntriesByType("resource").map((e) => e.name),
  };
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify(seen);
  parent.document.body.append(place);
});
</script>
"""


def seen_afterwards() -> Table:
    """As wide as it gets: long names, losses far below what floats hold."""
    tiny = Scaled(-1, -40.2)
    counts = {"effective": 60, "similar": 70, "incorrect": 360, "unanswered": 10}
    by_seed = tuple(
        SeedEffects(seed, counts, 0.123, 4_992, Gained(tiny, 0.99, 0.98, -0.162), tiny, tiny, tiny)
        for seed in range(5)
    )
    name = "backbone=attmix variant=ALKDRec-exact"
    rows = [EffectsRow(name, "alkdrec-exact", Gains(), by_seed)]
    header, first, *rest = effects_table.table(rows)
    lines = [header, [Linked(name, "x.html#y"), *first[1:]], *rest]
    return Table("Seen afterwards", lines, "A note.", "effects", effects_table.numbers(rows))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table 1 as wide as it is, with a system that failed."""
    folder = tmp_path_factory.mktemp("reproduction")
    entries = [
        entry(row, column, 0.01 + 0.02 * number, runs=("ab12-1", "ab12-2"), link="x.html#y")
        for row in ("fpmc", "stamp", "attmix")
        for number, column in enumerate(COLUMNS)
    ]
    entries[12] = Entry(HETREC, "stamp", "FTD", "distilled", {}, "2 failed")
    plain = {metric: one[:1] for metric, one in values(0.3, "plain").items()}
    entries.append(Entry(HETREC, "", "sequential-rules", "baseline", plain))
    data = Reproduced(STUDIES["table1"], entries, [], 200, tables=[seen_afterwards()])
    report.write(data, folder)
    framed = escape((folder / report.PAGE).read_text("utf-8") + PROBE)
    for width in WIDTHS:
        (folder / f"{width}.html").write_text(
            f'<!DOCTYPE html><iframe width="{width}" height="4000" srcdoc="{framed}"></iframe>',
            encoding="utf-8",
        )
    return folder / report.PAGE


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_or_fetched(page: Path, width: int) -> None:
    dom = browse(page.with_name(f"{width}.html"), "--dump-dom")
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert found is not None
    seen = json.loads(unescape(found[1]))
    assert seen["width"] == width
    assert seen["needed"] <= width
    assert seen["fetched"] == []
    assert seen["broken"] == 0, "a number goes over two lines"
    assert len(seen["figures"]) == 1
    assert seen["figures"][0][0] > 300
    assert seen["drawn"][0] > 20
    # The arrows that say where the paper's number lies are text, not colour alone.
    assert seen["outside"]
    assert all(text[-1] in "↑↓" for text in seen["outside"])
    if width >= 1440:
        assert max(seen["hidden"]) == 0, "a table has to be scrolled at a desk"


def test_it_can_be_printed(page: Path) -> None:
    paper = page.with_suffix(".pdf")
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    boxes = {
        tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox ?\[([^\]]+)\]", content)
    }
    assert {round(box[2]) > round(box[3]) for box in boxes} == {True}  # landscape
