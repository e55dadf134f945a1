"""The report of a sweep: one page that needs nothing else, the same as Markdown, CSV and JSON.

A setting is ranked by its mean over seeds on the validation sessions. Test metrics are shown for
the finalists alone; they were computed after the search. Equal data gives equal bytes.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from scipy import stats

from alkd_ray import __version__, artifacts
from alkd_ray.evaluation import wording
from alkd_ray.evaluation.comparison import Comparison
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.metrics import names as names_of
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.evaluation.statistics import LEVEL, Estimate, bootstrap, holm, paired_t_test
from alkd_ray.evaluation.wording import FEW_SEEDS, Finding, metric, signed
from alkd_ray.stages import Context, Silent
from alkd_ray.sweeps import figures
from alkd_ray.sweeps.config import Sweep
from alkd_ray.sweeps.figures import Plot, Shown, short_names, value_text
from alkd_ray.sweeps.records import Setting, TrialRecord
from alkd_ray.sweeps.shared import Shared, purchase_of
from alkd_ray.sweeps.standings import Standing
from alkd_ray.types import Ranks, RunStatus

ROLES = ("distilled", "student", "teacher")
MOST_ROWS = 100  # of a table of the page; all are in the CSV files
_EXACT = 1e-12  # differences that vary less are the same in every seed
_BATCH_ROWS = 1_500  # series of seeds that are resampled at a time


@dataclass(frozen=True, slots=True)
class SweepReportData:
    """All that a sweep's report shows.

    Attributes:
        title: name of the sweep.
        generated: what made it (program, version, sweep).
        config: the sweep's file.
        metric: that ranks the settings, on the validation sessions.
        axes: dotted fields that vary.
        seeds: of every setting.
        cutoffs: k of recall and ndcg.
        resamples: bootstrap resamples.
        standings: the settings, best first.
        records: trial -> what became of it.
        shared: what was prepared and bought.
        tested: trial of a finalist -> role -> key in ``ranks``.
        ranks: key -> ranks of the test sessions.
        microusd: setting -> what its rankings and hints cost, those of all seeds.
        unit: of the money, ``USD`` or ``simulated USD``.
        status: how the sweep ended.
        reason: why, when it is not complete.
    """

    title: str
    generated: str
    config: Mapping[str, Any]
    metric: str
    axes: tuple[str, ...]
    seeds: tuple[int, ...]
    cutoffs: tuple[int, ...]
    resamples: int
    standings: tuple[Standing, ...]
    records: Mapping[str, TrialRecord]
    shared: Shared
    tested: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    microusd: Mapping[str, int] = field(default_factory=dict)
    unit: str = "USD"
    status: RunStatus = "complete"
    reason: str = ""

    @property
    def metrics(self) -> list[str]:
        """Those of the cutoffs, and the sweep's own."""
        return list(dict.fromkeys([*names_of(self.cutoffs), self.metric]))

    def label(self, setting: Setting) -> str:
        """For people: ``budget=100 strategy=random``."""
        names = short_names(list(setting.point))
        return " ".join(f"{names[axis]}={value_text(v)}" for axis, v in setting.point.items())


@dataclass(frozen=True, slots=True)
class SeedTest:
    """A paired difference over seeds, best setting - another one.

    Attributes:
        mean: of the differences.
        half_width: of its 95% t-interval; None with one seed, or without spread.
        p_value: of the paired t-test, two-sided, not corrected; None where it says nothing.
        seeds: number of pairs.
    """

    mean: float
    half_width: float | None
    p_value: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class Tested:
    """A finalist's model on the test sessions.

    Attributes:
        role: ``distilled``, ``student`` or ``teacher``.
        keys: of its ranks, by seed; equal ones are the same models.
        estimates: metric -> mean and interval.
        by_seed: seed -> the sweep's metric.
    """

    role: str
    keys: tuple[str, ...]
    estimates: dict[str, Estimate]
    by_seed: dict[int, float]


@dataclass(slots=True)
class SettingRow:
    """A setting in the report.

    Attributes:
        standing: by the sweep's metric.
        label: for people.
        valid: metric -> standing.
        against: difference from the best setting; None for that itself, and without every seed.
        p_holm: of that difference, corrected for all settings that are compared.
        tested: role -> on the test sessions; {} unless a finalist.
        gain: distilled - student on the test sessions, corrected for all finalists.
    """

    standing: Standing
    label: str
    valid: dict[str, Standing]
    against: SeedTest | None = None
    p_holm: float | None = None
    tested: dict[str, Tested] = field(default_factory=dict)
    gain: Comparison | None = None


