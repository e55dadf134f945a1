"""What a table or figure says in words."""

from __future__ import annotations

from collections.abc import Sequence

from alkd_ray.evaluation.wording import Finding, metric, signed
from alkd_ray.reproduction.cells import Analysis, Cell, Contrasted
from alkd_ray.reproduction.entries import Finished
from alkd_ray.reproduction.studies import Study

MAIN_METRIC = "ndcg@10"


def headline(study: Study, analysis: Analysis, finished: Sequence[Finished]) -> list[Finding]:
    """What stands at the top: the paper's claim, what became of it here, what limits it."""
    found = [Finding(f"The paper: {study.claim.rstrip('.')}")]
    found += _contrasts(study, analysis)
    found += _beside_the_paper(analysis)
    found += _teachers(analysis)
    found += _baselines(analysis)
    for one in finished:
        failed = [record for record in one.records.values() if record.status == "failed"]
        if failed:
            found.append(
                Finding(
                    f"On {one.dataset} {len(failed)} of {len(one.records)} trials failed",
                    "their cells are empty, the others stand; the reasons are below",
                )
            )
    return found


def _contrasts(study: Study, analysis: Analysis) -> list[Finding]:
    gaps = [gap for gap in analysis.contrasts if gap.comparison.metric == MAIN_METRIC]
    if not gaps:
        return [Finding("Nothing could be compared")]
    above = [gap for gap in gaps if gap.comparison.difference.mean > 0]
    below = [gap for gap in gaps if gap.comparison.difference.mean < 0]
    what = {
        "columns": f"{study.main} has the higher mean",
        "rows": f"{study.main} has the higher mean",
        "student": "The distilled student has the higher mean",
    }[study.contrast]
    numbers = f"the lower one in {len(below)}"
    return [
        Finding(
            f"Here: {what} in {len(above)} of {len(gaps)} comparisons in {MAIN_METRIC}", numbers
        ),
        _holding(gaps),
    ]


def _holding(gaps: Sequence[Contrasted]) -> Finding:
    holding = [gap for gap in gaps if gap.holds]
    if not holding:
        least = min(gap.comparison.difference.least_detectable for gap in gaps)
        return Finding(
            f"None of these {len(gaps)} differences is shown after Holm's correction",
            f"before it {sum(not gap.comparison.difference.covers_zero for gap in gaps)} leave out "
            f"0; the least that any could have shown with 80% power, uncorrected, is "
            f"{metric(least)}",
        )
    shown = [f"{_name(gap)} {signed(gap.comparison.difference.mean)}" for gap in holding]
    return Finding(
        f"{len(holding)} of these {len(gaps)} differences hold after Holm's correction",
        "; ".join(shown),
    )


def _name(gap: Contrasted) -> str:
    where = f"{gap.first.dataset}, {gap.first.row}"
    if gap.first.column == gap.second.column:
        return f"{where} against {gap.second.row} ({gap.first.column})"
    return f"{where}, {gap.first.column} against {gap.second.column}"


def _beside_the_paper(analysis: Analysis) -> list[Finding]:
    held = [cell for cell in analysis.cells.values() if cell.verdict]
    if not held:
        return []
    parts = []
    for kind in ("recall", "ndcg"):
        cells = [cell for cell in held if cell.metric.startswith(kind)]
        inside = sum(cell.verdict == "inside" for cell in cells)
        higher = sum(cell.verdict == "paper higher" for cell in cells)
        parts.append(
            f"{inside} of {len(cells)} {kind}s inside, {higher} above, "
            f"{len(cells) - inside - higher} below"
        )
    return [
        Finding(
            "The paper's numbers beside our 95% intervals: " + "; ".join(parts),
            "the paper's ndcg is held against the same quantity, which is no ndcg; its numbers are "
            "single runs and have an error of their own that these intervals do not count",
        )
    ]


def _teachers(analysis: Analysis) -> list[Finding]:
    pairs = [
        (teacher, student)
        for (dataset, row, column, name), teacher in analysis.cells.items()
        if column == "teacher" and name == MAIN_METRIC and row
        for student in [analysis.cells.get((dataset, row, "student", name))]
        if student is not None and student.ours and teacher.ours
    ]
    if not pairs:
        return []
    lower = [_where(teacher) for teacher, student in pairs if _mean(teacher) <= _mean(student)]
    claim = (
        f"The teacher's mean is above its student's in {len(pairs) - len(lower)} of {len(pairs)}"
    )
    return [Finding(claim + " pairs", f"not {'; '.join(lower)}" if lower else "")]


def _baselines(analysis: Analysis) -> list[Finding]:
    found = []
    for dataset in dict.fromkeys(cell.entry.dataset for cell in analysis.cells.values()):
        cells = [
            cell
            for cell in analysis.cells.values()
            if cell.entry.dataset == dataset and cell.metric == MAIN_METRIC and cell.ours
        ]
        plain = [cell for cell in cells if cell.entry.role == "baseline"]
        distilled = [cell for cell in cells if cell.entry.role == "distilled"]
        if plain and distilled:
            first, second = max(plain, key=_mean), max(distilled, key=_mean)
            word = "above" if _mean(first) > _mean(second) else "below"
            found.append(
                Finding(
                    f"On {dataset} the best plain count, {first.entry.column}, is {word} the best "
                    "distilled student",
                    f"{MAIN_METRIC} {metric(_mean(first))} against {metric(_mean(second))} "
                    f"({_where(second)}, {second.entry.column})",
                )
            )
    return found


def _mean(cell: Cell) -> float:
    return cell.ours.mean if cell.ours else 0.0


def _where(cell: Cell) -> str:
    return f"{cell.entry.dataset}, {cell.entry.row}"
