"""A sweep's numbers for programs: rows of CSV files, and JSON."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from alkd_ray.evaluation import wording
from alkd_ray.evaluation.comparison import Comparison
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.sweeps.comparing import BASELINE, ROLES, SettingRow, SweepReportData
from alkd_ray.sweeps.sentences import headline, notes
from alkd_ray.sweeps.systems import systems


def setting_lines(data: SweepReportData, rows: Sequence[SettingRow]) -> list[list[Any]]:
    """A row for each setting, header first, best first."""
    header: list[Any] = ["place", "setting", *data.axes, "state", "seeds"]
    header += ["dollars", "rankings", "rankings asked", "below best", "p, Holm"]
    header += [f"validation {name}{end}" for name in data.metrics for end in ("", " half width")]
    header += [
        f"test {role} {name}{end}"
        for role in ROLES
        for name in data.metrics
        for end in ("", " low", " high")
    ]
    lines = [header]
    for place, row in enumerate(rows, start=1):
        setting, standing = row.standing.setting, row.standing
        line = [place, setting.id, *(setting.point.get(axis) for axis in data.axes)]
        line += [standing.state, len(standing.by_seed), data.microusd.get(setting.id, 0) / 1e6]
        found = data.bought.get(setting.id)
        line += [found.answered, found.asked] if found else [None, None]
        line += [row.against.mean if row.against else None, row.p_holm]
        for name in data.metrics:
            line += [row.valid[name].mean, row.valid[name].half_width]
        for role in ROLES if row.tested else ():
            for name in data.metrics:
                one = row.tested[role].estimates[name]
                line += [one.mean, one.low, one.high]
        lines.append(line + [None] * (len(header) - len(line)))
    return lines


def finalist_lines(rows: Sequence[SettingRow]) -> list[list[Any]]:
    """A row for each system on the test sessions and metric, header first; plain counts last."""
    header: list[Any] = ["system", "role", "settings", "trials", "metric", "mean", "low", "high"]
    lines = [[*header, "covers", "sessions", "evaluations"]]
    for one in systems(rows):
        tested = one.tested
        who = [tested.name, tested.role, " ".join(one.settings), " ".join(one.trials)]
        for name, found in tested.estimates.items():
            numbers = [found.mean, found.low, found.high, found.covers, found.sessions]
            lines.append([*who, name, *numbers, " ".join(tested.keys)])
    return lines


def trial_lines(data: SweepReportData) -> list[list[Any]]:
    """A row for each trial, header first."""
    facts = ["seed", "status", "reused", "seconds", "steps", "best_step", "node", "reason"]
    facts += ["student", "distilled"]
    header: list[Any] = ["trial", *data.axes, *facts]
    header += [f"validation {name}" for name in data.metrics]
    header += [f"test {role} {name}" for role in ROLES for name in data.metrics]

    @functools.cache
    def means(key: str) -> list[float | None]:
        ranks = data.ranks.get(key)
        return [ranks and float(metric_values(ranks, name).mean()) for name in data.metrics]

    lines = [header]
    for trial, record in sorted(data.records.items()):
        line = [trial, *(record.point.get(axis) for axis in data.axes)]
        line += [getattr(record, fact) for fact in facts]
        line += [record.metrics.get(name) for name in data.metrics]
        for role in ROLES:
            line += means(data.tested.get(trial, {}).get(role, ""))
        lines.append(line)
    return lines


def as_csv(lines: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV; what a spreadsheet would take for a formula is text."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([map(_cell, line) for line in lines])
    return buffer.getvalue()


def _cell(value: Any) -> str:
    """Numbers short; text that a spreadsheet would compute begins with an apostrophe."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"'{text}" if isinstance(value, str) and text[:1] in tuple("=+-@\t\r\n") else text


def as_json(data: SweepReportData, rows: Sequence[SettingRow]) -> dict[str, Any]:
    """All numbers of the report."""
    shared = data.shared
    return wording.rounded(
        {
            "title": data.title,
            "generated": data.generated,
            "status": data.status,
            "reason": data.reason,
            "metric": data.metric,
            "seeds": data.seeds,
            "resamples": data.resamples,
            "headline": [str(finding) for finding in headline(data, rows)],
            "notes": notes(data, rows),
            "requests": shared.requests,
            "requests_unshared": shared.unshared,
            "requests_sent": shared.sent,
            "dollars": shared.microusd / 1e6,
            "unit": data.unit,
            "replayed": data.replayed,
            "baselines": [
                {
                    "name": one.tested.name,
                    "settings": one.settings,
                    "evaluation": one.tested.keys[0],
                    "metrics": {n: asdict(e) for n, e in one.tested.estimates.items()},
                }
                for one in systems(rows)
                if one.tested.role == BASELINE
            ],
            "settings": [_setting_json(data, row) for row in rows],
            "unfinished": [
                {"trial": r.trial, "point": r.point, "status": r.status, "reason": r.reason}
                for _, r in sorted(data.records.items())
                if r.status != "complete"
            ],
        }
    )


def _setting_json(data: SweepReportData, row: SettingRow) -> dict[str, Any]:
    standing = row.standing
    found = data.bought.get(standing.setting.id)
    return {
        "setting": standing.setting.id,
        "label": row.label,
        "point": standing.setting.point,
        "state": standing.state,
        "dollars": data.microusd.get(standing.setting.id, 0) / 1e6,
        "rankings": found and {"answered": found.answered, "asked": found.asked},
        "validation": {
            name: {"mean": one.mean, "half_width": one.half_width, "by_seed": one.by_seed}
            for name, one in row.valid.items()
            if one.by_seed
        },
        "against_best": row.against and {**asdict(row.against), "p_holm": row.p_holm},
        "test": {
            role: {
                "metrics": {name: asdict(e) for name, e in one.estimates.items()},
                "by_seed": one.by_seed,
                "evaluations": one.keys,
            }
            for role, one in row.tested.items()
        },
        "gain": _compared(row.gain),
        "against_baseline": _compared(row.against_plain),
    }


def _compared(found: Comparison | None) -> dict[str, Any] | None:
    return found and {
        "second": found.second,
        **asdict(found.difference),
        "p_bootstrap_holm": found.p_bootstrap,
        "p_t_test_holm": found.p_t_test,
        "verdict": found.verdict,
    }
