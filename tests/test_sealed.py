"""What is kept is believed by its hash: a flipped bit, a zeroed block or another digit is noticed, and made again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from emkit import sealed
from emkit.files import read_json


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def folder(path):
    with sealed.sealed_dir(path) as part:
        (part / "deep").mkdir()
        (part / "deep" / "a.bin").write_bytes(bytes(range(200)))
        (part / "b.json").write_text('{"alpha": 0.125}')
    return path


def read(path):
    return read_json(path / "b.json")["alpha"]


def test_a_sealed_folder_reads_as_it_was_written(tmp_path):
    assert sealed.read_dir(tmp_path / "none", read) is None
    assert sealed.read_dir(folder(tmp_path / "kept"), read) == 0.125


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: flip(kept / "deep" / "a.bin"),
        lambda kept: (kept / "b.json").write_text('{"alpha": 0.925}'),  # other digits, and sound JSON
        lambda kept: (kept / "deep" / "a.bin").write_bytes(bytes(200)),
        lambda kept: (kept / "deep" / "a.bin").unlink(),
        lambda kept: (kept / "more.py").write_text("raise SystemExit"),
        lambda kept: (kept / sealed.SEAL).unlink(),
        lambda kept: (kept / sealed.SEAL).write_text("{}"),
    ],
)
def test_a_folder_that_is_not_as_it_was_written_counts_as_none(tmp_path, damage, capsys):
    kept = folder(tmp_path / "kept")
    damage(kept)
    assert sealed.read_dir(kept, read) is None
    assert capsys.readouterr().err.startswith(f"warning: {kept} is unreadable")


def test_tensors(tmp_path, capsys):
    path, tensors = tmp_path / "kept.safetensors", {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(4)}
    assert sealed.read_tensors(path) is None
    sealed.write_tensors(path, tensors)
    found = sealed.read_tensors(path)
    assert set(found) == set(tensors) and all(torch.equal(found[name], tensors[name]) for name in tensors)
    flip(path)
    assert sealed.read_tensors(path) is None and "unreadable" in capsys.readouterr().err
    sealed.write_tensors(path, tensors)
    save_file({**load_file(path), "a": torch.zeros(4)}, path)  # a sound file of other tensors
    assert sealed.read_tensors(path) is None


def test_values(tmp_path, capsys):
    path, value = tmp_path / "kept.json", {"alpha": [0.1, 1e-300, -0.0], "step": 3}
    assert sealed.read_value(path) is None
    sealed.write_value(path, value)
    assert sealed.read_value(path) == value
    path.write_text(path.read_text().replace("0.1", "0.7"))
    assert sealed.read_value(path) is None and "hash that was written with it" in capsys.readouterr().err
    for content in ("", "[]", "7", json.dumps({"value": 1}), json.dumps({"sha256": "", "value": 1})):
        path.write_text(content)
        assert sealed.read_value(path) is None