def collect(
    sweep: Sweep,
    standings: Sequence[Standing],
    records: Mapping[str, TrialRecord],
    tested: Mapping[str, Mapping[str, str]],
    shared: Shared,
    root: Path,
    status: RunStatus = "complete",
    reason: str = "",
) -> SweepReportData:
    """What a report shows of a sweep that ended; the ranks are read from below ``root``.

    Raises:
        InputError: an evaluation in ``tested`` is not there.
    """
    base = sweep.of({})
    configs = {one.setting.id: sweep.of(one.setting.point) for one in standings}
    prepared = {id_: shared.by_purchase.get(purchase_of(one)) for id_, one in configs.items()}
    storage = Context(base, root, Silent()).storage
    keys = {key for by_role in tested.values() for key in by_role.values()}
    paid = {id_: found.microusd for id_, found in prepared.items() if found and found.microusd}
    simulated = all(configs[id_].llm.teacher == "simulated" for id_ in paid)
    return SweepReportData(
        title=sweep.config.name,
        generated=f"alkd_ray {__version__}, sweep {sweep.sweep_id}",
        config={**sweep.config.model_dump(exclude_none=True), "run": sweep.base},
        metric=sweep.config.metric,
        axes=tuple(sweep.config.over),
        seeds=tuple(sweep.seeds),
        cutoffs=tuple(base.evaluation.cutoffs),
        resamples=base.evaluation.resamples,
        standings=tuple(standings),
        records=dict(records),
        shared=shared,
        tested=dict(tested),
        ranks={
            key: read_ranks(
                artifacts.found(root, "evaluation", key, storage).folder / "ranks.parquet"
            )
            for key in sorted(keys)
        },
        microusd=paid,
        unit="simulated USD" if paid and simulated else "USD",
        status=status,
        reason=reason,
    )


