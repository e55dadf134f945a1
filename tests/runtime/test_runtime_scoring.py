"""Ray Data scores as the plain loop does, whatever the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from alkd_ray import registry, scoring, seeds, sessions
from alkd_ray.training import checkpoint

NUM_ITEMS, COUNT = 200, 700


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    from alkd_ray.runtime import cluster

    cluster.ensure_ray(num_cpus=2)
    yield
    cluster.shutdown()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, scoring.ScoreJob]:
    folder = tmp_path_factory.mktemp("scoring")
    rng = np.random.default_rng(5)
    lists = [rng.integers(0, NUM_ITEMS, rng.integers(1, 15)).tolist() for _ in range(COUNT)]
    split = ["train"] * COUNT
    train = sessions.from_lists(rng.permutation(COUNT), lists, [0] * COUNT, split)
    for role, dim in (("teacher", 16), ("student", 4)):
        backbone = registry.build(
            "recommenders",
            "fpmc",
            {},
            num_items=NUM_ITEMS,
            dim=dim,
            generator=seeds.torch_stream(1, role),
        )
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.mul_(100)  # far from 0, so that sessions differ
        checkpoint.save(
            folder / role,
            backbone,
            backbone_name="fpmc",
            options={},
            dim=dim,
            num_items=NUM_ITEMS,
            metrics={},
            extra={},
        )
    found = {}
    for kind in ("consistency", "overlap"):
        scoring.write_shards(train, 10, folder / kind, shards=3)
        found[kind] = scoring.ScoreJob(folder / kind, folder / "teacher", folder / "student", kind)
    return found


@pytest.mark.parametrize("kind", ["consistency", "overlap"])
def test_ray_equals_the_plain_loop(
    jobs: dict[str, scoring.ScoreJob], kind: str, tmp_path: Path
) -> None:
    from alkd_ray.runtime import scoring as ray_scoring

    ray_scoring.score(jobs[kind], tmp_path / "ray.parquet")
    scoring.score_in_process(jobs[kind], tmp_path / "loop.parquet")
    by_ray = pq.read_table(tmp_path / "ray.parquet")
    by_loop = pq.read_table(tmp_path / "loop.parquet").sort_by("session_id")
    assert by_ray["session_id"].to_pylist() == list(range(COUNT))
    np.testing.assert_allclose(
        by_ray["difficulty"].to_numpy(), by_loop["difficulty"].to_numpy(), atol=1e-6
    )
    assert len(set(by_loop["difficulty"].to_pylist())) > 5


def test_long_windows_reach_the_teacher_in_order(tmp_path: Path) -> None:
    window, count = 120, 30
    rng = np.random.default_rng(6)
    lists = [rng.integers(0, NUM_ITEMS, rng.integers(90, 130)).tolist() for _ in range(count)]
    train = sessions.from_lists(range(count), lists, [0] * count, ["train"] * count)
    teacher = registry.build(
        "recommenders",
        "stamp",
        {},
        num_items=NUM_ITEMS,
        dim=8,
        generator=seeds.torch_stream(1, "teacher"),
    )
    checkpoint.save(
        tmp_path / "teacher",
        teacher,
        backbone_name="stamp",
        options={},
        dim=8,
        num_items=NUM_ITEMS,
        metrics={},
        extra={},
    )
    scoring.write_shards(train, window, tmp_path / "shards", shards=2)
    job = scoring.ScoreJob(tmp_path / "shards", tmp_path / "teacher", Path(), "consistency")
    scoring.score_in_process(job, tmp_path / "loop.parquet")
    found = pq.read_table(tmp_path / "loop.parquet")["difficulty"].to_numpy()
    batch = sessions.windows(train, window)
    with torch.inference_mode():
        encoded = teacher.encode(torch.from_numpy(batch.items), torch.from_numpy(batch.mask))
        scores = torch.sigmoid(encoded @ teacher.item_table().T).numpy()
    expected = [
        -scores[row, items[mask]].mean()
        for row, (items, mask) in enumerate(zip(batch.items, batch.mask, strict=True))
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
