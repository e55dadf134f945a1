"""Selection as seen afterwards, as a table: texts for a page, plain numbers for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alkd_ray.reproduction.effects import KINDS, EffectsRow, Scaled, Spread, mean_of


def table(rows: Sequence[EffectsRow]) -> list[list[str]]:
    """A row for each setting, header first; shares are means over seeds with 95% t-intervals.

    The last rows say which shares the games assume that the strategies play.
    """
    header = ["setting", "strategy", *KINDS, "overlap", "worth, ranks alike"]
    header += ["realised gain", "guaranteed: paper", "exact", "own policy"]
    ratios = dict.fromkeys(row.gains.ratio for row in rows)
    return [header, *map(_line, rows), *(_assumed(ratio, len(header)) for ratio in ratios)]


def numbers(rows: Sequence[EffectsRow]) -> list[list[Any]]:
    """The same and more, a row for each setting, header first.

    Of every gain and guarantee the logarithm of its size is there as well: with the paper's mu
    they may lie below what a float can hold, which is then 0. None = there is none.
    """
    spreads = [*KINDS, "overlap", "worth", "share of the first ranks", "share of the largest pick"]
    scaled = ["realised gain", *(f"guaranteed {policy}" for policy in ("paper", "exact", "own"))]
    header = ["setting", "strategy", "seeds", "sessions to select from"]
    header += [f"{name}{end}" for name in spreads for end in ("", " half width")]
    header += [f"{name}{end}" for name in scaled for end in ("", " log10")]
    header += ["seeds above 0", "mu", *(f"assumed {kind}" for kind in KINDS[:3]), "g_si", "g_in"]
    return [header, *map(_numbers, rows)]


def _line(row: EffectsRow) -> list[str]:
    own = _own(row)
    return [
        row.name,
        row.strategy,
        *(row.share(kind).text for kind in KINDS),
        row.over_seeds(lambda one: one.mean_overlap).text,
        row.over_seeds(lambda one: one.gained.worth).text,
        row.realised.text,
        mean_of([one.guaranteed_paper for one in row.by_seed]).text,
        mean_of([one.guaranteed_exact for one in row.by_seed]).text,
        own.text if own else "-",
    ]


def _numbers(row: EffectsRow) -> list[Any]:
    spreads: list[Spread] = [row.share(kind) for kind in KINDS]
    spreads += [
        row.over_seeds(lambda one: one.mean_overlap),
        row.over_seeds(lambda one: one.gained.worth),
        row.over_seeds(lambda one: one.gained.head_share),
        row.over_seeds(lambda one: one.gained.largest_share),
    ]
    scaled = [
        row.realised,
        mean_of([one.guaranteed_paper for one in row.by_seed]),
        mean_of([one.guaranteed_exact for one in row.by_seed]),
        _own(row),
    ]
    gains = row.gains
    line: list[Any] = [row.name, row.strategy, len(row.by_seed), row.by_seed[0].population]
    line += [number for one in spreads for number in (one.mean, one.half_width)]
    line += [number for one in scaled for number in _value_and_log10(one)]
    shares = [part / sum(gains.ratio) for part in gains.ratio]
    return [*line, row.winning_seeds, gains.mu, *shares, gains.g_si, gains.g_in]


def _own(row: EffectsRow) -> Scaled | None:
    """What the strategy's own policy guarantees; None for strategies without one."""
    found = [one.guaranteed_own for one in row.by_seed if one.guaranteed_own is not None]
    return mean_of(found) if found else None


def _value_and_log10(one: Scaled | None) -> tuple[float | None, float | None]:
    if one is None:
        return None, None
    return one.value, one.log10 if one.sign else None


def _assumed(ratio: tuple[float, float, float], width: int) -> list[str]:
    name = f"assumed, {':'.join(f'{part:g}' for part in ratio)}"
    shares = [f"{part / sum(ratio):.3f}" for part in ratio]
    return [name, "", *shares, *[""] * (width - 2 - len(shares))]
