"""The figures of a sweep's report: which kind shows its axes best, and the drawing of it.

| axes that vary | figure |
|---|---|
| categories alone | dots with intervals, a row for each category |
| one numeric | lines with interval bands, one for each category |
| two or more numeric, crossed | heat map of the two with most values |
| two or more numeric, drawn | one panel for each axis, all settings in each |

One further category becomes lines or marks; the axes that are left become panels. Against the money
it is the strategies of selection that are told apart, where they vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from alkd_ray import figures
from alkd_ray.figures import Mark
from alkd_ray.sweeps.records import short_names, value_text

MOST_PANELS = 6
MOST_SERIES = len(figures.LINES)
MOST_ROWS = 30
_MOST_CELLS = 12  # of a heat map's side, for text in its cells
_CROSSED_SHARE = 0.5  # of all combinations that have a setting, for axes to count as crossed
_ALIKE = 0.05  # of the dearest setting's money; where all are that near, it tells nothing
_REFERENCE = "student before distillation"

Kind = Literal["none", "dots", "lines", "heat", "slices"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting in a figure.

    Attributes:
        point: axis -> value.
        mean: of the metric.
        low: lower end of its interval; None = there is none.
        high: upper end.
        dollars: what its rankings cost, those of all seeds.
    """

    point: Mapping[str, Any]
    mean: float
    low: float | None
    high: float | None
    dollars: float = 0.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure for the page; ``wide`` = it has panels side by side."""

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """What each varying axis does in a figure.

    Attributes:
        kind: of the figure.
        main: across, or the rows of dots; of slices, one after another.
        down: of heat maps.
        series: told apart by colour and mark; "" = none.
        panels: a panel for each combination of their values.
    """

    kind: Kind
    main: tuple[str, ...] = ()
    down: str = ""
    series: str = ""
    panels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """All that a figure is drawn from.

    Attributes:
        shown: the settings that have a value.
        axes: dotted fields that the sweep varies.
        metric: what is drawn, with its split: ``validation ndcg@10``.
        reference: the metric of the student before distillation, where all settings share it.
        unit: of the money, ``USD`` or ``simulated USD``.
        what_for: what the money of a setting is for.
        selecting: the axis that varies the strategy of selection; "" = none does.
    """

    shown: Sequence[Shown]
    axes: Sequence[str]
    metric: str
    reference: float | None = None
    unit: str = "USD"
    what_for: str = "the rankings of a setting, all seeds"
    selecting: str = ""

    def values(self, axis: str) -> list[Any]:
        """Different values of an axis: numbers by size, others by their text."""
        given = [one.point[axis] for one in self.shown]
        if all(map(_is_number, given)):
            return sorted(set(given))
        found = {value_text(value): value for value in given}
        return [found[text] for text in sorted(found)]

    def name(self, axis: str) -> str:
        """The axis, as it is shown."""
        return short_names(self.axes)[axis]

    def label(self, one: Shown, axes: Sequence[str]) -> str:
        """Some of a setting's values, as text; of one axis the value alone."""
        texts = [(self.name(axis), value_text(one.point[axis])) for axis in axes]
        return texts[0][1] if len(texts) == 1 else " ".join(f"{n}={text}" for n, text in texts)


def layout(plot: Plot) -> Layout:
    """The kind of figure for these settings, and what each axis does in it."""
    values = {axis: plot.values(axis) for axis in plot.axes} if plot.shown else {}
    counts = {axis: len(found) for axis, found in values.items() if len(found) > 1}
    by_count = sorted(counts, key=lambda axis: -counts[axis])
    numeric = [axis for axis in by_count if all(map(_is_number, values[axis]))]
    categories = [axis for axis in by_count if axis not in numeric]
    crossed = len(plot.shown) >= _CROSSED_SHARE * math.prod(counts.values())
    if not counts:
        return Layout("none")
    if not numeric:
        if not crossed:
            return Layout("dots", tuple(axis for axis in counts if axis in categories))
        return Layout("dots", (categories[0],), "", *_rest(categories[1:], counts))
    if len(numeric) == 1:
        lines = math.prod(counts[axis] for axis in categories)
        if lines == 1 or len(plot.shown) >= 1.5 * lines:
            return Layout("lines", (numeric[0],), "", *_rest(categories, counts))
    elif crossed:
        across, down = numeric[:2]
        rest = tuple(axis for axis in counts if axis not in (across, down))
        return Layout("heat", (across,), down, "", rest)
    return Layout("slices", tuple(counts)[:MOST_PANELS])


def draw(plot: Plot) -> list[Drawn]:
    """The metric against the axes, and against the money."""
    plan = layout(plot)
    kinds = {"lines": _lines, "dots": _dots, "heat": _heat, "slices": _slices}
    found: list[Drawn] = []
    if plan.kind != "none":
        with figures.drawing(f"sweep {plan.kind}"):
            found.append(kinds[plan.kind](plot, plan))
    return found + money(plot)


