"""Checkpoints: what is written is read back bit for bit, and damage is one clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alkd_ray import registry
from alkd_ray.errors import InputError
from alkd_ray.recommenders import Backbone
from alkd_ray.seeds import torch_stream
from alkd_ray.training import checkpoint

NUM_ITEMS, DIM = 23, 4
OPTIONS = {"position_weights": True, "tanh_layer": True, "item_bias": True}


def make(name: str = "fpmc", options: dict[str, bool] | None = None) -> Backbone:
    return registry.build(
        "recommenders",
        name,
        OPTIONS if options is None else options,
        num_items=NUM_ITEMS,
        dim=DIM,
        generator=torch_stream(1, "t"),
    )


def save(
    folder: Path, model: Backbone, name: str = "fpmc", options: dict[str, bool] | None = None
) -> None:
    checkpoint.save(
        folder,
        model,
        backbone_name=name,
        options=OPTIONS if options is None else options,
        dim=DIM,
        num_items=NUM_ITEMS,
        metrics={"ndcg@10": 0.25, "best_step": 40},
        extra={"role": "student"},
    )


@pytest.mark.parametrize("name", ["fpmc", "stamp", "attmix"])
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    model = make(name, {"item_bias": True})
    save(tmp_path / "c", model, name, {"item_bias": True})
    again = checkpoint.load(tmp_path / "c")
    items = torch.randint(NUM_ITEMS, (7, 5), generator=torch_stream(2, "t"))
    mask = torch.ones(7, 5, dtype=torch.bool)
    assert torch.equal(again.score(items, mask), model.score(items, mask))
    assert not again.training  # type: ignore[attr-defined]
    facts = checkpoint.read_config(tmp_path / "c")
    assert facts["metrics"] == {"ndcg@10": 0.25, "best_step": 40}
    assert facts["extra"] == {"role": "student"}


def test_no_file_of_a_checkpoint_can_run_code(tmp_path: Path) -> None:
    save(tmp_path / "c", make())
    names = sorted(file.name for file in (tmp_path / "c").iterdir())
    assert names == ["config.json", "weights.safetensors"]
    assert set(load_file(tmp_path / "c" / "weights.safetensors")) == set(
        make().state_dict()  # type: ignore[attr-defined]
    )


def test_a_new_checkpoint_replaces_the_old_one_whole(tmp_path: Path) -> None:
    save(tmp_path / "c", make())
    (tmp_path / "c" / "left over").write_text("x")
    save(tmp_path / "c", make("fpmc", {}), options={})
    assert sorted(file.name for file in tmp_path.rglob("*")) == [
        "c",
        "config.json",
        "weights.safetensors",
    ]
    assert checkpoint.read_config(tmp_path / "c")["options"] == {}


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "c", make())
    before = (tmp_path / "c" / "weights.safetensors").read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(
            tmp_path / "c",
            make(),
            backbone_name="fpmc",
            options=OPTIONS,
            dim=DIM,
            num_items=NUM_ITEMS,
            metrics={("not", "json"): 1.0},  # type: ignore[dict-item]
        )
    assert (tmp_path / "c" / "weights.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def cut_weights(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def garbage_weights(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"\x80\x04not safetensors")


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        change(weights)
        save_file(weights, folder / "weights.safetensors")

    return damage


def change_config(**changed: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        facts = json.loads((folder / "config.json").read_text())
        facts.update(changed)
        kept = {name: value for name, value in facts.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "cannot be read as safetensors.*train the model again"),
        (garbage_weights, "cannot be read as safetensors"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "cannot be read as safetensors"),
        (change_weights(lambda w: w.pop("mixing")), "do not fit backbone 'fpmc'.*mixing"),
        (change_weights(lambda w: w.update(more=torch.ones(2))), "do not fit.*more"),
        (
            change_weights(lambda w: w.update(input_item_embedding=torch.ones(NUM_ITEMS, 3))),
            "do not fit.*input_item_embedding",
        ),
        (change_config(dim=5), "do not fit"),
        (change_config(num_items=24), "do not fit"),
        (change_config(backbone="stamp", options={}), "do not fit"),
        (change_config(backbone="gru"), "unknown name 'gru'"),
        (change_config(backbone=7), "backbone is 7"),
        (change_config(dim="ten"), "dim is 'ten'"),
        (change_config(num_items=0), "num_items is 0"),
        (change_config(dim=True), "dim is True"),
        (change_config(options=[1]), r"options is \[1\]"),
        (change_config(options={"strange": 1}), "strange: no such field"),
        (change_config(dim=None, num_items=None), "lacks dim, num_items"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a checkpoint"),
        (lambda folder: (folder / "config.json").write_text("[1, 2]"), "is not a checkpoint"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "is not a checkpoint"),
        (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint"),
    ],
)
def test_damage_is_one_clear_sentence(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    save(tmp_path / "c", make())
    damage(tmp_path / "c")
    with pytest.raises(InputError, match=message):
        checkpoint.load(tmp_path / "c")


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "c", make())
    change_weights(lambda w: w["mixing"].__setitem__((0, 0), torch.nan))(tmp_path / "c")
    with pytest.raises(InputError, match=r"mixing.*not a finite number"):
        checkpoint.load(tmp_path / "c")
