"""What a sweep's report says in words."""

from __future__ import annotations

from collections.abc import Sequence

from alkd_ray.evaluation import wording
from alkd_ray.evaluation.statistics import LEVEL
from alkd_ray.evaluation.wording import FEW_SEEDS, Finding, metric, signed
from alkd_ray.sweeps.comparing import ROLES, SettingRow, SweepReportData


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
    found += _beside_plain_counts(data, rows, best)
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


def _beside_plain_counts(
    data: SweepReportData, rows: Sequence[SettingRow], best: SettingRow
) -> list[Finding]:
    """The best setting's student against the best plain count, and how the others stand to it."""
    compared = best.against_plain
    if compared is None:
        return []
    gap, what = compared.difference, wording.plain_count(compared.second)
    count, ours = (
        one.estimates[data.metric].mean
        for one in (best.plain[compared.second], best.tested["distilled"])
    )
    claim = f"{what[0].upper()}{what[1:]}, beats the best setting's student"
    if gap.covers_zero:
        claim = f"No difference is shown between the best setting's student and {what}"
    elif gap.mean > 0:
        claim = f"The best setting's student beats {what}"
    if not gap.covers_zero:
        claim += wording.correction(compared)
    if gap.high < 0 and best.tested["teacher"].estimates[data.metric].mean < count:
        claim += "; its mean is above the teacher's too"
    numbers = (
        f"test {data.metric} {metric(ours)} against {metric(count)}; difference "
        f"{signed(gap.mean)}, 95% interval {signed(gap.low)} to {signed(gap.high)}"
    )
    all_compared = [row.against_plain for row in rows if row.against_plain]
    if len(all_compared) > 1:
        below = sum(one.difference.mean < 0 for one in all_compared)
        numbers += (
            f"; {below} of the {len(all_compared)} finalists have a lower mean than the best plain "
            "count"
        )
    return [Finding(claim, numbers)]


def _money(data: SweepReportData) -> list[Finding]:
    shared = data.shared
    if not shared.unshared:
        return [Finding("No rankings were read: nothing was asked or paid")]
    if data.replayed:
        return [
            Finding(
                "Recorded rankings were replayed: nothing was asked or paid",
                f"{shared.requests:,} of them serve all settings; it would have been "
                f"{shared.unshared:,} without sharing",
            )
        ]
    saved = 1 - shared.requests / shared.unshared
    return [
        Finding(
            f"{shared.requests:,} requests for rankings serve all settings; "
            f"it would have been {shared.unshared:,} without sharing",
            f"{100 * saved:.0f}% saved; {shared.sent:,} requests, hints included, were sent when "
            "the sweep was last run",
        ),
        Finding(f"Rankings and hints cost {shared.microusd / 1e6:,.4f} {data.unit}"),
    ]


def notes(data: SweepReportData, rows: Sequence[SettingRow]) -> list[str]:
    """What limits the numbers."""
    said = []
    if data.status != "complete":
        said.append(f"The sweep ended {data.status}: {data.reason}")
    said += _too_few_rankings(data, rows)
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


def _too_few_rankings(data: SweepReportData, rows: Sequence[SettingRow]) -> list[str]:
    """Settings that were compared on a part of what they asked for."""
    known = {row.label: data.bought.get(row.standing.setting.id) for row in rows}
    asked = {label: one for label, one in known.items() if one is not None and one.asked}
    short = {label: one for label, one in asked.items() if one.answered < one.asked}
    if not short:
        return []
    label, one = min(short.items(), key=lambda found: found[1].answered / found[1].asked)
    return [
        f"{len(short)} of {len(asked)} settings have fewer rankings than they asked for, "
        f"{label} the smallest part: {one.answered:,} of {one.asked:,}. They are compared as they "
        "are; settings.csv counts the rankings of each."
    ]
