"""What a table or figure says in words."""

from __future__ import annotations

from collections.abc import Sequence

from alkd_ray.evaluation.wording import Finding, metric, signed
from alkd_ray.reproduction.cells import Analysis, Cell, Contrasted, Entry
from alkd_ray.reproduction.entries import Finished
from alkd_ray.reproduction.studies import Study

MAIN_METRIC = "ndcg@10"
MOST_NAMED = 5
_FAMILY = "for all of a dataset in one metric"


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
    return found + _lacking(analysis)


def _lacking(analysis: Analysis) -> list[Finding]:
    """Settings without a result whose trials did not fail: they were dropped, or not tested."""
    entries = {id(cell.entry): cell.entry for cell in analysis.cells.values()}.values()
    those = [one for one in entries if one.missing and "failed" not in one.missing]
    if not those:
        return []
    shown = [f"{_where(one)}, {one.column}: {one.missing}" for one in those[:MOST_NAMED]]
    more = [f"{len(those) - MOST_NAMED} more"] if len(those) > MOST_NAMED else []
    return [Finding(f"{len(those)} settings have no result", "; ".join([*shown, *more]))]


def _contrasts(study: Study, analysis: Analysis) -> list[Finding]:
    gaps = [gap for gap in analysis.contrasts if gap.comparison.metric == MAIN_METRIC]
    if not gaps:
        return [Finding("Nothing could be compared")]
    kinds = {
        "the student before distillation": lambda gap: gap.second.role == "student",
        "the teacher": lambda gap: gap.second.role == "teacher",
        "our own variant of it": lambda gap: _is_variant(study, gap),
        "the others": lambda gap: gap.second.role == "distilled" and not _is_variant(study, gap),
    }
    counts = []
    for against, belongs in kinds.items():
        those = [gap for gap in gaps if belongs(gap)]
        higher = sum(gap.comparison.difference.mean > 0 for gap in those)
        if those:
            counts.append(f"against {against} in {higher} of {len(those)}")
    what = {
        "columns": f"{study.main} has the higher mean {MAIN_METRIC}",
        "rows": f"{study.rows} {study.main} has the higher mean {MAIN_METRIC}",
        "student": f"the distilled student has the higher mean {MAIN_METRIC}",
    }[study.contrast]
    lacking = analysis.not_compared
    numbers = f"{lacking} more could not be taken: one of the two has no result" if lacking else ""
    return [Finding(f"Here {what} " + ", ".join(counts), numbers), _holding(gaps)]


def _is_variant(study: Study, gap: Contrasted) -> bool:
    """The paper's method with another policy is no other's method."""
    own = study.main.lower().removesuffix("-paper")
    return study.contrast == "columns" and gap.second.column.lower().startswith(own)


def _holding(gaps: Sequence[Contrasted]) -> Finding:
    holding = [gap for gap in gaps if gap.holds]
    if holding:
        shown = [f"{_name(gap)} {signed(gap.comparison.difference.mean)}" for gap in holding]
        return Finding(
            f"{len(holding)} of these {len(gaps)} differences hold"
            f"{'s' if len(holding) == 1 else ''} after Holm's correction {_FAMILY}",
            "; ".join(shown),
        )
    least = [gap.comparison.difference.least_detectable for gap in gaps]
    seen = sum(not gap.comparison.difference.covers_zero for gap in gaps)
    numbers = f"without it {seen} leave out 0"
    if sizes := sorted(size for size in least if size is not None):
        numbers += (
            "; the least true difference that each would have shown with 80% power, without "
            f"correction, goes from {metric(sizes[0])} to {metric(sizes[-1])}"
        )
    return Finding(
        f"None of these {len(gaps)} differences is shown after Holm's correction {_FAMILY}",
        numbers,
    )


def _name(gap: Contrasted) -> str:
    where = _where(gap.first)
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
            "the paper's ndcg is held against the same quantity, which is no ndcg. Its numbers are "
            "single runs, on the same test sessions: for another run the intervals are wide, for "
            "the luck of one run, which they do not count, narrow",
        )
    ]


def _teachers(analysis: Analysis) -> list[Finding]:
    gaps = [gap for gap in analysis.teachers if gap.comparison.metric == MAIN_METRIC]
    if not gaps:
        return []
    higher = [gap for gap in gaps if gap.comparison.difference.mean > 0]
    holding = [gap for gap in higher if gap.holds]
    lower = [_where(gap.first) for gap in gaps if gap not in higher]
    numbers = f"the difference holds after Holm's correction in {len(holding)}"
    return [
        Finding(
            f"The teacher's mean {MAIN_METRIC} is above its student's in {len(higher)} of "
            f"{len(gaps)} pairs",
            numbers + (f"; not with {'; '.join(lower)}" if lower else ""),
        )
    ]


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
                    f"On {dataset} the mean of the best plain count, {first.entry.column}, is "
                    f"{word} that of the best distilled student",
                    f"{MAIN_METRIC} {metric(_mean(first))} against {metric(_mean(second))} "
                    f"({_where(second.entry)}, {second.entry.column})",
                )
            )
    return found


def _mean(cell: Cell) -> float:
    return cell.ours.mean if cell.ours else 0.0


def _where(entry: Entry) -> str:
    return ", ".join(filter(None, (entry.dataset, entry.row)))
