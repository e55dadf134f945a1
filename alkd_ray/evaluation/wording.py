"""How reports put an analysis into words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alkd_ray.evaluation.comparison import (
    NO_DIFFERENCE,
    UNCORRECTED,
    Analysis,
    Comparison,
    Measured,
)
from alkd_ray.evaluation.statistics import LEVEL

FEW_SEEDS = 5
_COUNTS = {
    "popularity": "a count of occurrences",
    "item-knn": "a count of co-occurrences",
    "sequential-rules": "a count of co-occurrences",
    "vsknn": "a count of co-occurrences",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the report says at its top: the claim, and the numbers it rests on."""

    claim: str
    numbers: str = ""

    def __str__(self) -> str:
        return f"{self.claim} ({self.numbers})." if self.numbers else f"{self.claim}."


def verdicts(analysis: Analysis) -> list[Finding]:
    """The distilled student against the student, the teacher and the best plain baseline."""
    found = []
    for compared in analysis.comparisons:
        if compared.metric == analysis.main_metric:
            other = analysis.named(compared.second)
            say = _against_baseline if other.system.role == "baseline" else _against
            found.append(Finding(say(analysis, compared, other), _numbers(analysis, compared)))
    return found


def _against(_: Analysis, compared: Comparison, other: Measured) -> str:
    name = {"student": "the student it started from"}.get(other.system.role, "the teacher")
    if compared.difference.covers_zero:
        return f"{NO_DIFFERENCE.capitalize()} between the distilled student and {name}"
    word = "above" if compared.difference.mean > 0 else "below"
    return f"The distilled student is {word} {name}{correction(compared)}"


def _against_baseline(analysis: Analysis, compared: Comparison, best: Measured) -> str:
    what = plain_count(best.system.name)
    if compared.difference.covers_zero:
        return f"{NO_DIFFERENCE.capitalize()} between the distilled student and {what}"
    if compared.difference.mean > 0:
        return f"The distilled student beats {what}{correction(compared)}"
    behind = " and ".join(
        f"the {m.system.role}"
        for m in analysis.systems
        if m.system.role in ("teacher", "student")
        and m.estimates[analysis.main_metric].mean < best.estimates[analysis.main_metric].mean
    )
    too = f"; its mean is above that of {behind} too" if behind else ""
    start = what[0].upper() + what[1:]
    return f"{start}, beats the distilled student{correction(compared)}{too}"


def plain_count(name: str) -> str:
    """A plain baseline: what it is, and its name."""
    return f"{_COUNTS.get(name, 'a plain baseline')}, {name}"


def correction(compared: Comparison) -> str:
    """What has to be added to a claim that does not stand after correction; "" as a rule."""
    uncorrected = compared.verdict.endswith(UNCORRECTED)
    return ", though not after Holm's correction" if uncorrected else ""


def _numbers(analysis: Analysis, compared: Comparison) -> str:
    main, recall = analysis.main_metric, analysis.main_recall
    first, second = analysis.named(compared.first), analysis.named(compared.second)
    difference, k = compared.difference, recall.partition("@")[2]
    shown = (
        f"{main} {first.estimates[main].mean:.4f} against {second.estimates[main].mean:.4f}; "
        f"hits@{k} {hits(first.hits[recall])} against {hits(second.hits[recall])} of "
        f"{analysis.sessions:,}; difference {signed(difference.mean)}, 95% interval "
        f"{signed(difference.low)} to {signed(difference.high)}"
    )
    if difference.covers_zero and difference.least_detectable is not None:
        shown += f"; one of {difference.least_detectable:.4f} would have been seen with 80% power"
    return shown


