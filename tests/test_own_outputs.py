"""Where a merge is written: nothing of anybody else's is ever replaced, and nothing is lost on the way."""

import fcntl
import shutil
import subprocess
import sys

import own_models as own
import pytest
import torch
from conftest import recipe_data, save_recipe

from emkit import cli
from eval.__main__ import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return own.write_models(tmp_path_factory.mktemp("models"))


def test_the_merge_of_a_row_replaces_only_what_it_wrote(tiny_zoo, tmp_path, capsys):
    zoo = shutil.copytree(tiny_zoo, tmp_path / "zoo")
    save_recipe(tmp_path, recipe_data(zoo))
    given = ["merge", str(tmp_path / "table1.yaml"), "vqa", "--profile", str(tmp_path / "profile.yaml"), "--out"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    (tmp_path / "own" / "README.md").write_text("# My thesis\n\nMade by me\n")
    assert main([*given, str(tmp_path / "own")]) == 2
    assert "is no model that emkit wrote" in capsys.readouterr().err
    assert (tmp_path / "own" / "thesis.tex").read_text() == "years of work"
    assert main([*given, str(zoo / "VQA")]) == 2
    assert "is one of the models to merge" in capsys.readouterr().err and (zoo / "VQA" / "config.json").is_file()
    for _ in range(2):  # its own it may write again
        assert main([*given, str(tmp_path / "out" / "model")]) == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def meanwhile(monkeypatch, action):
    """Do something while a merge checks what it wrote; returns the numbers of tensors that each merge computed."""
    from emkit import job
    from emkit.own import merge

    verify, write, counts = merge.verify, job.write_checkpoint, []

    def checked(*arguments):
        action()
        return verify(*arguments)

    def counted(out, tensors, *others):
        counts.append(0)

        def count(name):
            counts[-1] += 1
            return tensors(name)

        write(out, count, *others)

    monkeypatch.setattr(merge, "verify", checked)
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
        """Go on only when it waits."""
        given = own.flags(models, out, "weight_average")
        started.append(subprocess.Popen([sys.executable, "-m", "emkit.cli", *given], stderr=subprocess.PIPE, text=True))
        assert any("waiting for another merge" in line for line in started[0].stderr)
        with open(tmp_path / ".out.lock") as held, pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    meanwhile(monkeypatch, second)
    own.merge(models, out)
    error = started[0].communicate(timeout=60)[1]
    assert started[0].returncode == 2 and f"error: {out} is there already" in error
    assert '"task_arithmetic"' in (out / "emkit_merge.json").read_text() and list(tmp_path.iterdir()) == [out]


def test_an_output_that_holds_what_the_merge_needs(models, tmp_path, capsys):
    """Even a model that emkit wrote: people keep experts, prompts and recipes in it."""
    out = own.merge(models, tmp_path / "out")
    shutil.copytree(models / "math", out / "math")
    shutil.copy(models / "math.jsonl", out)
    capsys.readouterr()
    given = own.flags(models, out, "expert_merging", "--overwrite", "--dry-run")
    recipe = out / "m.yaml"
    recipe.write_text("seed: 0\n")
    for more in (
        ["--cache", str(out / "cache")],
        ["--calibration", f"math={out / 'math.jsonl'}"],
        [str(recipe)],
    ):
        assert cli.main([*given, *more]) == 2
        assert f", which the merge needs, lies in {out}" in capsys.readouterr().err, more
    assert cli.main([word.replace(str(models / "math") + "", str(out / "math")) for word in given]) == 2
    assert f"{out}/math, which the merge needs, lies in {out}" in capsys.readouterr().err
    assert cli.main(given) == 0


def test_an_output_that_cannot_take_its_name(models, tmp_path, monkeypatch, capsys):
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    for out in (".", "..", "../..", str(tmp_path / "here")):
        assert cli.main([*own.flags(models, out), "--dry-run"]) == 2
        assert "the folder that you are in" in capsys.readouterr().err
    assert cli.main([*own.flags(models, "/proc"), "--dry-run"]) == 2
    assert "/proc is a disk's own folder" in capsys.readouterr().err


def test_an_output_by_a_link_or_from_home(models, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    own.merge(models, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "emkit_merge.json").is_file()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    own.merge(models, "~/out")
    assert (tmp_path / "home" / "out" / "emkit_merge.json").is_file()


def test_one_tensor_of_another_precision_passes_the_check(models, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    mixed = own.copied(models, tmp_path)
    for owner in ("base", *own.EXPERTS):
        own.rewrite(mixed / owner, {name: own.tensors(mixed / owner)[name].float() + 2.0**-12 / 3})
    found = own.tensors(own.merge(mixed, tmp_path / "out"))
    assert found[name].dtype == torch.float32 and found["lm_head.weight"].dtype == torch.bfloat16
    assert not torch.equal(found[name], found[name].bfloat16().float())
