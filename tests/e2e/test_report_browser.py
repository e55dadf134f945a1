"""The report in a real browser, at a desk's width and a phone's: drawn, labelled, not cut off."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from alkd_ray import report
from tests.report_example import example

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: `make browser`")

WIDTHS = (1200, 420)
# Appended to a copy of the page, in a frame as wide as wanted (a window of Chromium is at least
# 500 wide): what the browser made of it, as JSON in the page around the frame.
PROBE = """
<script>
addEventListener("load", () => {
  const box = (e) => { const b = e.getBoundingClientRect(); return [b.width, b.height, b.right]; };
  const seen = {
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    figures: [...document.querySelectorAll("figure svg")].map(box),
    drawn: [...document.querySelectorAll("figure svg")].map(
      (e) => e.querySelectorAll("path, use, rect").length),
    tables: [...document.querySelectorAll(".scroll")].map(box),
    hidden: [...document.querySelectorAll(".scroll")].map((e) => e.scrollWidth - e.clientWidth),
    numbers: getComputedStyle(document.querySelector("#systems td.number")).textAlign,
    table: document.querySelector("#systems").outerHTML,
    small: Math.min(...[...document.querySelectorAll("figure svg text")].map(
      (e) => e.getBoundingClientRect().height)),
  };
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify(seen);
  parent.document.body.append(place);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    report.write(example(seeds=3, sessions=600, resamples=300), folder)
    framed = escape((folder / "report.html").read_text("utf-8") + PROBE)
    for width in WIDTHS:
        (folder / f"{width}.html").write_text(
            f'<!DOCTYPE html><iframe width="{width}" height="4000" srcdoc="{framed}"></iframe>',
            encoding="utf-8",
        )
    return folder / "report.html"


def browse(page: Path, *words: str) -> str:
    profile = page.parent / f"profile of {page.name}"
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--window-size=1200,3600",
            *words,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module", params=WIDTHS)
def seen(request: pytest.FixtureRequest, page: Path) -> dict:
    dom = browse(page.with_name(f"{request.param}.html"), "--dump-dom")
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert found is not None
    return {"asked": request.param, **json.loads(unescape(found[1]))}


def test_nothing_is_cut_off(seen: dict) -> None:
    assert seen["width"] == seen["asked"]
    assert seen["needed"] <= seen["width"]
    for _, height, right in seen["figures"] + seen["tables"]:
        assert height > 40
        assert right <= seen["width"]
    if seen["width"] >= 1200:
        assert max(seen["hidden"]) == 0, "a table has to be scrolled at a desk"


def test_figures_are_drawn_and_can_be_read(seen: dict) -> None:
    assert len(seen["figures"]) == 4
    assert all(width > 300 for width, _, _ in seen["figures"])
    assert all(marks > 5 for marks in seen["drawn"])
    assert seen["small"] >= 8


def test_the_table_is_there_with_numbers_to_the_right(seen: dict) -> None:
    assert seen["numbers"] == "right"
    for name in ("popularity", "item-knn", "teacher", "student", "distilled"):
        assert re.search(rf'<th[^>]*class="name"[^>]*>{name}</th>', seen["table"])


def test_the_picture_is_not_blank(page: Path) -> None:
    picture = page.with_name("page.png")
    browse(page, f"--screenshot={picture}")
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[1] == 1200
    assert pixels.std() > 0.05
    # Ink from top to bottom, and the roles' colours: purple, blue, vermilion.
    bands = np.array_split(pixels, 8)
    assert all(band.std() > 0.01 for band in bands)
    for colour in ("#7a59a6", "#0072b2", "#d55e00"):
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 50, colour
