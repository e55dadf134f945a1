"""The analysis behind a report: what is compared, what is said, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from alkd_ray.errors import InputError
from alkd_ray.evaluation import wording
from alkd_ray.evaluation.comparison import Analysis, Role, SystemRow, analyse
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.statistics import holm
from alkd_ray.types import Ranks
from tests.report_example import example

CUTOFFS = (5, 10)


def row(name: str, role: Role, *ranks: list[int]) -> SystemRow:
    ids = np.arange(len(ranks[0]))
    return SystemRow(name, role, tuple(Ranks(ids, np.array(r), 99) for r in ranks), None, None)


def constant(name: str, role: Role, hits: int, seeds: int = 1) -> SystemRow:
    """Rank 1 in the first ``hits`` of 400 sessions, a miss in the others."""
    return row(name, role, *[[1] * hits + [50] * (400 - hits)] * seeds)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    data = example(seeds=3)
    return analyse(data.rows, data.cutoffs, 1_000, seed=1)


def test_means_hits_and_order(analysis: Analysis) -> None:
    data = example(seeds=3)
    assert [m.system.name for m in analysis.systems] == [r.name for r in data.rows]
    assert analysis.metrics == ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr@10")
    for measured in analysis.systems:
        ranks = np.stack([r.ranks for r in measured.system.ranks])
        assert measured.hits["recall@10"] == tuple((ranks <= 10).sum(1))
        assert measured.estimates["recall@10"].mean == pytest.approx((ranks <= 10).mean())
        for estimate in measured.estimates.values():
            assert estimate.low <= estimate.mean <= estimate.high
        is_baseline = measured.system.role == "baseline"
        assert measured.estimates["mrr@10"].covers == (
            "sessions" if is_baseline else "seeds and sessions"
        )


def test_the_best_baseline_is_compared(analysis: Analysis) -> None:
    means = {
        m.system.name: m.estimates["ndcg@10"].mean
        for m in analysis.systems
        if m.system.role == "baseline"
    }
    assert analysis.best_baseline == max(means, key=lambda name: means[name])
    assert [c.second for c in analysis.comparisons[::5]] == [
        "student",
        "teacher",
        analysis.best_baseline,
    ]
    assert {c.first for c in analysis.comparisons} == {"distilled"}


def test_tests_are_corrected_as_one_family(analysis: Analysis) -> None:
    assert [c.p_bootstrap for c in analysis.comparisons] == list(
        holm([c.difference.p_value for c in analysis.comparisons])
    )
    plain = []
    for c in analysis.comparisons:
        first, second = (
            np.mean([metric_values(r, c.metric) for r in analysis.named(name).system.ranks], axis=0)
            for name in (c.first, c.second)
        )
        plain.append(stats.ttest_rel(first, second).pvalue)
    np.testing.assert_allclose([c.p_t_test for c in analysis.comparisons], holm(plain), rtol=1e-6)


def test_a_better_count_is_named_at_the_top() -> None:
    systems = [
        constant("popularity", "baseline", 4),
        constant("sequential-rules", "baseline", 160),
        constant("teacher", "teacher", 90),
        constant("student", "student", 30),
        constant("distilled", "distilled", 100),
    ]
    said = [str(finding) for finding in wording.verdicts(analyse(systems, CUTOFFS, 2_000, 0))]
    assert said[0].startswith("The distilled student is above the student it started from (")
    assert "hits@10 100 against 30 of 400" in said[0]
    assert said[2].startswith(
        "A count of co-occurrences, sequential-rules, beats the distilled student; "
        "its mean is above that of the teacher and the student too (ndcg@10 0.2500 against 0.4000;"
    )


def test_a_student_that_beats_the_counts() -> None:
    systems = [
        constant("popularity", "baseline", 20),
        constant("student", "student", 90),
        constant("distilled", "distilled", 100),
    ]
    said = [str(finding) for finding in wording.verdicts(analyse(systems, CUTOFFS, 2_000, 0))]
    assert said[1].startswith("The distilled student beats a count of occurrences, popularity (")


def test_an_interval_over_zero_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    ranks = [list(rng.integers(1, 60, 300)) for _ in range(2)]
    found = analyse(
        [row("student", "student", ranks[0]), row("distilled", "distilled", ranks[1])],
        CUTOFFS,
        1_000,
        0,
    )
    main = next(c for c in found.comparisons if c.metric == "ndcg@10")
    assert main.difference.covers_zero
    assert main.verdict == "no difference shown"
    (said,) = map(str, wording.verdicts(found))
    assert said.startswith("No difference shown between the distilled student and the student")
    assert f"one of {main.difference.least_detectable:.4f} would have been seen" in said


def test_what_holms_correction_takes_back() -> None:
    """With 100 resamples no p-value is small enough for ten comparisons; the report says so."""
    systems = [constant("student", "student", 10), constant("distilled", "distilled", 60)]
    few = analyse(systems, CUTOFFS, 100, 0)
    assert {c.verdict for c in few.comparisons} == {"higher, uncorrected"}
    assert "set evaluation.resamples to 200 or more" in wording.cautions(few)[-1]
    assert "though not after Holm's correction" in str(wording.verdicts(few)[0])
    enough = analyse(systems, CUTOFFS, 200, 0)
    assert {c.verdict for c in enough.comparisons} == {"higher"}
    assert not any("resamples" in said for said in wording.cautions(enough))


def test_seeds_are_counted_and_cautioned() -> None:
    said = {}
    for seeds in (1, 3, 5):
        found = analyse([constant("student", "student", 9, seeds)], CUTOFFS, 100, 0)
        said[seeds] = (wording.intervals_cover(found), " ".join(wording.cautions(found)))
    assert "cover sessions only" in said[1][0]
    assert "One seed" in said[1][1]
    assert "cover both seeds and sessions" in said[3][0]
    assert "3 seeds are few" in said[3][1]
    assert said[5][1] == ""


def test_recall_cap_is_said() -> None:
    said = wording.recall_cap({"unseen_test_targets": 0.27, "repeated_test_targets": 0.02})
    assert "27.0% of the test targets occur in no training session" in str(said[0])
    assert "recall 0.730 at most" in str(said[0])
    assert "2.0% of the test targets stand in their own session's input" in str(said[1])
    assert wording.recall_cap({}) == []


def test_what_does_not_pair_is_refused() -> None:
    student = constant("student", "student", 5)
    with pytest.raises(InputError, match="no ranks"):
        analyse([], CUTOFFS, 100, 0)
    with pytest.raises(InputError, match="same name"):
        analyse([student, student], CUTOFFS, 100, 0)
    with pytest.raises(InputError, match="no test sessions"):
        analyse([row("student", "student", [])], CUTOFFS, 100, 0)
    moved = replace(student.ranks[0], session_ids=student.ranks[0].session_ids + 1)
    with pytest.raises(InputError, match="teacher was not tested on the sessions"):
        analyse([student, replace(student, name="teacher", ranks=(moved,))], CUTOFFS, 100, 0)
    with pytest.raises(InputError, match="was not tested on the sessions and seeds"):
        analyse(
            [constant("a", "student", 5, seeds=2), constant("b", "teacher", 5, seeds=3)],
            CUTOFFS,
            100,
            0,
        )