def write(data: SweepReportData, folder: Path) -> None:
    """``sweep.html``, ``sweep.md``, ``settings.csv``, ``trials.csv`` and ``metrics.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = analyse(data)
    finalists = [row for row in rows if row.tested]
    names = short_names(data.axes)
    unfinished = [r for _, r in sorted(data.records.items()) if r.status != "complete"]
    shown = {
        "data": data,
        "names": names,
        "rows": rows,
        "most_rows": MOST_ROWS,
        "headline": headline(data, rows),
        "notes": notes(data, rows),
        "finalists": finalists,
        "systems": _systems(rows),
        "sessions": _sessions(finalists),
        "unfinished": unfinished,
        "nodes": _nodes(data.records.values()),
        "config": json.dumps(data.config, indent=1, ensure_ascii=False, default=str),
    }
    environment = _environment()
    page = environment.get_template("sweep.html").render(shown, figures=_figures(data, rows))
    artifacts.write_text(folder / "sweep.html", page + "\n")
    text = environment.get_template("sweep.md").render(shown)
    artifacts.write_text(folder / "sweep.md", text + "\n")
    artifacts.write_text(folder / "settings.csv", _csv(_setting_lines(data, rows)))
    artifacts.write_text(folder / "trials.csv", _csv(_trial_lines(data)))
    artifacts.write_json(folder / "metrics.json", _json(data, rows))


def analyse(data: SweepReportData) -> list[SettingRow]:
    """The settings with their tests, best first."""
    rows = []
    for standing in data.standings:
        trials = [data.records.get(f"{standing.setting.id}-{seed}") for seed in standing.by_seed]
        complete = [record for record in trials if record is not None]
        valid = {
            name: replace(
                standing,
                by_seed={r.seed: r.metrics[name] for r in complete if name in r.metrics},
            )
            for name in data.metrics
        }
        rows.append(SettingRow(standing, data.label(standing.setting), valid))
    whole = [row for row in rows if row.standing.is_whole]
    for row in whole[1:]:
        row.against = over_seeds(whole[0].standing, row.standing)
    known = [row for row in whole[1:] if row.against and row.against.p_value is not None]
    p_values = [row.against.p_value or 0.0 for row in known if row.against]
    for row, corrected in zip(known, holm(p_values), strict=True):
        row.p_holm = float(corrected)
    _measure(data, rows)
    return rows


def over_seeds(best: Standing, other: Standing) -> SeedTest:
    """The paired t-test over the seeds that both have."""
    seeds = [seed for seed in best.by_seed if seed in other.by_seed]
    first, second = (
        np.array([one.by_seed[seed] for seed in seeds])[None, :] for one in (best, other)
    )
    difference = (first - second)[0]
    mean = float(difference.mean())
    if len(seeds) < 2 or np.ptp(difference) < _EXACT:
        return SeedTest(mean if abs(mean) > _EXACT else 0.0, None, None, len(seeds))
    error = float(difference.std(ddof=1)) / len(seeds) ** 0.5
    width = error * float(stats.t.ppf(0.5 + LEVEL / 2, len(seeds) - 1))
    return SeedTest(mean, width, paired_t_test(first, second).p_value, len(seeds))


def _measure(data: SweepReportData, rows: Sequence[SettingRow]) -> None:
    """Fills in what finalists have: intervals over seeds and sessions, and the gains."""
    groups: dict[tuple[int, int], list[tuple[SettingRow, dict[str, tuple[str, ...]]]]] = {}
    for row in rows:
        trials = [data.tested.get(f"{row.standing.setting.id}-{seed}") for seed in data.seeds]
        if all(trials):
            keys = {role: tuple(t[role] for t in trials if t and role in t) for role in ROLES}
            shape = (len(trials), len(data.ranks[keys["distilled"][0]].ranks))
            groups.setdefault(shape, []).append((row, keys))
    for (seeds, _), group in groups.items():
        size = max(1, _BATCH_ROWS // (seeds * len(data.metrics) * len(ROLES)))
        for start in range(0, len(group), size):
            _measure_batch(data, group[start : start + size])
    gains = [row.gain for row in rows if row.gain]
    corrected = holm([gain.p_bootstrap for gain in gains])
    corrected_t = holm([gain.p_t_test for gain in gains])
    for row, p, p_t in zip(filter(lambda r: r.gain, rows), corrected, corrected_t, strict=True):
        assert row.gain is not None
        row.gain = replace(row.gain, p_bootstrap=float(p), p_t_test=float(p_t))


def _measure_batch(
    data: SweepReportData, batch: Sequence[tuple[SettingRow, dict[str, tuple[str, ...]]]]
) -> None:
    series = {
        (keys, name): np.stack([metric_values(data.ranks[key], name) for key in keys])  # [R, S]
        for _, by_role in batch
        for keys in by_role.values()
        for name in data.metrics
    }
    place = {cell: number for number, cell in enumerate(series)}
    resampled = bootstrap(list(series.values()), data.resamples, data.seeds[0])
    for row, by_role in batch:
        for role, keys in by_role.items():
            means = series[keys, data.metric].mean(1)
            row.tested[role] = Tested(
                role,
                keys,
                {name: resampled.estimate(place[keys, name]) for name in data.metrics},
                dict(zip(data.seeds, map(float, means), strict=True)),
            )
        first, second = ((by_role[role], data.metric) for role in ("distilled", "student"))
        difference = resampled.difference(place[first], place[second])
        t_test = paired_t_test(series[first], series[second])
        row.gain = Comparison(
            row.label, "student", data.metric, difference, difference.p_value, t_test.p_value
        )


def headline(data: SweepReportData, rows: Sequence[SettingRow]) -> list[Finding]:
    """What the report says at its top."""
    whole = [row for row in rows if row.standing.is_whole]
    found = []
    if not whole:
        found.append(Finding("No setting has a value for every seed, so none can be called best"))
    else:
        best = whole[0]
        width = best.standing.half_width
        count = len(data.seeds)
        numbers = f"validation {data.metric} {metric(best.standing.mean)}, one seed, no interval"
        if width is not None:
            low, high = best.standing.mean - width, best.standing.mean + width
            numbers = (
                f"validation {data.metric} {metric(best.standing.mean)}, 95% interval of the mean "
                f"over {count} seeds {signed(low).lstrip('+')} to {signed(high).lstrip('+')}"
            )
        found.append(Finding(f"Best setting by validation: {best.label}", numbers))
        found += _runner_up(data, whole)
        found += _on_test(data, rows, best)
    return found + _money(data)


def _runner_up(data: SweepReportData, whole: Sequence[SettingRow]) -> list[Finding]:
    if len(whole) < 2 or whole[1].against is None:
        return []
    test, name = whole[1].against, f"The runner-up, {whole[1].label},"
    numbers = f"{data.metric} lower by {metric(test.mean)}"
    if test.seeds < 2:
        claim = f"{name} cannot be told from it: with one seed there is no test over seeds"
    elif test.p_value is None or test.half_width is None:
        same = "did exactly as well" if test.mean == 0 else "is lower by the same amount"
        claim = f"{name} {same} in each of {test.seeds} seeds, of which a t-test says nothing"
    else:
        low, high = test.mean - test.half_width, test.mean + test.half_width
        numbers += (
            f", 95% interval of the difference {signed(low)} to {signed(high)}; paired t-test over "
            f"{test.seeds} seeds, p = {wording.p_value(test.p_value)}, not corrected"
        )
        is_told = test.p_value < 1 - LEVEL
        claim = f"{name} is below it" if is_told else f"{name} cannot be told from it"
        if not is_told and test.seeds < FEW_SEEDS:
            numbers += (
                f"; {test.seeds} seeds are few: with this spread only a difference above "
                f"{metric(test.half_width)} would have been told"
            )
    found = [Finding(claim, numbers)]
    known = [row.p_holm for row in whole if row.p_holm is not None]
    if len(known) > 1:
        untold = sum(p >= 1 - LEVEL for p in known)
        claim = f"{untold} of {len(known)} other settings cannot be told from the best"
        if not untold:
            claim = f"All {len(known)} other settings are below the best"
        found.append(Finding(claim, "paired t-tests over seeds, after Holm's correction"))
    return found


def _on_test(data: SweepReportData, rows: Sequence[SettingRow], best: SettingRow) -> list[Finding]:
    found = []
    if best.gain is not None:
        gap = best.gain.difference
        word = "above" if gap.mean > 0 else "below"
        claim = f"On the test sessions it is {word} the student it started from"
        if gap.covers_zero:
            claim = "On the test sessions no difference is shown from the student it started from"
        elif best.gain.p_bootstrap >= 1 - LEVEL:
            claim += ", though not after Holm's correction for all finalists"
        ours = {role: best.tested[role].estimates[data.metric] for role in ROLES}
        numbers = "; ".join(
            f"{role} {metric(one.mean)} ({metric(one.low)} to {metric(one.high)})"
            for role, one in ours.items()
        )
        numbers = f"test {data.metric}: {numbers}; distilled - student {signed(gap.mean)}, "
        numbers += f"95% {signed(gap.low)} to {signed(gap.high)}, over {ours['distilled'].covers}"
        found.append(Finding(claim, numbers))
    means = [r.tested["distilled"].estimates[data.metric].mean for r in rows if r.tested]
    if len(means) > 1:
        found.append(
            Finding(
                f"The {len(means)} finalists reach {metric(min(means))} to {metric(max(means))} "
                f"in test {data.metric}",
                "picking one by these numbers would be picking on the test sessions",
            )
        )
    return found


def _money(data: SweepReportData) -> list[Finding]:
    shared = data.shared
    if not shared.unshared:
        return [Finding("No rankings were read: nothing was asked or paid")]
    saved = 1 - shared.requests / shared.unshared
    return [
        Finding(
            f"{shared.requests:,} requests for rankings serve all settings; "
            f"it would have been {shared.unshared:,} without sharing",
            f"{100 * saved:.0f}% saved; {shared.sent:,} sent when the sweep was last run, hints "
            "included, the others answered from the store",
        ),
        Finding(f"Rankings and hints cost {shared.microusd / 1e6:,.4f} {data.unit}"),
    ]


def notes(data: SweepReportData, rows: Sequence[SettingRow]) -> list[str]:
    """What limits the numbers."""
    said = []
    if data.status != "complete":
        said.append(f"The sweep ended {data.status}: {data.reason}")
    states = [record.status for record in data.records.values()]
    if failed := states.count("failed"):
        said.append(
            f"{failed} of {len(states)} trials failed; they are listed below. A setting with a "
            "failed trial is not compared with others; all else stands."
        )
    if dropped := states.count("dropped"):
        said.append(f"{dropped} of {len(states)} trials were ended early by the scheduler.")
    whole, seeds = sum(row.standing.is_whole for row in rows), len(data.seeds)
    if rows and whole < len(rows):
        said.append(f"{len(rows) - whole} of {len(rows)} settings are not whole: not in figures.")
    if seeds == 1:
        said.append("One seed: another training run may differ by more than any interval here.")
    elif seeds < FEW_SEEDS:
        said.append(f"{seeds} seeds are few; use at least {FEW_SEEDS} to tell settings apart.")
    if whole > 1:
        said.append(
            f"The best of {whole} settings is the best by luck as well: its validation mean errs "
            "on the high side. Its test metrics do not."
        )
    finalists = sum(bool(row.tested) for row in rows)
    enough = round(2 * finalists / (1 - LEVEL))
    if finalists > 1 and data.resamples < enough:
        said.append(
            f"With {data.resamples:,} resamples no gain can pass Holm's correction for "
            f"{finalists} finalists; set evaluation.resamples to {enough:,} or more."
        )
    return said


def _figures(data: SweepReportData, rows: Sequence[SettingRow]) -> list[figures.Drawn]:
    """On the test sessions where all settings were tested, else on the validation sessions."""
    whole = [row for row in rows if row.standing.is_whole]
    tested = bool(whole) and all(row.tested for row in whole)
    shown = []
    for row in whole:
        setting, width = row.standing.setting, row.standing.half_width
        mean, low, high = row.standing.mean, None, None
        if tested:
            found = row.tested["distilled"].estimates[data.metric]
            mean, low, high = found.mean, found.low, found.high
        elif width is not None:
            low, high = max(mean - width, 0.0), min(mean + width, 1.0)
        dollars = data.microusd.get(setting.id, 0) / 1e6
        shown.append(Shown(setting.point, mean, low, high, dollars))
    students = {row.tested["student"].keys for row in whole} if tested else set()
    reference = None
    if len(students) == 1:
        reference = whole[0].tested["student"].estimates[data.metric].mean
    split = "test" if tested else "validation"
    return figures.draw(Plot(shown, data.axes, f"{split} {data.metric}", reference, data.unit))


def _systems(rows: Sequence[SettingRow]) -> list[tuple[str, Tested]]:
    """Rows of the test table: each finalist, then the different students and teachers once."""
    finalists = [row for row in rows if row.tested]
    found = [(row.label, row.tested["distilled"]) for row in finalists]
    for role in ROLES[1:]:
        groups: dict[tuple[str, ...], list[SettingRow]] = {}
        for row in finalists:
            groups.setdefault(row.tested[role].keys, []).append(row)
        for group in groups.values():
            label = group[0].label
            if len(groups) == 1:
                label = "of all finalists" if len(group) > 1 else f"of {label}"
            elif len(group) > 1:
                label = f"of {label} and {len(group) - 1} more"
            found.append((label, group[0].tested[role]))
    return found


def _sessions(finalists: Sequence[SettingRow]) -> list[int]:
    """Different numbers of test sessions, one as a rule."""
    return sorted(
        {next(iter(r.tested["distilled"].estimates.values())).sessions for r in finalists}
    )


def _nodes(records: Iterable[TrialRecord]) -> list[tuple[str, int, float]]:
    """Node, trials over there, seconds of work."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record.node or "unknown", []).append(record.seconds)
    return [(node, len(seconds), sum(seconds)) for node, seconds in sorted(found.items())]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alkd_ray"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": metric,
        "signed": signed,
        "count": wording.count,
        "p_value": wording.p_value,
        "seconds": wording.seconds,
        "cell": wording.markdown_cell,
        "value": value_text,
    }
    return environment


