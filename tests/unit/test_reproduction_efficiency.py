"""What annotating costs: by hand, on a small world, and beside the paper's figures."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alkd_ray import config as configs
from alkd_ray.annotation import pricing
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.reproduction import _tokens, efficiency, efficiency_page
from alkd_ray.reproduction._recorded_requests import RequestTokens
from alkd_ray.reproduction._tokens import Range
from alkd_ray.stages import Silent

RATES = pricing.rates_of(efficiency.MODEL, "", efficiency.LISTED_RATES)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('1. "Toy Story (1995)"\n', ["1", ".", ' "', "Toy", " Story", " (", "199", "5", ')"\n']),
        ("snake_case it's", ["snake", "_case", " it", "'s"]),
        ("a  b\n\nc", ["a", "  ", "b", "\n\n", "c"]),
        ("", []),
    ],
)
def test_pieces_are_words_digits_signs_and_blanks(text: str, wanted: list[str]) -> None:
    assert _tokens.pieces(text) == len(wanted)
    assert "".join(wanted) == text


def test_a_prompts_tokens_follow_its_bytes_between_the_bounds() -> None:
    assert _tokens.of_prompt("a b", 10) == Range(2, 2.5, 3)
    assert _tokens.of_prompt("a b", 4) == Range(2, 2, 3)
    assert _tokens.of_prompt("a b", 400) == Range(2, 3, 3)


def test_an_answers_tokens() -> None:
    # {" ranking ":[ 3 , 17 ]}
    assert _tokens.of_numbers([3, 17]) == Range(7, 2 * 3 + 12, 2 * 4 + 12)
    # 1 . _Heat \n 2 . _Up: as many tokens a piece as the prompt.
    found = _tokens.of_titles(["Heat", "Up"], prompt=Range(100, 120, 150))
    assert (found.low, found.high) == (7, 10.5)
    assert found.expected == pytest.approx(7 * 1.2)


def test_rows_are_the_samples_means_times_sessions() -> None:
    requests = [
        RequestTokens(
            Range(100, 200, 300), {"numbers": Range(10, 20, 30), "titles": Range(40, 50, 60)}
        ),
        RequestTokens(
            Range(300, 400, 500), {"numbers": Range(10, 20, 30), "titles": Range(40, 50, 60)}
        ),
    ]
    paper = efficiency.Published(1000, 1.0, 2.0)
    rows = efficiency.rows_of("d", {1000: "all", 10: "few"}, requests, RATES, 64, {1000: paper})
    assert [(row.sessions, row.form) for row in rows] == [
        (10, "numbers"),
        (10, "titles"),
        (1000, "numbers"),
        (1000, "titles"),
    ]
    numbers, titles = rows[2:]
    assert numbers.input_tokens == Range(200_000, 300_000, 400_000)
    assert titles.output_tokens == Range(40_000, 50_000, 60_000)
    # 10 USD a million in, 30 out.
    assert vars_of(numbers.dollars) == pytest.approx([2.0 + 0.3, 3.0 + 0.6, 4.0 + 0.9])
    assert vars_of(titles.dollars) == pytest.approx([2.0 + 1.2, 3.0 + 1.5, 4.0 + 1.8])
    # 44 minutes for 500 are 88 for 1,000; ten requests are never 64 in flight.
    assert numbers.minutes_in_turn == pytest.approx(88)
    assert numbers.minutes_in_flight == pytest.approx(88 / 64)
    assert rows[0].minutes_in_flight == pytest.approx(0.88 / 10)
    assert (rows[0].published, numbers.published) == (None, paper)
    assert efficiency.agreement(rows) == [
        "The paper's 2.0 USD for 1,000 sessions lie below the 2.3 to 4.9 USD of answers in "
        "numbers.",
        "The paper's 2.0 USD for 1,000 sessions lie below the 3.2 to 5.8 USD of answers in titles.",
    ]


def vars_of(found: Range) -> list[float]:
    return [found.low, found.expected, found.high]


def test_the_papers_large_figures_are_for_all_sessions() -> None:
    found = efficiency.implied_sessions()
    assert found.expected == pytest.approx(500 * 347 / 8.6)
    assert found.low < 20_091 < found.high
    # Neither the training sessions, nor a subset of 750.
    assert found.low > 12_054
    assert found.low * 750 / 500 > 20_091


def recording(folder: Path, count: int = 40) -> Path:
    rng = np.random.default_rng(3)
    rankings = [rng.choice(400, 25, replace=False).tolist() for _ in range(count)]
    rankings[0] = [10_000]  # no item of the world
    file = folder / "rankings.parquet"
    pq.write_table(pa.table({"session_id": np.arange(count), "ranking": rankings}), file)
    return file


def config_of(file: Path, **fields: object) -> RunConfig:
    return configs.make(
        {
            "data": {"source": "synthetic", "options": {"size": "tiny"}},
            "llm": {"teacher": "replay", "options": {"path": str(file)}},
            "selection": {"budget": 20},
            **fields,
        }
    )


def test_a_small_world_is_measured(tmp_path: Path) -> None:
    config = config_of(recording(tmp_path))
    found = efficiency.measure(config, tmp_path, Silent())
    assert found == efficiency.measure(config, tmp_path, Silent())
    assert found.sample == 39  # the first one is no answer
    assert {row.sessions for row in found.rows} == {20, 500, 600, 1000}
    assert all(row.published is None for row in found.rows)
    for row in found.rows:
        assert row.dollars.low < row.dollars.expected < row.dollars.high
    one = found.rows[0]
    assert one.output_tokens.expected == pytest.approx(20 * (25 * 3 + 12))
    without = efficiency.measure(
        config_of(recording(tmp_path), hints={"enabled": False}), tmp_path, Silent()
    )
    hints = "pattern of behaviour in about twenty words " * 3
    saved = one.input_tokens.low - without.rows[0].input_tokens.low
    # At least the hints' own words, and little more than those.
    assert 20 * 10 * (len(hints.split())) <= saved <= 20 * 10 * (len(hints.split()) + 5)
    header, *lines = efficiency.numbers([found])
    assert len(lines) == len(found.rows)
    assert {len(line) for line in lines} == {len(header)}
    first = dict(zip(header, lines[0], strict=True))
    assert [first[f"USD {end}"] for end in ("low", "expected", "high")] == vars_of(one.dollars)
    assert (first["requests in flight"], first["paper USD"]) == (found.in_flight, None)
    names, columns = efficiency.quantities(found)
    assert list(columns) == ["20", "500", "600", "1,000"]
    assert {len(texts) for texts in columns.values()} == {len(names)}
    source = efficiency_page.render({"books & more": found})
    page = html.unescape(source)
    for row in found.rows:
        for value, form in (
            (row.input_tokens, ",.0f"),
            (row.output_tokens, ",.0f"),
            (row.dollars, ",.1f"),
        ):
            least, most = f"{value.low:{form}}", f"{value.high:{form}}"
            cell = f'>{value.expected:{form}}<span class="interval">{least}–{most}</span><'
            assert cell in page
        assert f">{row.sessions:,}</th><td>{row.what}</td><td>{row.form}</td>" in page
        assert f">{row.minutes_in_turn:,.0f}</td>" in page
    assert "<h2>books &amp; more</h2>" in source
    assert all(f"<li>{note}</li>" in page for note in found.notes)
    every = found.rows[-2]  # answers in numbers, as the project asks for
    claim = f"rankings of 20 sessions cost {one.dollars.expected:,.1f} USD, of all 1,000 sessions "
    assert f"{claim}{every.dollars.expected:,.1f} USD." in page
    assert "Paper's" not in page  # it has no figure of these
    assert not re.search(r"https?://|src=|href=|@import|url\(", source)  # needs nothing else
    assert columns["20"][2] == f"{one.dollars.expected:.1f}\n{one.dollars.low:.1f}-" + (
        f"{one.dollars.high:.1f}"
    )


def test_only_a_fitting_recording_is_measured(tmp_path: Path) -> None:
    config = config_of(recording(tmp_path, 1))
    with pytest.raises(InputError, match="belong together"):
        efficiency.measure(config, tmp_path, Silent())
    config = config_of(tmp_path, llm={"teacher": "simulated"})
    with pytest.raises(InputError, match="set it to replay"):
        efficiency.measure(config, tmp_path, Silent())


def test_a_price_that_is_no_longer_listed_is_the_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = efficiency.current_rates()
    assert (listed.input, listed.output) == (RATES.input, RATES.output)
    monkeypatch.setattr(efficiency, "MODEL", "a-model-that-nobody-lists")
    assert efficiency.current_rates().source.startswith("config")


def test_the_papers_dollars_are_those_of_answers_in_numbers(
    published_data: Path, tmp_path: Path
) -> None:
    folder = published_data / "alkdrec/original/Games"
    config = configs.make(
        {
            "data": {"source": "alkdrec", "options": {"path": str(folder)}},
            "llm": {
                "teacher": "replay",
                "options": {"path": str(folder / "Games_LLM_Database.data")},
            },
            "selection": {"budget": 750},
        }
    )
    found = efficiency.measure(config, tmp_path, Silent())
    beside = [row for row in found.rows if row.published]
    assert [row.sessions for row in beside] == [500, 500, 20_091, 20_091]
    for row in beside:
        assert row.published is not None
        within = row.dollars.low <= row.published.dollars <= row.dollars.high
        assert within == (row.form == "numbers")
        assert row.minutes_in_turn == pytest.approx(row.published.minutes, rel=0.01)
