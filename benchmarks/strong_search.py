"""The search behind the preset ``strong``: settings of the student, judged on validation alone.

python benchmarks/strong_search.py            the search (HetRec, fpmc, d = 10)
python benchmarks/strong_search.py --presets  paper and strong as they ship

The search changes one or a few settings of a first guess at a time and trains each for the same
few steps with one seed. The test split is not read. Sessions are the published HetRec ones.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import published_data
import torch

from alkd_ray import config, registry
from alkd_ray.config import ModelConfig, TrainingConfig
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import rank_targets
from alkd_ray.recommenders import Recommender
from alkd_ray.seeds import torch_stream
from alkd_ray.sessions import of_split
from alkd_ray.training import examples, loop, soft_labels
from alkd_ray.training.examples import Rows
from alkd_ray.types import Dataset, SessionSet

WINDOW = 10
FIRST_GUESS: dict[str, Any] = {
    "loss": "softmax",
    "examples": "prefixes",
    "soft_labels": ["sequential-rules", "item-knn"],
    "soft_weight": 0.7,
    "batch_size": 512,
    "learning_rate": 0.01,
    "schedule": "cosine",
    "validate_every": 100,
    "patience": 100,
    "metric": "ndcg@10",
}
ALL_OPTIONS = {"position_weights": True, "tanh_layer": True, "item_bias": True}
NO_TANH = {"position_weights": True, "item_bias": True}
TRIALS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("first guess", {}, ALL_OPTIONS),
    ("hard targets alone", {"soft_labels": []}, ALL_OPTIONS),
    ("no options", {}, {}),
    ("no tanh layer", {}, NO_TANH),
    ("no item bias", {}, {"position_weights": True, "tanh_layer": True}),
    ("no position weights", {}, {"tanh_layer": True, "item_bias": True}),
    ("soft weight .5", {"soft_weight": 0.5}, ALL_OPTIONS),
    ("soft weight .9", {"soft_weight": 0.9}, ALL_OPTIONS),
    ("rate .02", {"learning_rate": 0.02}, ALL_OPTIONS),
    ("rate .05", {"learning_rate": 0.05}, ALL_OPTIONS),
    ("rate .02, soft weight .9", {"learning_rate": 0.02, "soft_weight": 0.9}, ALL_OPTIONS),
    ("rate .02, no tanh layer", {"learning_rate": 0.02}, NO_TANH),
]


def values(model: Recommender, sessions: SessionSet) -> tuple[float, float]:
    """recall@10 and ndcg@10."""
    ranks = rank_targets(model, sessions, WINDOW)
    recall, ndcg = (float(metric_values(ranks, f"{name}@10").mean()) for name in ("recall", "ndcg"))
    return recall, ndcg


def search(data: Dataset, steps: int) -> None:
    """Prints one line a trial."""
    train, valid = of_split(data.sessions, "train"), of_split(data.sessions, "valid")
    num_items = len(data.catalogue)
    started = time.process_time()
    rows = examples.of_sessions(train, "prefixes", WINDOW)
    models = soft_labels.fitted(FIRST_GUESS["soft_labels"], train, num_items)
    labels = soft_labels.of_rows(models, rows, num_items)
    print(
        f"{data.name}: {len(rows)} prefixes; soft labels in {time.process_time() - started:.0f} s"
    )
    with_labels = Rows(rows.windows, rows.window_of, rows.positives, rows.weights, labels)
    print(f"{'trial':<28}{'recall@10':>10}{'ndcg@10':>9}{'best step':>11}{'cpu s':>7}")
    for name, changed, options in TRIALS:
        training = TrainingConfig(**{**FIRST_GUESS, **changed, "max_steps": steps})
        model = registry.build(
            "recommenders",
            "fpmc",
            options,
            num_items=num_items,
            dim=10,
            generator=torch_stream(1, "initial weights", "search"),
        )
        chosen = with_labels if training.soft_labels else rows
        started = time.process_time()
        loop.start_bias_from_popularity(model, chosen)
        result = loop.train_rows(model, chosen, valid, training, WINDOW, 1, purpose="pretraining")
        seconds = time.process_time() - started
        recall, ndcg = values(model, valid)
        print(
            f"{name:<28}{recall:>10.4f}{ndcg:>9.4f}{result.best_step:>11}{seconds:>7.0f}",
            flush=True,
        )


def compare_presets(data: Dataset, backbone: str, steps: int) -> None:
    """Prints what both presets' students and teachers reach on validation."""
    train, valid = of_split(data.sessions, "train"), of_split(data.sessions, "valid")
    print(f"{data.name}, {backbone}; validation split")
    print(
        f"{'preset':<8}{'model':<9}{'d':>4}{'recall@10':>10}{'ndcg@10':>9}{'steps':>7}{'cpu s':>7}"
    )
    for preset in ("paper", "strong"):
        models = {role: {"backbone": backbone} for role in ("teacher", "student")}
        made = config.make({"preset": preset, **models}, f"preset {preset}")
        for role in ("student", "teacher"):
            settings: ModelConfig = getattr(made, role)
            training = settings.training
            if steps:
                training = training.model_copy(update={"max_steps": steps})
            model = registry.build(
                "recommenders",
                backbone,
                settings.options,
                num_items=len(data.catalogue),
                dim=settings.dim,
                generator=torch_stream(1, "initial weights", role),
            )
            started = time.process_time()
            result = loop.fit(model, train, valid, training, WINDOW, 1)
            seconds = time.process_time() - started
            recall, ndcg = values(model, valid)
            print(
                f"{preset:<8}{role:<9}{settings.dim:>4}{recall:>10.4f}{ndcg:>9.4f}"
                f"{result.steps:>7}{seconds:>7.0f}",
                flush=True,
            )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    published_data.add_argument(parser)
    parser.add_argument(
        "--steps", type=int, default=None, help="steps of a trial; 0 = the preset's"
    )
    parser.add_argument("--presets", action="store_true", help="compare the presets as they ship")
    parser.add_argument("--backbone", default="fpmc", choices=("fpmc", "stamp", "attmix"))
    parser.add_argument("--dataset", default="hetrec2011-ml", choices=list(published_data.FOLDERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = published_data.read(given.data, given.dataset)
    if given.presets:
        compare_presets(data, given.backbone, given.steps)
    else:
        search(data, given.steps or 400)


if __name__ == "__main__":
    main()
