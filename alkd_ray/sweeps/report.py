"""The report of a sweep: one page that needs nothing else, the same as Markdown, CSV and JSON.

A setting is ranked by its mean over seeds on the validation sessions. Test metrics are shown for
the finalists, the models beside them and plain counts; they were computed after the search. Equal
data gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from alkd_ray import __version__, artifacts
from alkd_ray.evaluation.metrics import names as names_of
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.evaluation.statistics import RESAMPLES_PER_DIFFERENCE
from alkd_ray.evaluation.wording import seconds
from alkd_ray.report import page_environment
from alkd_ray.stages import Context, Silent
from alkd_ray.sweeps import figures
from alkd_ray.sweeps.comparing import SettingRow, SweepReportData, analyse
from alkd_ray.sweeps.config import Sweep
from alkd_ray.sweeps.figures import Plot, Shown
from alkd_ray.sweeps.records import TrialRecord, short_names, value_text
from alkd_ray.sweeps.sentences import headline, notes
from alkd_ray.sweeps.shared import Shared, purchase_of
from alkd_ray.sweeps.standings import Standing
from alkd_ray.sweeps.systems import RUN_ROOT, systems
from alkd_ray.sweeps.tables import as_csv, as_json, finalist_lines, setting_lines, trial_lines
from alkd_ray.types import RunStatus

MOST_ROWS = 100  # of a table of the page, or of a role in one; all are in the CSV files
MOST_RESAMPLES = 20_000  # drawn unasked; enough for the correction of 500 finalists
STRATEGY = "selection.strategy"


def collect(
    sweep: Sweep,
    standings: Sequence[Standing],
    records: Mapping[str, TrialRecord],
    tested: Mapping[str, Mapping[str, str]],
    baselines: Mapping[str, Mapping[str, str]],
    shared: Shared,
    root: Path,
    status: RunStatus = "complete",
    reason: str = "",
) -> SweepReportData:
    """What a report shows of a sweep that ended; the ranks are read from below ``root``.

    Raises:
        InputError: an evaluation in ``tested`` or ``baselines`` is not there.
    """
    base = sweep.of({})
    configs = {one.setting.id: sweep.of(one.setting.point) for one in standings}
    prepared = {id_: shared.by_purchase.get(purchase_of(one)) for id_, one in configs.items()}
    storage = Context(base, root, Silent()).storage
    keys = {key for named in (*tested.values(), *baselines.values()) for key in named.values()}
    paid = {id_: found.microusd for id_, found in prepared.items() if found and found.microusd}
    simulated = all(configs[id_].llm.teacher == "simulated" for id_ in paid)
    asked = {configs[id_].llm.teacher for id_, found in prepared.items() if found and found.asked}
    return SweepReportData(
        title=sweep.config.name,
        generated=f"alkd_ray {__version__}, sweep {sweep.sweep_id}",
        config={**sweep.config.model_dump(exclude_none=True), "run": sweep.base},
        metric=sweep.config.metric,
        axes=tuple(sweep.config.over),
        seeds=tuple(sweep.seeds),
        cutoffs=tuple(base.evaluation.cutoffs),
        resamples=max(
            base.evaluation.resamples,
            min(RESAMPLES_PER_DIFFERENCE * (len(tested) // len(sweep.seeds)), MOST_RESAMPLES),
        ),
        standings=tuple(standings),
        records=dict(records),
        shared=shared,
        tested=dict(tested),
        baselines=dict(baselines),
        ranks={
            key: read_ranks(
                artifacts.found(root, "evaluation", key, storage).folder / "ranks.parquet"
            )
            for key in sorted(keys)
        },
        microusd=paid,
        bought={id_: found for id_, found in prepared.items() if found},
        unit="simulated USD" if paid and simulated else "USD",
        replayed=asked == {"replay"} and not shared.microusd,
        selecting=next(
            (name for name, axis in sweep.config.over.items() if STRATEGY in axis.all_fields(name)),
            "",
        ),
        status=status,
        reason=reason,
    )


def write(data: SweepReportData, folder: Path) -> None:
    """The page, the same as Markdown and JSON; settings, finalists and trials as CSV."""
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
        "systems": systems(rows, MOST_ROWS),
        "run_root": RUN_ROOT,
        "sessions": _sessions(finalists),
        "unfinished": unfinished,
        "nodes": _nodes(data.records.values()),
        "config": json.dumps(data.config, indent=1, ensure_ascii=False, default=str),
    }
    environment = page_environment()
    environment.filters["value"] = value_text
    page = environment.get_template("sweep.html").render(shown, figures=_figures(data, rows))
    artifacts.write_text(folder / "sweep.html", page + "\n")
    text = environment.get_template("sweep.md").render(shown)
    artifacts.write_text(folder / "sweep.md", text + "\n")
    artifacts.write_text(folder / "settings.csv", as_csv(setting_lines(data, rows)))
    artifacts.write_text(folder / "finalists.csv", as_csv(finalist_lines(rows)))
    artifacts.write_text(folder / "trials.csv", as_csv(trial_lines(data)))
    artifacts.write_json(folder / "metrics.json", as_json(data, rows))


def _figures(data: SweepReportData, rows: Sequence[SettingRow]) -> list[figures.Drawn]:
    """On the test sessions where all settings were tested, else on the validation sessions.

    The sweep's metric by the axes; that, ndcg and recall at the largest cutoff by the money.
    """
    found = figures.draw(_plot(data, rows, data.metric))
    for name in names_of([max(data.cutoffs)]):
        if name != data.metric and not name.startswith("mrr"):
            found += figures.money(_plot(data, rows, name))
    return found


def _plot(data: SweepReportData, rows: Sequence[SettingRow], name: str) -> Plot:
    whole = [row for row in rows if row.standing.is_whole and row.valid[name].by_seed]
    tested = bool(whole) and all(row.tested for row in whole)
    shown = []
    for row in whole:
        setting, width = row.standing.setting, row.valid[name].half_width
        mean, low, high = row.valid[name].mean, None, None
        if tested:
            found = row.tested["distilled"].estimates[name]
            mean, low, high = found.mean, found.low, found.high
        elif width is not None:
            low, high = max(mean - width, 0.0), min(mean + width, 1.0)
        dollars = data.microusd.get(setting.id, 0) / 1e6
        shown.append(Shown(setting.point, mean, low, high, dollars))
    students = {row.tested["student"].keys for row in whole} if tested else set()
    reference = None
    if len(students) == 1:
        reference = whole[0].tested["student"].estimates[name].mean
    split = "test" if tested else "validation"
    return Plot(shown, data.axes, f"{split} {name}", reference, data.unit, selecting=data.selecting)


def _sessions(finalists: Sequence[SettingRow]) -> list[int]:
    """Different numbers of test sessions, one as a rule."""
    return sorted(
        {next(iter(r.tested["distilled"].estimates.values())).sessions for r in finalists}
    )


def _nodes(records: Iterable[TrialRecord]) -> list[tuple[str, int, str]]:
    """Node, trials over there, what work they were."""
    found: dict[str, list[TrialRecord]] = {}
    for record in records:
        found.setdefault(record.node or "unknown", []).append(record)
    return [(node, len(inside), _work(inside)) for node, inside in sorted(found.items())]


def _work(records: Sequence[TrialRecord]) -> str:
    there = sum(record.reused for record in records)
    if there == len(records):
        return "nothing run, all were found"
    took = seconds(sum(record.seconds for record in records))
    return f"{took}; {there:,} were found" if there else took
