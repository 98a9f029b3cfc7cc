"""Streaming shards: safetensors' own bytes, a killed merge goes on where it was, memory bounded by blocks."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from emkit import shards
from emkit.bench import child
from emkit.bench.models import Shape, write_models
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.files import PLAN, resumable_dir
from emkit.methods import get
from emkit.saving import write_checkpoint
from emkit.shards import DTYPES, TensorInfo


def some_tensors() -> dict[str, torch.Tensor]:
    """Every dtype, empty and 0-dimensional tensors, names that JSON must escape."""
    generator = torch.Generator().manual_seed(0)
    found = {"scalar": torch.tensor(3.0), 'é "x"\n': torch.arange(3)}
    for dtype in DTYPES.values():
        for n in (0, 1, 3):
            found[f"{dtype}.{n}"] = torch.randint(0, 2, (2, n), generator=generator).to(dtype)
    return found


def infos(tensors: dict) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the files
def test_a_shard_is_byte_for_byte_what_safetensors_writes(tmp_path):
    tensors = some_tensors()
    (shard,) = shards.plan(infos(tensors))
    shards.write(tmp_path, [shard], tensors.__getitem__)
    save_file(tensors, tmp_path / "reference", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "reference").read_bytes()
    assert shard.nbytes == (tmp_path / "reference").stat().st_size


@pytest.mark.parametrize("size", [1, 30, 10**9])
def test_shards_of_any_size_hold_the_same_tensors(tmp_path, size):
    tensors = some_tensors()
    planned = shards.plan(infos(tensors), size)
    shards.write(tmp_path, planned, tensors.__getitem__)
    found = {}
    for shard in planned:
        with safe_open(tmp_path / shard.file, "pt") as reader:
            held = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - it is no dictionary
        assert sum(tensor.nbytes for tensor in held.values()) <= size or len(held) == 1
        found |= held
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    if len(planned) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: shard.file for shard in planned for name in shard.tensors}
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


# ---- going on after a kill
@pytest.fixture
def like(tmp_path) -> Checkpoint:
    folder = tmp_path / "like"
    folder.mkdir()
    save_file({name: torch.full((4,), float(i)) for i, name in enumerate("abcdef")}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return Checkpoint.open(folder)


class Interrupted:
    """``like.read`` that notes what it was asked for and raises ``error`` when it comes to the tensor ``at``."""

    def __init__(self, like, at=None, error=KeyboardInterrupt):
        self.like, self.at, self.error, self.asked = like, at, error, []

    def __call__(self, name):
        if name == self.at:
            raise self.error
        self.asked.append(name)
        return self.like.read(name) + 1


def write(out, tensors, like, key="k", shard_bytes=32):
    write_checkpoint(out, tensors, like, card="# card", shard_bytes=shard_bytes, key=key)


def test_a_merge_goes_on_at_the_first_unfinished_shard_with_identical_bytes(like, tmp_path):
    """Shards of two tensors each; the interruption comes within the second, when its first tensor is written."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    write(whole, Interrupted(like), like)
    first, second = Interrupted(like, "d"), Interrupted(like)
    with pytest.raises(KeyboardInterrupt):
        write(out, first, like)
    assert not out.exists() and first.asked == ["a", "b", "c"]
    write(out, second, like)
    assert second.asked == ["c", "d", "e", "f"]
    assert contents(out) == contents(whole) and len(contents(out)) == 3 + 3  # shards; index, configuration, card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like", "out", "whole"]


@pytest.mark.parametrize("change", [{"key": "other"}, {"shard_bytes": 48}])
def test_another_key_or_layout_starts_anew(like, tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Interrupted(like, "f"), like)
    again = Interrupted(like)
    write(tmp_path / "out", again, like, **change)
    write(tmp_path / "whole", Interrupted(like), like, **change)
    assert again.asked == list("abcdef")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def zeroed(shard):
    """The header stands, the tensors are zeros: as a disk leaves a file whose blocks it had not written."""
    content = shard.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    shard.write_bytes(content[:begin] + bytes(len(content) - begin))


def flipped(shard):
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)


def linked(shard):
    """To a file of the very bytes, which somebody else may change."""
    other = shard.parent.parent / "elsewhere"
    shard.rename(other)
    shard.symlink_to(other)


@pytest.mark.parametrize(
    "damage", [zeroed, flipped, linked, lambda shard: shard.write_bytes(shard.read_bytes()[:-1]), Path.unlink]
)
def test_a_damaged_finished_shard_is_made_again(like, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Interrupted(like, "e"), like)
    damage(tmp_path / ".out.part" / "model-00001-of-00003.safetensors")
    again = Interrupted(like)
    write(tmp_path / "out", again, like)
    assert again.asked == ["a", "b", "e", "f"]
    write(tmp_path / "whole", Interrupted(like), like)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("content", ["", "[]", '{"model-00001-of-00003.safetensors": 7}', None])