def recall_cap(dataset: Mapping[str, Any]) -> list[Finding]:
    """Which share of the test targets no recall can reach."""
    found = []
    unseen, repeated = dataset.get("unseen_test_targets"), dataset.get("repeated_test_targets")
    if unseen is not None:
        claim = f"{100 * unseen:.1f}% of the test targets occur in no training session"
        found.append(
            Finding(claim, f"what is learned there reaches recall {1 - unseen:.3f} at most")
        )
    if repeated:
        claim = f"{100 * repeated:.1f}% of the test targets stand in their own session's input"
        found.append(Finding(claim, "never recommended there, so every system misses them"))
    return found


def intervals_cover(analysis: Analysis) -> str:
    """What the intervals are, in a sentence or two."""
    if analysis.seeds == 1:
        return (
            f"95% intervals cover sessions only: {analysis.sessions:,} test sessions drawn with "
            f"replacement, {analysis.resamples:,} times. There is one seed, so they say nothing of "
            "another training run."
        )
    return (
        f"Means over {analysis.seeds} seeds; 95% intervals cover both seeds and sessions: seeds "
        f"and test sessions are drawn with replacement, independently, {analysis.resamples:,} "
        "times (pigeonhole bootstrap). Baselines draw nothing: their intervals cover sessions."
    )


def cautions(analysis: Analysis) -> list[str]:
    """What limits the numbers."""
    said = []
    if analysis.seeds == 1:
        said.append("One seed: another training run may differ by more than the intervals say.")
    elif analysis.seeds < FEW_SEEDS:
        said.append(
            f"{analysis.seeds} seeds are few: where training runs differ much, the intervals are "
            f"too narrow; use at least {FEW_SEEDS}."
        )
    tests = len(analysis.comparisons)
    enough = round(2 * tests / (1 - LEVEL))
    if analysis.resamples < enough:
        said.append(
            f"With {analysis.resamples:,} resamples no difference can pass Holm's correction for "
            f"{tests} comparisons; set evaluation.resamples to {enough:,} or more."
        )
    return said


def facts(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (name, text) rows; underscores become spaces."""
    rows: list[tuple[str, str]] = []
    for name, inner in nested.items():
        shown = prefix + str(name).replace("_", " ")
        if isinstance(inner, Mapping):
            rows += facts(inner, f"{shown}, ")
        else:
            rows.append((shown, value(inner)))
    return rows


def metric(number: float | None) -> str:
    """A metric, four decimals; a dash for none."""
    return "\N{EN DASH}" if number is None else f"{number:.4f}"


def signed(number: float) -> str:
    """A difference of metrics with its sign, four decimals."""
    text = f"{number:+.4f}"
    return "0.0000" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def count(number: float | None) -> str:
    """A whole number with thousands separated; a dash for none."""
    return "\N{EN DASH}" if number is None else f"{number:,.0f}"


def hits(by_seed: Sequence[int]) -> str:
    """Hits of one seed, or their mean and range over seeds."""
    low, high = min(by_seed), max(by_seed)
    if low == high:
        return f"{low:,}"
    return f"{sum(by_seed) / len(by_seed):,.1f} ({low:,}\N{EN DASH}{high:,})"


def p_value(number: float) -> str:
    """A p-value, three decimals, or that it is smaller."""
    return "<0.001" if number < 0.001 else f"{number:.3f}"


def seconds(number: float) -> str:
    """A time in the unit that fits."""
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def value(given: object) -> str:
    """Any other fact: numbers readable, the rest as it is."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return str(given)
    return f"{given:,}" if isinstance(given, int) else f"{given:.4g}"


def markdown_cell(given: object) -> str:
    """Text that cannot break out of a Markdown table's cell or pose as markup."""
    text = " ".join(str(given).split())
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text


def rounded(nested: Any) -> Any:
    """Floats to 8 significant digits, so that the last bits of a sum do not matter."""
    if isinstance(nested, float):
        return float(f"{nested:.8g}")
    if isinstance(nested, Mapping):
        return {name: rounded(inner) for name, inner in nested.items()}
    if isinstance(nested, list | tuple):
        return [rounded(inner) for inner in nested]
    return nested
