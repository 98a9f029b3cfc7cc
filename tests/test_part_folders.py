"""What is beside the output while it is written is this user's own: nothing planted there is followed or kept."""

import os
import stat
from pathlib import Path

import own_models as own
import pytest

from emkit import cli
from emkit.files import PLAN
from emkit.own import merge as job


@pytest.fixture
def models(tmp_path):
    return own.write_models(tmp_path / "models")


def refused(models, out, capsys) -> str:
    assert cli.main(own.flags(models, out)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and not out.exists()
    return errors[0]


def interrupted(models, out, monkeypatch) -> Path:
    """A merge that is stopped when its weights are written; returns the folder that it left."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "verify", stop)
        assert cli.main(own.flags(models, out)) == 130
    return out.with_name(f".{out.name}.part")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_link_in_the_part_s_place_is_not_followed(models, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    (tmp_path / ".out.part").symlink_to(other)
    assert f"{tmp_path / '.out.part'}, where" in refused(models, tmp_path / "out", capsys)
    assert listing(other) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("place", [".out.part/" + PLAN, ".out.lock"])
def test_a_link_in_a_lock_s_place_overwrites_nothing(models, tmp_path, capsys, place):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / ".out.part").mkdir(mode=0o700)
    (tmp_path / place).symlink_to(tmp_path / "thesis.txt")
    assert "is a link" in refused(models, tmp_path / "out", capsys)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_in_its_place_is_left_alone(models, tmp_path, capsys):
    (tmp_path / ".out.part").write_text("mine")
    assert "is no folder" in refused(models, tmp_path / "out", capsys)
    assert (tmp_path / ".out.part").read_text() == "mine"


def test_another_user_s_folder_is_not_written_into(models, tmp_path, capsys):
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can give a folder to another user")
    (tmp_path / ".out.part").mkdir(mode=0o777)
    os.chown(tmp_path / ".out.part", 54321, 54321)
    assert "is another user's" in refused(models, tmp_path / "out", capsys)


def test_what_was_planted_is_not_in_the_model(models, tmp_path, monkeypatch):
    expected = listing(own.merge(models, tmp_path / "clean"))
    part = interrupted(models, tmp_path / "out", monkeypatch)
    assert stat.S_IMODE(part.stat().st_mode) == 0o700
    before = {file.name: file.stat().st_mtime_ns for file in part.glob("*.safetensors")}
    assert before
    (part / "modeling_evil.py").write_text("raise SystemExit")
    (part / "added_tokens.json").write_text("{}")
    (part / "sub" / "deep").mkdir(parents=True)
    (part / "sub" / "deep" / "x.py").write_text("raise SystemExit")
    (tmp_path / "thesis.txt").write_text("years of work")
    (part / "link.json").symlink_to(tmp_path / "thesis.txt")
    (part / "folder").symlink_to(tmp_path / "models")
    part.chmod(0o777)
    found = listing(own.merge(models, tmp_path / "out"))
    assert set(found) == set(expected)
    assert all(found[name] == expected[name] for name in found if name.endswith(".safetensors"))
    # what was finished was not made again
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.safetensors")} == before
    assert (tmp_path / "thesis.txt").read_text() == "years of work" and (tmp_path / "models" / "base").is_dir()


def test_a_shard_that_is_a_link_is_made_again(models, tmp_path, monkeypatch):
    """Even one with the right bytes: who planted it can change them afterwards."""
    part = interrupted(models, tmp_path / "out", monkeypatch)
    shard = part / "model.safetensors"
    os.rename(shard, tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    out = own.merge(models, tmp_path / "out")
    assert not (out / "model.safetensors").is_symlink()
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "elsewhere").read_bytes()
