"""Large files are read once for their hash, and again as soon as anybody has written to them."""

import os

import pytest
import torch
from safetensors.torch import save_file

from emkit import checkpoints, hashes
from emkit.checkpoints import Checkpoint
from emkit.hashes import sha256_tensors


@pytest.fixture
def read(monkeypatch, tmp_path):
    """A list that grows with every checkpoint that is read whole; all files count as large."""
    found = []

    def counted(tensors):
        found.append(1)
        return sha256_tensors(tensors)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 0)
    monkeypatch.setattr(checkpoints, "sha256_tensors", counted)
    return found


def written(folder, value):
    folder.mkdir(exist_ok=True)
    tensors = {"a": torch.full((3, 2), value), "b": torch.zeros(4)}
    save_file(tensors, folder / "model.safetensors")
    return sha256_tensors(sorted(tensors.items()))


def test_a_checkpoint_is_read_once(tmp_path, read):
    expected = written(tmp_path / "model", 1.0)
    assert [Checkpoint.open(tmp_path / "model").sha256() for _ in range(3)] == [expected] * 3
    assert len(read) == 1


def test_a_file_that_was_written_to_is_read_again_even_with_its_old_time(tmp_path, read):
    """Same size, same inode, and the time of its change set back: the inode's own time tells."""
    before = written(tmp_path / "model", 1.0)
    file = tmp_path / "model" / "model.safetensors"
    assert Checkpoint.open(tmp_path / "model").sha256() == before
    state, content = file.stat(), file.read_bytes()
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([content[-1] ^ 1]))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (state.st_mtime_ns, state.st_size)
    assert Checkpoint.open(tmp_path / "model").sha256() != before and len(read) == 2


def test_a_part_of_a_checkpoint_has_a_hash_of_its_own(tmp_path, read):
    whole = written(tmp_path / "model", 1.0)
    opened = Checkpoint.open(tmp_path / "model")
    assert opened.sha256() == whole != opened.without(["b"]).sha256()


def test_a_damaged_or_unwritable_cache_costs_time_alone(tmp_path, read, monkeypatch):
    expected = written(tmp_path / "model", 1.0)
    Checkpoint.open(tmp_path / "model").sha256()
    (file,) = (tmp_path / "cache" / "emkit" / "hashes").iterdir()
    for damage in ("", "[", '"short"', "7"):
        file.write_text(damage)
        assert Checkpoint.open(tmp_path / "model").sha256() == expected
    assert len(read) == 5
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Checkpoint.open(tmp_path / "model").sha256() == expected and len(read) == 6


def test_small_files_are_read_each_time(tmp_path, read, monkeypatch):
    monkeypatch.setattr(hashes, "LARGE", 2**30)
    expected = written(tmp_path / "model", 1.0)
    assert [Checkpoint.open(tmp_path / "model").sha256() for _ in range(2)] == [expected] * 2 and len(read) == 2
    assert not (tmp_path / "cache").exists()