def _setting_lines(data: SweepReportData, rows: Sequence[SettingRow]) -> list[list[Any]]:
    header: list[Any] = ["place", "setting", *data.axes, "state", "seeds"]
    header += ["dollars", "below best", "p, Holm"]
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
        line += [row.against.mean if row.against else None, row.p_holm]
        for name in data.metrics:
            line += [row.valid[name].mean, row.valid[name].half_width]
        for role in ROLES if row.tested else ():
            for name in data.metrics:
                one = row.tested[role].estimates[name]
                line += [one.mean, one.low, one.high]
        lines.append(line + [None] * (len(header) - len(line)))
    return lines


def _trial_lines(data: SweepReportData) -> list[list[Any]]:
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


def _csv(lines: Sequence[Sequence[Any]]) -> str:
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


def _json(data: SweepReportData, rows: Sequence[SettingRow]) -> dict[str, Any]:
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
    gain = row.gain and {
        **asdict(row.gain.difference),
        "p_bootstrap_holm": row.gain.p_bootstrap,
        "p_t_test_holm": row.gain.p_t_test,
        "verdict": row.gain.verdict,
    }
    return {
        "setting": standing.setting.id,
        "label": row.label,
        "point": standing.setting.point,
        "state": standing.state,
        "dollars": data.microusd.get(standing.setting.id, 0) / 1e6,
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
            }
            for role, one in row.tested.items()
        },
        "gain": gain,
    }