def money(plot: Plot) -> list[Drawn]:
    """The metric against the money; [] where settings cost much the same."""
    dollars = [one.dollars for one in plot.shown]
    if not dollars or max(dollars) - min(dollars) <= _ALIKE * max(dollars):
        return []
    with figures.drawing(f"sweep dollars {plot.metric}"):
        return [_money(plot, layout(plot))]


def _lines(plot: Plot, plan: Layout) -> Drawn:
    panels, left_out = _panels(plot, plan)
    series, fewer = _series(plot, plan)
    axis = plan.main[0]
    places = figures.panels([title for title, _ in panels], 3.0)
    for place, (_, inside) in zip(places, panels, strict=True):
        for number, belongs in enumerate(series.values()):
            marks = [_mark(one, one.point[axis]) for one in inside if belongs(one)]
            marks.sort(key=lambda mark: mark.at)
            figures.series(place, marks, number, joined=True, bands=True)
        figures.number_axis(place, plot.values(axis))
        place.set_xlabel(plot.name(axis))
    each = f", one line for each {plot.name(plan.series)}" if plan.series else ""
    caption = f"{plot.metric} by {plot.name(axis)}{each}; bands: 95% intervals.{fewer}{left_out}"
    return _done(plot, places, list(series), "Lines of", caption)


def _dots(plot: Plot, plan: Layout) -> Drawn:
    panels, left_out = _panels(plot, plan)
    series, fewer = _series(plot, plan)
    best = sorted(plot.shown, key=lambda one: -one.mean)
    labels = list(dict.fromkeys(plot.label(one, plan.main) for one in best))
    rows = {label: float(number) for number, label in enumerate(labels[:MOST_ROWS])}
    if len(labels) > MOST_ROWS:
        left_out += f" The best {MOST_ROWS} of {len(labels)} are shown."
    places = figures.panels(
        [title for title, _ in panels], 0.9 + len(rows) * max(0.3, 0.14 * len(series))
    )
    for place, (_, inside) in zip(places, panels, strict=True):
        for number, belongs in enumerate(series.values()):
            aside = 0.6 * ((number + 0.5) / len(series) - 0.5)
            at = [(one, rows.get(plot.label(one, plan.main))) for one in inside if belongs(one)]
            marks = [_mark(one, row + aside) for one, row in at if row is not None]
            figures.series(place, marks, number, joined=False, bands=False, down=True)
        place.set_yticks(list(rows.values()), [_cut(label) for label in rows])
        place.set_ylim(len(rows) - 0.5, -0.5)
        place.set_xlabel(plot.metric)
        place.locator_params(axis="x", nbins=5)
    what = " and ".join(plot.name(axis) for axis in (*plan.main, plan.series) if axis)
    caption = f"{plot.metric} by {what}; bars: 95% intervals.{fewer}{left_out}"
    return _done(plot, places, list(series), "Dots of", caption, down=True)


def _heat(plot: Plot, plan: Layout) -> Drawn:
    panels, left_out = _panels(plot, plan)
    across, down = plot.values(plan.main[0]), plot.values(plan.down)
    means = [one.mean for one in plot.shown]
    least, most = min(means), max(means)
    places = figures.panels(
        [title for title, _ in panels],
        max(2.2, 0.8 + 0.42 * len(down)),
        wide=len(across) > 6,
    )
    is_roomy = len(across) * min(len(panels), 3) <= (5 if len(panels) == 1 else 8)
    for place, (_, inside) in zip(places, panels, strict=True):
        for one in inside:
            x, y = across.index(one.point[plan.main[0]]), down.index(one.point[plan.down])
            shade = 0.06 + 0.54 * (one.mean - least) / (most - least or 1)
            corner = (x - 0.5, y - 0.5)
            place.add_patch(Rectangle(corner, 1, 1, color=figures.LINES[0], alpha=shade, lw=0))
            text = f"{one.mean:.4f}"
            if one.low is not None and one.high is not None and is_roomy:
                text += f"\n{one.low:.4f}–{one.high:.4f}"
            weight = "bold" if one.mean == most else "normal"
            if max(len(across), len(down)) <= _MOST_CELLS:
                place.text(x, y, text, ha="center", va="center", fontsize=7.5, fontweight=weight)
        place.set_xlim(-0.5, len(across) - 0.5)
        place.set_ylim(-0.5, len(down) - 0.5)
        place.set_xticks(range(len(across)), list(map(value_text, across)))
        place.set_yticks(range(len(down)), list(map(value_text, down)))
        place.set_xlabel(plot.name(plan.main[0]))
        place.set_ylabel(plot.name(plan.down))
    interval = " Below a mean: its 95% interval, where there is one." if is_roomy else ""
    caption = (
        f"{plot.metric} by {plot.name(plan.main[0])} and {plot.name(plan.down)}; the stronger the "
        f"colour, the higher; bold: the highest.{interval}{left_out}"
    )
    return _done(plot, places, [], "Heat map of", caption, is_map=True)


