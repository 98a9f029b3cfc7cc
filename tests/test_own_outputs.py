"""Where a merge is written: nothing of anybody else's is ever replaced, and nothing is lost on the way."""

import fcntl
import shutil
import subprocess
import sys

import own_models as own
import pytest
from conftest import recipe_data, save_recipe

from emkit import cli


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return own.write_models(tmp_path_factory.mktemp("models"))


def test_merge_row_replaces_only_what_it_wrote(tiny_zoo, tmp_path, capsys):
    zoo = shutil.copytree(tiny_zoo, tmp_path / "zoo")
    save_recipe(tmp_path, recipe_data(zoo))
    given = ["merge-row", str(tmp_path / "recipe.yaml"), "vqa", "--out"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    (tmp_path / "own" / "README.md").write_text("# My thesis\n\nMade by me\n")
    assert cli.main([*given, str(tmp_path / "own")]) == 2
    assert "is no model that emkit wrote" in capsys.readouterr().err
    assert (tmp_path / "own" / "thesis.tex").read_text() == "years of work"
    assert cli.main([*given, str(zoo / "VQA")]) == 2
    assert "is one of the models to merge" in capsys.readouterr().err and (zoo / "VQA" / "config.json").is_file()
    for _ in range(2):  # its own it may write again
        assert cli.main([*given, str(tmp_path / "out" / "model")]) == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def meanwhile(monkeypatch, action):
    """Do something while a merge checks what it wrote; returns the numbers of tensors that each merge computed."""
    from emkit.own import merge as job

    verify, write, counts = job.verify, job.write_checkpoint, []

    def checked(*arguments):
        action()
        return verify(*arguments)

    def counted(out, tensors, *others):
        counts.append(0)

        def count(name):
            counts[-1] += 1
            return tensors(name)

        write(out, count, *others)

    monkeypatch.setattr(job, "verify", checked)
    monkeypatch.setattr(job, "write_checkpoint", counted)
    return counts


def interrupt():
    raise KeyboardInterrupt


def test_a_merge_interrupted_while_it_is_checked_goes_on_from_there(models, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        counts = meanwhile(patch, interrupt)
        assert cli.main(own.flags(models, tmp_path / "out")) == 130
        assert counts == [21] and [path.name for path in tmp_path.iterdir()] == [".out.part"]
    counts = meanwhile(monkeypatch, lambda: None)
    own.merge(models, tmp_path / "out")
    assert counts == [0] and list(tmp_path.iterdir()) == [tmp_path / "out"]
    own.merge(models, tmp_path / "fresh")
    names = [sorted(file.name for file in (tmp_path / folder).iterdir()) for folder in ("out", "fresh")]
    assert names[0] == names[1] and "emkit_merge.json" in names[0]
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "fresh")]
    assert weights[0] == weights[1]


def test_a_folder_that_appeared_during_the_merge_is_kept_and_so_is_the_merge(models, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def appear():
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")

    with monkeypatch.context() as patch:
        meanwhile(patch, appear)
        assert cli.main(own.flags(models, out)) == 2
    assert f"error: {out} is there already" in capsys.readouterr().err
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").rename(tmp_path / "thesis.tex")
    counts = meanwhile(monkeypatch, lambda: None)
    own.merge(models, out)
    assert counts == [0] and (out / "emkit_merge.json").is_file()


def test_two_merges_to_one_folder_take_turns(models, tmp_path, monkeypatch, capsys):
    """The second starts while the first checks its model: it waits, and finds the folder taken."""
    out, started = tmp_path / "out", []

    def second():
        given = own.flags(models, out, "weight_average")
        started.append(subprocess.Popen([sys.executable, "-m", "emkit.cli", *given], stderr=subprocess.PIPE, text=True))
        with open(tmp_path / ".out.lock") as held, pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    meanwhile(monkeypatch, second)
    own.merge(models, out)
    error = started[0].communicate(timeout=60)[1]
    assert started[0].returncode == 2 and f"error: {out} is there already" in error
    assert '"task_arithmetic"' in (out / "emkit_merge.json").read_text() and list(tmp_path.iterdir()) == [out]