def test_without_the_hash_of_a_finished_shard_it_is_not_believed(like, tmp_path, content):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Interrupted(like, "e"), like)
    record = tmp_path / ".out.part" / shards.WRITTEN
    record.unlink() if content is None else record.write_text(content)
    again = Interrupted(like)
    write(tmp_path / "out", again, like)
    assert again.asked == list("abcdef")


def test_bytes_go_through_no_link_that_was_planted(like, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Interrupted(like, "c"), like)
    victim = tmp_path / "victim"
    victim.write_text("somebody's")
    (tmp_path / ".out.part" / "model-00002-of-00003.safetensors.part").symlink_to(victim)
    write(tmp_path / "out", Interrupted(like), like)
    assert victim.read_text() == "somebody's"


def test_bad_weights_leave_nothing_behind_and_a_full_disk_what_is_finished(like, tmp_path):
    with pytest.raises(UserError, match="bad"):
        write(tmp_path / "out", Interrupted(like, "f", UserError("bad")), like)
    assert [path.name for path in tmp_path.iterdir()] == ["like"]
    with pytest.raises(UserError, match=r"cannot write .*free some space"):
        write(tmp_path / "out", Interrupted(like, "f", OSError(28, "No space left on device")), like)
    finished = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2)]
    assert sorted(contents(tmp_path / ".out.part")) == sorted([PLAN, shards.WRITTEN, *finished])


def test_without_a_key_nothing_is_kept(like, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Interrupted(like, "f"), like, key=None)
    assert [path.name for path in tmp_path.iterdir()] == ["like"]


def test_an_older_folder_stays_until_the_new_one_replaces_it_whole(like, tmp_path):
    write(tmp_path / "out", Interrupted(like), like, shard_bytes=10**6)
    before = contents(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Interrupted(like, "f"), like)
    assert contents(tmp_path / "out") == before
    write(tmp_path / "out", Interrupted(like), like)
    assert "model.safetensors" not in contents(tmp_path / "out")


def test_a_second_process_waits_for_the_folder(tmp_path):
    """It takes the lock only when the first is done with the folder, and then has one of its own."""
    pid = os.fork()
    if pid == 0:
        with resumable_dir(tmp_path / "out", "k") as part:
            (part / "first").write_text("first")
            (tmp_path / "held").touch()
            time.sleep(0.5)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with resumable_dir(tmp_path / "out", "k") as part:
        assert (tmp_path / "out" / "first").exists() and not (part / "first").exists()
    assert os.waitpid(pid, 0)[1] == 0


def merge_into(out, models, method, options, kill_after=None):
    """Merge into shards of some tensors; returns the files it wrote. With ``kill_after`` the process kills itself
    by signal 9 when it has written so many."""
    written, real = [], shards.Shard.write

    def counted(shard, *arguments):
        real(shard, *arguments)
        written.append(shard.file)
        if len(written) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    base, experts = models
    scale = 0.5 if "scale" in get(method).needs else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.Shard, "write", counted)
        child.merge(method, str(base), str(out), [str(path) for path in experts], scale, options, shard_bytes=30_000)
    return written


@pytest.mark.parametrize("method, options", [("ties_dare", {}), ("wudi", {"iterations": 2})])
def test_kill_9_and_again_gives_the_identical_bytes(models, tmp_path, method, options):
    pid = os.fork()
    if pid == 0:
        merge_into(tmp_path / "out", models, method, options, kill_after=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    again = merge_into(tmp_path / "out", models, method, options)
    whole = merge_into(tmp_path / "whole", models, method, options)
    assert again == whole[2:] and len(again) > 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"density": 0.3}, {"drop": 0.3}])
def test_other_options_do_not_go_on_from_another_merge(models, tmp_path, change):
    pid = os.fork()
    if pid == 0:
        merge_into(tmp_path / "out", models, "ties_dare", {}, kill_after=2)
    os.waitpid(pid, 0)
    again, whole = (merge_into(tmp_path / name, models, "ties_dare", change) for name in ("out", "whole"))
    assert again == whole and contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_input_that_was_touched_is_another_input(models):
    base, _ = models
    before = Checkpoint.open(base).identity()
    assert Checkpoint.open(base).identity() == before
    os.utime(base / "model.safetensors")
    assert Checkpoint.open(base).identity() != before


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two experts of 57,000 parameters."""
    return write_models(tmp_path_factory.mktemp("models"), Shape(32, 88, 2, 256), 2)
