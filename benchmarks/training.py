"""Time of a training step against the published loop's, and what our training reaches.

python benchmarks/training.py        ms per step of both, and their ratio
python benchmarks/training.py --own  recall of the paper preset's models, one seed, and ms of a
                                     validation: all ranks, and as far as the metric looks

The published arithmetic (``published_loop.py``) runs in the same process, in turn with ours, on
one thread. Times are medians of processor time, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_data
import torch
from published_loop import PublishedLoop

from alkd_ray import config, registry
from alkd_ray.config import ModelConfig
from alkd_ray.evaluation.first_ranks import first_ranks
from alkd_ray.evaluation.metrics import cutoff_of, metric_values
from alkd_ray.evaluation.ranks import rank_targets
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import torch_stream
from alkd_ray.sessions import of_split
from alkd_ray.training import examples, loop
from alkd_ray.training.stepper import Stepper
from alkd_ray.types import Dataset

WINDOW = 10
CASES = [  # backbone, loss (AttMix: on Games pairwise, on HetRec BCE), least ratio wanted
    ("fpmc", "pairwise", 30),
    ("stamp", "pairwise", 10),
    ("attmix", "pairwise", 10),
    ("attmix", "sampled_bce", 10),
]
ROUNDS_OF_VALIDATION = 5
BACKBONES = ("fpmc", "stamp", "attmix")
DIMS = (10, 100)
OWN_WANTED = {  # recall@5, recall@10 of an implementation made before this one
    ("hetrec2011-ml", "fpmc", "student"): (0.0073, 0.0126),
    ("hetrec2011-ml", "fpmc", "teacher"): (0.0150, 0.0207),
    ("hetrec2011-ml", "stamp", "student"): (0.0077, 0.0142),
    ("hetrec2011-ml", "stamp", "teacher"): (0.0146, 0.0191),
    ("amazon-games", "fpmc", "student"): (0.0393, 0.0537),
    ("amazon-games", "fpmc", "teacher"): (0.0562, 0.0816),
    ("amazon-games", "stamp", "student"): (0.0304, 0.0433),
    ("amazon-games", "stamp", "teacher"): (0.0490, 0.0642),
}


def make(backbone: str, num_items: int, dim: int, seed: int = 1) -> Backbone:
    """A fresh backbone with the options that the paper preset gives it."""
    options = config.make({"preset": "paper", "student": {"backbone": backbone}}).student.options
    generator = torch_stream(seed, "initial weights", "benchmark")
    return registry.build(
        "recommenders", backbone, options, num_items=num_items, dim=dim, generator=generator
    )


def medians_in_turn(tasks: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median processor time (ms) of each task, run in turn; the first round is left out."""
    times = np.empty((rounds + 1, len(tasks)))
    for turn in range(rounds + 1):
        for column, task in enumerate(tasks):
            started = time.process_time()
            task()
            times[turn, column] = time.process_time() - started
    return list(np.median(times[1:], axis=0) * 1e3)


def compare_steps(data: Dataset, backbones: list[str], rounds: int, ours_per_round: int) -> None:
    """Prints ms per step and the ratio for each backbone and size."""
    train, num_items = of_split(data.sessions, "train"), len(data.catalogue)
    rows = examples.of_sessions(train, "last", WINDOW)
    preset = config.make({"preset": "paper"}).student.training
    print(f"{data.name}: {len(train)} training sessions, {num_items} items; batch 1,024")
    print("backbone  loss           d  published ms   ours ms   ratio  goal")
    for backbone, loss, goal in CASES:
        for dim in DIMS if backbone in backbones else ():
            training = preset.model_copy(update={"loss": loss})
            stepper = Stepper(make(backbone, num_items, dim), rows, training, 1, "benchmark")
            theirs = PublishedLoop(backbone, loss, dim, train, num_items, 1024)

            def ours(stepper: Stepper = stepper) -> None:
                for _ in range(ours_per_round):
                    stepper.step(want_value=False)

            published, mine = medians_in_turn([theirs.step, ours], rounds)
            mine /= ours_per_round
            print(
                f"{backbone:<10}{loss:<12}{dim:>4}{published:>14.1f}{mine:>10.2f}"
                f"{published / mine:>8.1f}{goal:>6}",
                flush=True,
            )


def train_own(data_folder: Path, datasets: list[str], backbones: list[str]) -> None:
    """Prints what one seed of the paper preset reaches on the test split."""
    preset = config.make({"preset": "paper"}, "preset paper")
    print(
        "dataset        model           recall@5 (before)  recall@10 (before)  steps  cpu s  "
        "all validation ranks ms  as far as the metric looks ms"
    )
    for (name, backbone, role), before in OWN_WANTED.items():
        if name not in datasets or backbone not in backbones:
            continue
        data = published_data.read(data_folder, name)
        test, valid = of_split(data.sessions, "test"), of_split(data.sessions, "valid")
        model_config: ModelConfig = getattr(preset, role)
        model = make(backbone, len(data.catalogue), model_config.dim)
        started = time.process_time()
        result = loop.fit(
            model,
            of_split(data.sessions, "train"),
            valid,
            model_config.training,
            WINDOW,
            seed=1,
        )
        seconds = time.process_time() - started
        ranks = rank_targets(model, test, WINDOW)
        cutoff = cutoff_of(model_config.training.metric)
        every, first = medians_in_turn(
            [
                lambda m=model, v=valid: rank_targets(m, v, WINDOW),
                lambda m=model, v=valid, k=cutoff: first_ranks(m, v, WINDOW, k),
            ],
            ROUNDS_OF_VALIDATION,
        )
        five, ten = (float(metric_values(ranks, f"recall@{k}").mean()) for k in (5, 10))
        print(
            f"{name:<15}{backbone + ' ' + role:<16}{five:>8.4f} ({before[0]:.4f})"
            f"{ten:>11.4f} ({before[1]:.4f}){result.steps:>10}{seconds:>7.0f}"
            f"{every:>25.0f}{first:>31.0f}",
            flush=True,
        )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    published_data.add_argument(parser)
    parser.add_argument("--own", action="store_true", help="train the paper preset's models")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES)
    parser.add_argument("--datasets", nargs="+", default=list(published_data.FOLDERS))
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.own:
        train_own(given.data, given.datasets, given.backbones)
    else:
        data = published_data.read(given.data, "hetrec2011-ml")
        compare_steps(data, given.backbones, given.rounds, ours_per_round=5)


if __name__ == "__main__":
    main()
