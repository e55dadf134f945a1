"""A made-up run in the likeness of a real one, for the tests of the report."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from alkd_ray.config import RunConfig
from alkd_ray.evaluation.comparison import SystemRow
from alkd_ray.evaluation.composition import Composition
from alkd_ray.report import Cost, ReportData, SelectionView
from alkd_ray.types import Ranks

# name, role, dim, parameters, recall@10: a plain recommender is the best, as so often
SYSTEMS = (
    ("popularity", "baseline", None, None, 0.011),
    ("item-knn", "baseline", None, None, 0.060),
    ("sequential-rules", "baseline", None, None, 0.056),
    ("vsknn", "baseline", None, None, 0.055),
    ("teacher", "teacher", 100, 1_210_000, 0.040),
    ("student", "student", 10, 121_000, 0.024),
    ("distilled", "distilled", 10, 121_000, 0.035),
)


def ranks_of(
    rng: np.random.Generator, ease: np.ndarray, recall_at_10: float, num_items: int
) -> np.ndarray:
    """``[S]`` ranks, log-normal; half of their variance is the session's own."""
    spread = 2.6
    middle = np.log(10.5) - spread * norm.ppf(recall_at_10)
    noise = (ease + rng.normal(0, 1, len(ease))) / np.sqrt(2)
    return np.clip(np.exp(middle + spread * noise), 1, num_items).astype(np.int64)


def example(
    seeds: int = 3, sessions: int = 2465, systems: tuple = SYSTEMS, resamples: int = 2000
) -> ReportData:
    """Report data of ``seeds`` seeds; ``systems`` as in :data:`SYSTEMS`."""
    rng = np.random.default_rng(11)
    num_items, ids = 6_044, np.arange(9_000, 9_000 + sessions)
    ease = rng.normal(0, 1, sessions)
    rows = tuple(
        SystemRow(
            name,
            role,
            tuple(
                Ranks(ids, ranks_of(rng, ease, skill, num_items), num_items)
                for _ in range(1 if role == "baseline" else seeds)
            ),
            dim,
            parameters,
        )
        for name, role, dim, parameters, skill in systems
    )
    difficulty = rng.beta(2.2, 3.1, 7_395)
    chance = np.exp(3 * difficulty)
    picked = rng.choice(len(difficulty), 500, replace=False, p=chance / chance.sum())
    return ReportData(
        title="hetrec-strong",
        generated="alkd_ray 0.1.0, run hetrec-strong-1a2b3c4d",
        config=RunConfig(name="hetrec-strong", seeds=list(range(1, seeds + 1))).model_dump(),
        dataset={
            "name": "hetrec2011-ml",
            "source": "alkdrec, options {'dataset': 'hetrec2011-ml'}",
            "split_rule": "by position in the file: 60% train, 20% valid, 20% test",
            "damaged_lines": 0,
            "hash": "0123456789abcdef",
            "counts": {"sessions": 12_325, "items": num_items, "interactions": 98_211},
            "unseen_test_targets": 0.0361,
            "repeated_test_targets": 0.0,
        },
        num_items=num_items,
        rows=rows,
        cutoffs=(5, 10),
        resamples=resamples,
        seed=1,
        cost=Cost(0.4312, 1_234_567, 488, 12, 93.4, True, "simulated dollars: its own endpoint"),
        selection=SelectionView(
            strategy="alkdrec-exact",
            budget=500,
            notes={"support": 1_204, "min_gain_exact": 0.01429, "min_gain_paper": 0.01184},
            composition=Composition(
                cutoff=10,
                effective=171,
                similar=24,
                incorrect=297,
                unanswered=8,
                target_positions={"1–5": 120, "6–15": 108, "16–25": 61, "not ranked": 203},
                mean_overlap=0.127,
            ),
            difficulty=difficulty,
            selected=np.isin(np.arange(len(difficulty)), picked),
        ),
        curves={
            "teacher": curve(rng, 900, 0.060),
            "student": curve(rng, 1_300, 0.032),
            "distilled": curve(rng, 700, 0.055, start=0.031),
        },
        stage_seconds={"import": 1.2, "teacher": 84.0, "annotation": 93.4, "distilled": 3_720.0},
        outputs={"dataset": "import/5e0f", "teacher, seed 1": "pretrain/77aa"},
        notes=("8 of 500 rankings failed and were left out of the distillation.",),
    )


def curve(
    rng: np.random.Generator, steps: int, end: float, start: float = 0.002
) -> tuple[dict[str, float], ...]:
    """A history that rises to ``end`` and then stays."""
    at = np.arange(0, steps, 20)
    values = end - (end - start) * np.exp(-at / (steps / 4)) + rng.normal(0, end / 60, len(at))
    return tuple(
        {"step": int(step), "loss": 1.0, "metric": float(value), "seconds": step / 100}
        for step, value in zip(at, values, strict=True)
    )
