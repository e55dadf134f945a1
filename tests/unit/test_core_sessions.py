"""Windows, prefixes, splits, seeds and stage outputs, against naive code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alkd_ray import artifacts, seeds, sessions
from alkd_ray.types import SessionSet

session_lists = st.lists(
    st.lists(st.integers(0, 50), min_size=1, max_size=15), min_size=1, max_size=12
)


def build(lists: list[list[int]]) -> SessionSet:
    count = len(lists)
    split = sessions.positional_split(count)
    return sessions.from_lists(range(100, 100 + count), lists, [len(x) for x in lists], split)


@given(session_lists, st.integers(1, 12))
def test_windows_are_the_last_items_right_aligned(lists: list[list[int]], window: int) -> None:
    batch = sessions.windows(build(lists), window)
    for row, items in enumerate(lists):
        last = items[-window:]
        assert batch.items[row][batch.mask[row]].tolist() == last
        assert batch.mask[row].tolist() == [False] * (window - len(last)) + [True] * len(last)
        assert batch.targets[row] == len(items)


@given(session_lists, st.integers(1, 12))
def test_prefixes_equal_a_plain_loop(lists: list[list[int]], window: int) -> None:
    batch = sessions.prefixes(build(lists), window)
    expected = []
    for items in lists:
        whole = [*items, len(items)]
        expected += [(whole[:end][-window:], whole[end]) for end in range(1, len(whole))]
    found = [
        (batch.items[row][batch.mask[row]].tolist(), batch.targets[row])
        for row in range(len(batch))
    ]
    assert found == expected


@given(session_lists, st.randoms(use_true_random=False))
def test_take_and_rows_of_ids(lists: list[list[int]], random: object) -> None:
    whole = build(lists)
    rows = np.array(random.sample(range(len(lists)), len(lists)))  # type: ignore[attr-defined]
    taken = sessions.take(whole, rows)
    assert [taken.items_of(r).tolist() for r in range(len(rows))] == [lists[r] for r in rows]
    assert (sessions.rows_of_ids(taken, whole.ids[rows]) == np.arange(len(rows))).all()
    assert sessions.rows_of_ids(taken, np.array([5])).tolist() == [-1]


def test_the_fingerprint_sees_every_field() -> None:
    base = build([[1, 2], [3]])
    others = [
        build([[1, 2], [4]]),
        build([[1], [2, 3]]),
        sessions.from_lists([7, 8], [[1, 2], [3]], [2, 1], ["train", "train"]),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_random_split_has_exact_shares() -> None:
    split = sessions.random_split(1000, seeds.numpy_stream(1, "split"), (0.6, 0.2, 0.2))
    assert {name: int((split == name).sum()) for name in ("train", "valid", "test")} == {
        "train": 600,
        "valid": 200,
        "test": 200,
    }


def test_streams_are_independent_and_repeatable() -> None:
    assert seeds.derive(1, "a") != seeds.derive(1, "b") != seeds.derive(2, "b")
    first, again = (seeds.numpy_stream(1, "a").random(5) for _ in range(2))
    assert (first == again).all()
    torch_first, torch_again = (seeds.torch_stream(1, "a").initial_seed() for _ in range(2))
    assert torch_first == torch_again


def test_hashes_break_ties_whatever_the_order() -> None:
    ids = np.arange(100_000)
    hashes = seeds.hash_uniform(3, ids)
    assert len(np.unique(hashes)) == len(ids)
    assert (seeds.hash_uniform(3, ids[::-1]) == hashes[::-1]).all()
    shares = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16) / len(ids)
    assert np.abs(shares - 1 / 16).max() < 0.005


def _produce(root: Path, calls: list[int], **changes: object) -> artifacts.StageOutput:
    def make(folder: Path) -> None:
        calls.append(1)
        (folder / "out.txt").write_text("whole")

    given_values = {"version": 1, "inputs": {"a": "1"}, "settings": {"x": 1}, "seed": 1} | changes
    return artifacts.produce(root, "stage", make, **given_values)  # type: ignore[arg-type]


def test_an_output_is_made_once_and_again_when_anything_changes(tmp_path: Path) -> None:
    calls: list[int] = []
    first = _produce(tmp_path, calls)
    assert not first.reused
    assert _produce(tmp_path, calls).reused
    assert len(calls) == 1
    for change in (
        {"version": 2},
        {"inputs": {"a": "2"}},
        {"settings": {"x": 2}},
        {"seed": 2},
    ):
        assert _produce(tmp_path, calls, **change).key != first.key
    assert len(calls) == 5


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        artifacts.produce(tmp_path, "stage", fail, version=1, inputs={}, settings={})
    assert list((tmp_path / "stage").iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from alkd_ray import artifacts\n"
        "def make(folder):\n"
        "    (folder / 'half.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"artifacts.produce(Path({str(tmp_path)!r}), 'stage', make, version=1, inputs={{'a': '1'}},"
        " settings={'x': 1}, seed=1)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert killed.returncode == -9
    assert len(list((tmp_path / "stage").iterdir())) == 1
    output = _produce(tmp_path, [])
    assert [path.name for path in (tmp_path / "stage").iterdir()] == [output.key]