def _slices(plot: Plot, plan: Layout) -> Drawn:
    places = figures.panels([""] * len(plan.main), 2.7)
    for place, axis in zip(places, plan.main, strict=True):
        values = plot.values(axis)
        is_number = all(map(_is_number, values))
        at = [(one, one.point[axis]) for one in plot.shown]
        if not is_number:
            texts = list(map(value_text, values))
            at = [(one, texts.index(value_text(value))) for one, value in at]
            place.set_xticks(range(len(texts)), [_cut(text, 48 // len(texts)) for text in texts])
            place.set_xlim(-0.5, len(texts) - 0.5)
        marks = [_mark(one, where) for one, where in at]
        figures.series(place, marks, 0, joined=False, bands=False)
        if is_number:
            figures.number_axis(place, values)
        place.set_xlabel(plot.name(axis))
    caption = f"{plot.metric} by each axis; every mark is a setting, bars: 95% intervals."
    return _done(plot, places, [], "Marks of", caption)


def _money(plot: Plot, plan: Layout) -> Drawn:
    apart = plan.series
    if plot.selecting in plot.axes and len(plot.values(plot.selecting)) > 1:
        apart = plot.selecting
    series, fewer = _series(plot, replace(plan, series=apart))
    places = figures.panels([""], 3.0)
    joined = plan.kind == "lines" and not plan.panels and apart == plan.series
    for number, belongs in enumerate(series.values()):
        marks = [_mark(one, one.dollars) for one in plot.shown if belongs(one)]
        marks.sort(key=lambda mark: mark.at)
        figures.series(places[0], marks, number, joined=joined, bands=False)
    figures.number_axis(places[0], [one.dollars for one in plot.shown], ticks=False)
    places[0].set_xlabel(f"{plot.unit} for {plot.what_for}")
    each = f", marked by {plot.name(apart)}" if len(series) > 1 else ""
    caption = f"{plot.metric} against the {plot.unit} for {plot.what_for}{each}; "
    caption += "bars: 95% intervals."
    return _done(plot, places, list(series), "Marks of", caption + fewer)


def _done(
    plot: Plot,
    places: Sequence[Axes],
    series: Sequence[str],
    kind: str,
    caption: str,
    *,
    down: bool = False,
    is_map: bool = False,
) -> Drawn:
    """What all kinds share: the level, the name of the metric, the legend, the label."""
    reference = None if is_map else plot.reference
    for place in places:
        if not is_map:
            place.grid(axis="x" if down else "y")
        if reference is not None:
            figures.level(place, reference, down=down)
    if not down and not is_map:
        low = min(place.get_ylim()[0] for place in places)
        high = max(place.get_ylim()[1] for place in places)
        for place in places:
            place.set_ylim(max(low, 0), min(high, 1))
            place.set_ylabel(plot.metric)
    wide = len(places) > 1
    names = [_cut(name) for name in series] if len(series) > 1 else []
    figures.legend(
        places[0], names, _REFERENCE if reference is not None else "", 160 if wide else 76
    )
    label = f"{kind} {caption} The numbers are in the table of settings."
    return Drawn(figures.as_svg(places[0], label), caption, wide)


def _rest(categories: Sequence[str], counts: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
    """The axis of the series, the largest that fits; and those of the panels."""
    fitting = [axis for axis in categories if counts[axis] <= MOST_SERIES]
    series = (fitting or list(categories)[-1:] or [""])[0]
    return series, tuple(axis for axis in counts if axis in categories and axis != series)


def _series(plot: Plot, plan: Layout) -> tuple[dict[str, Callable[[Shown], bool]], str]:
    """Name -> whether a setting belongs to it; and what has to be said of those left out."""
    if not plan.series:
        return {"": lambda _: True}, ""
    best = sorted(plot.shown, key=lambda one: -one.mean)
    kept = list(dict.fromkeys(value_text(one.point[plan.series]) for one in best))
    kept, left_out = kept[:MOST_SERIES], kept[MOST_SERIES:]
    said = f" The best {MOST_SERIES} of {len(kept) + len(left_out)} are shown." if left_out else ""
    return {
        text: lambda one, text=text: value_text(one.point[plan.series]) == text
        for text in map(value_text, plot.values(plan.series))
        if text in kept
    }, said


def _panels(plot: Plot, plan: Layout) -> tuple[list[tuple[str, list[Shown]]], str]:
    """Title and settings of each panel; and what has to be said of those left out."""
    found: dict[str, list[Shown]] = {}
    order = {axis: list(map(value_text, plot.values(axis))) for axis in plan.panels}
    for one in sorted(
        plot.shown, key=lambda one: [order[a].index(value_text(one.point[a])) for a in plan.panels]
    ):
        title = " ".join(f"{plot.name(a)}={value_text(one.point[a])}" for a in plan.panels)
        found.setdefault(title, []).append(one)
    best = sorted(found, key=lambda title: -max(one.mean for one in found[title]))[:MOST_PANELS]
    said = ""
    if len(found) > MOST_PANELS:
        said = f" {MOST_PANELS} of {len(found)} panels are shown, those with the best settings."
    return [(title, inside) for title, inside in found.items() if title in best], said


def _mark(one: Shown, at: float) -> Mark:
    return Mark(at, one.mean, one.low, one.high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cut(text: str, most: int = 32) -> str:
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"
