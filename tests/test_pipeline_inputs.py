"""Bad input to the command lines: one clear line, exit status 2, nothing under a final name."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import EXPERTS
from safetensors.torch import load_file, save_file
from small_plan import ROOT, TABLE, smoke, write

from emkit import cli
from emkit.errors import UserError
from eval import pipeline
from eval.__main__ import main


@pytest.fixture
def recipe(tmp_path, tiny_zoo):
    """Writes a small table and a profile of a copy of the tiny zoo, with changes; returns what names both."""
    shutil.copytree(tiny_zoo, tmp_path / "zoo")
    experts = {name: str(tmp_path / "zoo" / name) for name in EXPERTS}
    models = {"base": str(tmp_path / "zoo" / "base"), "experts": experts, "mixture": None}
    data = smoke(zoo=None, models=models)
    data["methods"]["expert_merging"]["beta"] = dict.fromkeys(EXPERTS, 1.0)

    def given(**changes):
        table = TABLE | {key: value for key, value in changes.items() if key in TABLE}
        if "rows" in changes:
            table["learned"] = []
        paths = write(tmp_path, table, data | {key: value for key, value in changes.items() if key not in TABLE})
        return [str(paths[0]), "--profile", str(paths[1])]

    given.data = data
    return given


@pytest.fixture
def refuses(tmp_path, capfd):
    """Run a command line and check that it refuses in one line that holds ``words`` and leaves no result."""

    def check(arguments, *words, call=main, results="results"):
        assert call([*arguments, *(["--results", str(tmp_path / results)] if call is main else [])]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and all(word in lines[0] for word in words), lines
        left = [path for path in (tmp_path / "results").rglob("*") if path.is_file() and ".run" not in path.parts]
        assert left == []

    return check


@pytest.mark.parametrize("command", ["plan", "reproduce"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "intervl"}, ["intervl", "internvl"]),
        ({"columns": ["VizViz"]}, ["unknown benchmark 'VizViz'", "VizWiz"]),
        ({"seed": []}, ["unknown key 'seed'", "seeds"]),
        ({"seeds": ["one"]}, ["seeds[0]", "'one' is not a whole number"]),
        ({"calibration": {"samples": "five", "response_tokens": 8}}, ["calibration.samples", "'five'"]),
        ({"rows": [{"id": "a", "label": "A", "method": "task_aritmetic"}]}, ["task_aritmetic", "task_arithmetic"]),
        ({"protocol": {"judge_upstreem": "rules"}}, ["protocol: unknown key 'judge_upstreem'", "judge_upstream"]),
    ],
    ids=["backbone", "benchmark", "key", "type", "nested type", "method", "protocol"],
)
def test_a_wrong_table_or_profile_is_refused(recipe, refuses, command, changes, words):
    refuses([command, *recipe(**changes)], *words)


def test_an_absent_table_is_refused(refuses, tmp_path):
    refuses(["plan", str(tmp_path / "none.yaml")], "none.yaml")


def broken(tmp_path, expert, change):
    path = tmp_path / "zoo" / expert / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_an_expert_with_another_shape_is_refused(recipe, refuses, tmp_path):
    def widen(tensors):
        name = next(name for name in tensors if name.endswith("q_proj.weight"))
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    broken(tmp_path, "Chart", widen)
    refuses(["reproduce", *recipe()], "Chart", "q_proj.weight", "shape")


def test_an_expert_with_another_name_is_refused(recipe, refuses, tmp_path):
    def rename(tensors):
        name = next(name for name in tensors if name.endswith("q_proj.weight"))
        tensors["extra"] = tensors.pop(name)

    broken(tmp_path, "VQA", rename)
    refuses(["reproduce", *recipe()], "VQA", "it lacks", "q_proj.weight', which is merged")


def test_nan_is_refused(recipe, refuses, tmp_path):
    def spoil(tensors):
        next(tensor for name, tensor in tensors.items() if name.endswith("up_proj.weight"))[0, 0] = float("nan")

    broken(tmp_path, "VQA", spoil)
    refuses(["reproduce", *recipe()], "VQA", "up_proj.weight", "NaN")


def test_a_truncated_checkpoint_is_refused(recipe, refuses, tmp_path):
    path = tmp_path / "zoo" / "Chart" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuses(["reproduce", *recipe()], "Chart/model.safetensors", "not a whole safetensors file")


def test_a_pickled_checkpoint_is_refused_unread(recipe, refuses, tmp_path):
    folder = tmp_path / "zoo" / "Chart"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    refuses(["reproduce", *recipe()], "pickled weights", "pytorch_model.bin")
    assert not (tmp_path / "ran").exists()


def test_a_missing_model_is_refused(recipe, refuses, tmp_path):
    shutil.rmtree(tmp_path / "zoo" / "VQA")
    refuses(["reproduce", *recipe()], "zoo/VQA")


def test_an_empty_calibration_set_is_refused(recipe, refuses, tmp_path):
    files = {}
    for name in EXPERTS:
        files[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("", encoding="utf-8")
    calibration = {"samples": 2, "response_tokens": 8, "source": "jsonl", "files": files}
    refuses(["reproduce", *recipe(calibration=calibration)], "calibration set", "empty")


def test_results_that_are_a_file_are_refused(recipe, refuses, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    refuses(["reproduce", *recipe()], "cannot write", "not a folder", results="file")


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "read-only"), (errno.ENOSPC, "the disk is full")])
def test_a_read_only_or_full_disk_is_refused(recipe, refuses, monkeypatch, number, words):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkstemp", fail)
    refuses(["reproduce", *recipe()], "cannot write", words)


def test_what_broke_in_a_run_is_what_is_said(recipe, refuses, monkeypatch):
    """The table is there, the notebook is not: nothing is published, and its own error is the one that is told."""

    def breaks(plan, *_):
        plan.csv.parent.mkdir(parents=True)
        plan.csv.write_text("row,benchmark\n", encoding="utf-8")
        raise UserError("notebooks/table.ipynb: cell 8 failed")

    monkeypatch.setattr(pipeline, "_snakemake", breaks)
    refuses(["reproduce", *recipe()], "Table 1: notebooks/table.ipynb: cell 8 failed")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["row", "TABLE", "base", "7"], "base runs with seed 0, not 7"),
        (["row", "TABLE", "ties", "0"], "unknown row 'ties'"),
        (["curve", "TABLE", "ties"], "unknown row 'ties'"),
        (["scale", "TABLE", "task_arithmetic"], "no score file"),
        (["table", "TABLE"], "no score file"),
        (["notebook", "TABLE", "-p", "recipe", "mini"], "no parameter 'recipe'"),
        (["reproduce", "TABLE", "--jobs", "0"], "'--jobs': 0 is not in the range"),
    ],
)
def test_a_wrong_argument_is_refused(recipe, refuses, arguments, words):
    table, *profile = recipe()
    refuses([table if argument == "TABLE" else argument for argument in arguments] + profile, words)


def test_emkit_refuses_in_one_line_too(recipe, refuses, tmp_path):
    table, *profile = recipe()
    refuses(["merge", table, "bose", *profile, "--out", str(tmp_path / "out")], "unknown row 'bose'")
    refuses(["zoo", "build", "internvl-maxi", "--out", str(tmp_path / "out")], "no zoo recipe", call=cli.main)
    refuses(["zoo", "check", str(tmp_path)], "no zoo in", call=cli.main)
    assert not (tmp_path / "out").exists()


# ---- what somebody meets who has just cloned the repository
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["plan", "table1", "--profile", "foo"],
            ["no profile 'foo'", "mini, mini-seed1, mini-seed2, paper, small, smoke"],
        ),
        (["plan", "table1", "--profile", "smoek"], ["no profile 'smoek'", "did you mean 'smoke'"]),
        (["reproduce", "tabel1"], ["no table 'tabel1'", "did you mean 'table1'"]),
        (["table", "table14x"], ["no table 'table14x'"]),
    ],
)
def test_an_unknown_profile_or_table_is_answered_with_those_there_are(refuses, monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    refuses(arguments, *words)


@pytest.mark.parametrize(
    "arguments", [("table",), ("scale", "task_arithmetic"), ("curve", "task_arithmetic"), ("row", "base", "0")]
)
def test_a_step_before_its_time_names_the_command_that_does_all_of_them(recipe, refuses, arguments):
    step, *rest = arguments
    table, *profile = recipe()
    refuses([step, table, *rest, *profile], "has not been run to its end", "-m eval reproduce")


def test_lost_models_of_the_repository_are_brought_back_by_git(recipe, refuses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval").symlink_to(ROOT / "eval")
    models = {"base": "results/zoo/internvl/base", "experts": recipe.data["models"]["experts"], "mixture": None}
    refuses(["reproduce", *recipe(models=models)], "results/zoo/internvl/base", "`git checkout results/zoo/internvl`")
    out = ["--out", str(tmp_path / "out")]
    table, *profile = recipe(models=models)
    refuses(["merge", table, "base", *profile, *out], "`git checkout results/zoo`")


@pytest.mark.parametrize("command", [("emkit.cli", "explain"), ("eval", "plan", "table1")])
def test_without_the_environment_one_line_says_how_to_get_it(command):
    """A bare Python of the same version: nothing of the environment can be imported."""
    command = [sys.executable, "-S", "-E", "-m", *command]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stderr.splitlines()
    assert run.returncode == 2 and len(lines) == 1, run.stderr
    assert lines[0].startswith("error: ") and "`make setup`" in lines[0] and ".venv/bin/emkit" in lines[0]


def test_a_missing_module_of_our_own_is_a_bug_and_keeps_its_traceback(monkeypatch):
    def broken():
        raise ModuleNotFoundError("No module named 'emkit.absent'", name="emkit.absent")

    monkeypatch.setattr("emkit.explain.methods", broken)
    with pytest.raises(ModuleNotFoundError, match=r"emkit\.absent"):
        cli.main(["explain"])
