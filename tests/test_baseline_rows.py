"""Every training-free row from recipe to checkpoint folder: what is written, twice the same, however it is sharded."""

import json
import shutil

import pytest
import torch
from conftest import merge_row, opened, recipe_data, save_recipe
from memory import run
from safetensors.torch import load_file, save_file

from emkit import backbones
from emkit.checkpoints import Checkpoint
from emkit.methods import get
from emkit.task_vectors import TaskVectors

internvl = backbones.get("internvl")

ROWS = {
    "ties": {"density": 0.4, "scope": "tensor"},
    "ta_dare": {"drop": 0.5},
    "ties_dare": {},
    "tsv": {},
    "iso_c": {},
    "wudi": {"iterations": 3},
    "wudi_v2": {"iterations": 3, "form": "qwen2_vl"},
}


@pytest.fixture
def data(tiny_zoo):
    found = recipe_data(tiny_zoo)
    found["rows"] = [{"id": name, "label": name, "method": name, "options": options} for name, options in ROWS.items()]
    return found


def scale_of(row):
    return 0.7 if "scale" in get(row).needs else None


@pytest.mark.parametrize("row", list(ROWS))
def test_a_row_writes_its_method_and_the_base_elsewhere(data, tiny_zoo, tmp_path, row):
    report = merge_row(save_recipe(tmp_path, data), row, 2, tmp_path / row / "model", tmp_path / "cache", scale_of(row))
    base, *experts = opened(tiny_zoo)
    vectors = TaskVectors(base, dict(zip(("VQA", "Chart"), experts)), internvl.merged_names)
    wanted = run(row, vectors, scale_of(row), 2, **ROWS[row])
    found = Checkpoint.open(tmp_path / row / "model")
    assert {name: found.read(name).double().numpy().tolist() for name in found.names} == {
        name: value.tolist() for name, value in wanted.items()
    }
    assert report["scale"] == (scale_of(row) or 1.0) and report["merged_tensors"] == 24
    for name in set(base.names) - set(vectors.names):
        assert torch.equal(found.read(name), base.read(name))
    assert any(not torch.equal(found.read(name), base.read(name)) for name in vectors.names)


@pytest.mark.parametrize("row", list(ROWS))
def test_twice_the_same_bytes_and_also_from_shards(data, tiny_zoo, tmp_path, row):
    first = merge_row(save_recipe(tmp_path, data), row, 0, tmp_path / "a" / "model", tmp_path / "cache", scale_of(row))
    zoo = tmp_path / "zoo"
    shutil.copytree(tiny_zoo, zoo)
    shard(zoo / "Chart")
    data["models"]["experts"]["Chart"] = str(zoo / "Chart")
    second = merge_row(save_recipe(tmp_path, data), row, 0, tmp_path / "b" / "model", tmp_path / "cache", scale_of(row))
    assert first["model_sha256"] == second["model_sha256"]
    random = merge_row(save_recipe(tmp_path, data), row, 1, tmp_path / "c" / "model", tmp_path / "cache", scale_of(row))
    assert (random["model_sha256"] != first["model_sha256"]) == get(row).random


def shard(folder):
    """Split a checkpoint into two files, every other tensor in each."""
    tensors = load_file(folder / "model.safetensors")
    names, weight_map = sorted(tensors, reverse=True), {}
    for i in range(2):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[i::2]}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[i::2], file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
