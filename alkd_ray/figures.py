"""The report's figures, as SVG to stand inside an HTML page.

Text stays text, and colours are the page's own (CSS variables), so a figure follows a light or a
dark theme, zooms without loss, and is read aloud by its label. Equal input gives equal bytes.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from alkd_ray.evaluation.statistics import Estimate
from alkd_ray.types import BoolArray, FloatArray

WIDTH_INCHES = 5.2
LOG_SPAN = 30.0  # numbers that span more are drawn on a logarithmic scale
_MOST_TICKS = 8
# Stand-ins that matplotlib can draw with, and the page's variables that take their place.
_TEXT, _RULE = "#010203", "#040506"
_COLOURS = {
    _TEXT: "var(--text)",
    _RULE: "var(--rule)",
    "#070809": "var(--baseline)",
    "#0a0b0c": "var(--teacher)",
    "#0d0e0f": "var(--student)",
    "#101112": "var(--distilled)",
}
_OF_ROLE = {
    "baseline": "#070809",
    "teacher": "#0a0b0c",
    "student": "#0d0e0f",
    "distilled": "#101112",
}
# A role differs by its dashes and marks as well, for readers who do not see its colour.
_DASHES: dict[str, Any] = {"teacher": (0, (5, 1.5)), "student": (0, (1.2, 1.2)), "distilled": "-"}
_MARKS = {"teacher": "s", "student": "^", "distilled": "o"}
# Lines that are no roles, for :func:`series`.
LINES = [f"#21222{number}" for number in range(8)]
_SHAPES = "os^Dv<>P"
_LINE_DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _TEXT,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One system of :func:`metric_bars`: its name, role and estimate."""

    name: str
    role: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Mark:
    """One value of :func:`series`: its place, and its interval, where there is one."""

    at: float
    mean: float
    low: float | None
    high: float | None


def metric_bars(bars: Sequence[Bar], metric: str, label: str) -> str:
    """Horizontal bars with their intervals, one a system, best at the top.

    Args:
        bars: the systems, in any order.
        metric: name of the axis.
        label: what the figure shows, for those who cannot see it.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "bars"}):
        ordered = sorted(bars, key=lambda bar: (bar.estimate.mean, bar.name))
        figure, axes = _new(0.9 + 0.3 * len(bars))
        means = np.array([bar.estimate.mean for bar in ordered])
        lows = np.array([bar.estimate.low for bar in ordered])
        highs = np.array([bar.estimate.high for bar in ordered])
        places = np.arange(len(ordered), dtype=np.float64)
        axes.barh(places, means, 0.62, color=[_OF_ROLE[bar.role] for bar in ordered])
        # A percentile interval need not hold the mean; an error bar must not have negative length.
        around = np.maximum(np.stack([means - lows, highs - means]), 0)
        axes.errorbar(means, places, xerr=around, fmt="none", color=_TEXT, elinewidth=1, capsize=3)
        limit = max(float(highs.max()), 1e-9)
        for place, mean, high in zip(places, means, np.maximum(highs, means), strict=True):
            axes.text(high + 0.02 * limit, place, f"{mean:.4f}", va="center", fontsize=8.5)
        axes.set_xlim(0, 1.2 * limit)
        axes.set_yticks(places, [bar.name for bar in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.set_xlabel(f"{metric} with 95% interval")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        return _svg(figure, label)


def learning_curves(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, label: str
) -> str:
    """Validation metric by training step; the mark is the step whose weights were kept.

    Args:
        curves: role -> the history of its training, one mapping with ``step`` and ``metric`` a
            validation.
        metric: name of the validation metric.
        label: as in :func:`metric_bars`.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"curves {metric}"}):
        figure, axes = _new(2.9)
        for role, history in curves.items():
            steps = np.array([entry["step"] for entry in history])
            values = np.array([entry["metric"] for entry in history], np.float64)
            colour = _OF_ROLE[role]
            mark = _MARKS[role]
            best = int(np.argmax(values))  # the first of equals, as training keeps it
            axes.plot(
                steps,
                values,
                color=colour,
                linestyle=_DASHES[role],
                linewidth=1.8,
                marker=mark,
                markevery=[best],
                markersize=7,
                label=role,
            )
        axes.set_xlabel("training step")
        axes.set_ylabel(f"validation {metric}")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", fontsize=9, ncols=len(curves))
        return _svg(figure, label)


def difficulty_histogram(difficulty: FloatArray, selected: BoolArray, label: str) -> str:
    """How difficulty is spread over all training sessions and over the selected ones.

    Both as shares of their own number, so that the few selected ones can be seen.

    Args:
        difficulty: ``[S]``.
        selected: ``[S]``, True for the selected sessions.
        label: as in :func:`metric_bars`.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "difficulty"}):
        figure, axes = _new(2.9)
        edges = np.histogram_bin_edges(difficulty, bins=30)
        every = np.histogram(difficulty, edges)[0] / max(len(difficulty), 1)
        picked = np.histogram(difficulty[selected], edges)[0] / max(int(selected.sum()), 1)
        axes.stairs(
            100 * every,
            edges,
            fill=True,
            color=_OF_ROLE["baseline"],
            label=f"all {len(difficulty):,} training sessions",
        )
        axes.stairs(
            100 * picked,
            edges,
            color=_OF_ROLE["distilled"],
            linewidth=1.8,
            label=f"the {int(selected.sum()):,} selected",
        )
        axes.set_xlabel("difficulty (right: harder)")
        axes.set_ylabel("% of the sessions")
        axes.grid(axis="y")
        axes.set_ylim(0, 105 * max(every.max(), picked.max(), 1e-9))
        axes.locator_params(axis="x", nbins=6)
        figure.legend(loc="outside upper left", fontsize=9, ncols=2)
        return _svg(figure, label)


@contextlib.contextmanager
def drawing(salt: str) -> Iterator[None]:
    """The reports' style, in which a figure is begun, drawn and written.

    Text is text: a ``$`` in a label begins no formula.

    Args:
        salt: keeps the ids of one figure apart from those of others on the same page.
    """
    style = {**_STYLE, "svg.hashsalt": salt, "text.parse_math": False}
    with mpl.rc_context(style), warnings.catch_warnings():
        # Text stays text: the page's font has the letters that matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def panels(titles: Sequence[str], height_inches: float, *, wide: bool = False) -> list[Axes]:
    """Axes of a new figure, one for each title, two or three in a row; ``""`` = no title."""
    columns = min(len(titles), 2 if len(titles) in (2, 4) else 3)
    rows = -(-len(titles) // columns)
    width = WIDTH_INCHES * (2 if len(titles) > 1 or wide else 1)
    figure = Figure(figsize=(width, 0.3 + rows * height_inches), layout="constrained")
    FigureCanvasSVG(figure)
    found: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, title in zip(found, titles, strict=False):
        cut = f"{title[:59]}…" if len(title) > 60 else title
        axes.set_title(cut, fontsize=9.5)
    for axes in found[len(titles) :]:
        axes.remove()
    return found[: len(titles)]


def as_svg(axes: Axes, label: str) -> str:
    """The figure that ``axes`` are part of as one ``<svg>`` element, with a label.

    A page that shows lines of :data:`LINES` defines ``--line-1`` and so on.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    text = _svg(figure, label)
    for number, colour in enumerate(LINES, start=1):
        text = text.replace(colour, f"var(--line-{number})")
    return text


def series(
    axes: Axes, marks: Sequence[Mark], number: int, *, joined: bool, bands: bool, down: bool = False
) -> None:
    """Marks of one colour and shape, with their intervals.

    Args:
        axes: where.
        marks: in the order of the line.
        number: of the series, from 0 to 7.
        joined: a line goes through them.
        bands: intervals are a band, not bars.
        down: places go downwards, values across.
    """
    colour, shape = LINES[number], _SHAPES[number]
    line: Any = _LINE_DASHES[number % len(_LINE_DASHES)] if joined else "none"
    at, means = [mark.at for mark in marks], [mark.mean for mark in marks]
    xy = (means, at) if down else (at, means)
    axes.plot(*xy, color=colour, linestyle=line, linewidth=1.6, marker=shape, markersize=5)
    sure = [mark for mark in marks if mark.low is not None and mark.high is not None]
    at = [mark.at for mark in sure]
    lows, highs = ([getattr(mark, end) for mark in sure] for end in ("low", "high"))
    if bands and len(sure) > 1:
        axes.fill_between(at, lows, highs, color=colour, alpha=0.15, linewidth=0)
    elif down:
        axes.hlines(at, lows, highs, color=colour, linewidth=1.1)
    else:
        axes.vlines(at, lows, highs, color=colour, linewidth=1.1)


def number_axis(axes: Axes, values: Sequence[float], *, ticks: bool = True) -> None:
    """Across: a logarithm where the values span much; the values as ticks, where they fit."""
    given = sorted(set(values))
    is_log = given[0] > 0 and given[-1] > LOG_SPAN * given[0]
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    steps = np.log(given) if is_log else np.array(given, np.float64)
    gaps = np.diff(steps)
    if ticks and 1 < len(given) <= _MOST_TICKS and gaps.min() > 0.09 * gaps.sum():
        axes.set_xticks(given, [f"{value:.4g}" for value in given])


def level(axes: Axes, value: float, *, down: bool) -> None:
    """A dashed line all through, at one value of the metric."""
    draw = axes.axvline if down else axes.axhline
    draw(value, color=_TEXT, linewidth=1.1, linestyle=(0, (4, 3)))


def legend(axes: Axes, names: Sequence[str], level_name: str, letters: int) -> None:
    """Above the whole figure: what each series is, and the level, in rows of so many letters."""
    keys = [
        Line2D([], [], color=LINES[n], marker=_SHAPES[n], linestyle="none", markersize=5)
        for n in range(len(names))
    ]
    if level_name:
        keys.append(Line2D([], [], color=_TEXT, linewidth=1.1, linestyle=(0, (4, 3))))
    # Matplotlib leaves out what begins with an underscore.
    shown = [f"\u200b{name}" for name in (*names, *filter(None, [level_name]))]
    figure = axes.get_figure(root=True)
    if figure is not None and keys:
        columns = max(1, letters // (max(map(len, shown)) + 6))
        figure.legend(keys, shown, loc="outside upper left", fontsize=9, ncols=columns)


def _new(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure, label: str) -> str:
    """The figure as one ``<svg>`` element that scales with its place and has a label."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width, height = 72 * figure.get_size_inches()  # SVG's points
    opening = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}" '
        'style="stroke-linejoin: round; stroke-linecap: butt">'
    )
    text = opening + text[text.index(">") + 1 :]
    # A style element would hold for the whole page, and only ids of definitions are referred to.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    # The page's font; matplotlib's own names would be looked for on the reader's machine.
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    for stand_in, variable in _COLOURS.items():
        text = text.replace(stand_in, variable)
    return re.sub(r"\n\s*", "\n", text).strip()
