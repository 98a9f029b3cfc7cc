"""Rows from recipe to merged checkpoint."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import merge_row, opened, recipe_data, save_recipe
from safetensors.torch import load_file, save_file

from emkit import backbones
from emkit.alignment.fit import Problem
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.determinism import deterministic
from emkit.errors import UserError
from emkit.methods import registry

internvl = backbones.get("internvl")


@pytest.fixture
def recipe(tiny_zoo, tmp_path):
    return save_recipe(tmp_path, recipe_data(tiny_zoo))


@pytest.fixture
def run(recipe, tmp_path):
    def merge(row, seed=0, scale=0.3, name=None, given=recipe):
        out = tmp_path / (name or row) / "model"
        report = merge_row(given, row, seed, out, tmp_path / "cache", scale)
        return report, Checkpoint.open(out), out

    return merge


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.int16), b.view(torch.int16))


def test_what_methods_need():
    learned = {"expert_merging", "expert_merging_pp", "adamerging", "adamerging_pp"}
    learned |= {"expert_merging_rows", "ridge_activations"}
    assert {name for name, method in registry().items() if method.learned} == learned
    assert {name for name, method in registry().items() if method.random} == learned | {"ta_dare", "ties_dare"}
    assert registry()["task_arithmetic"].needs == {"scale"}
    assert registry()["weight_average"].needs == set() and not registry()["checkpoint"].merges
    assert (registry()["checkpoint"].needs, registry()["reset_expert"].needs) == ({"model"}, {"expert"})


def test_checkpoint_rows_are_the_checkpoints(run, tiny_zoo):
    for row, name in (("base", "base"), ("vqa", "VQA")):
        report, found, _ = run(row)
        assert found.sha256() == Checkpoint.open(tiny_zoo / name).sha256() == report["model_sha256"]


def test_task_arithmetic_at_zero_is_the_base_and_one_expert_at_one_is_that_expert_where_merged(run, tiny_zoo, tmp_path):
    base, vqa, _ = opened(tiny_zoo)
    assert run("task_arithmetic", scale=0.0)[1].sha256() == base.sha256()
    data = recipe_data(tiny_zoo)
    data["models"]["experts"] = {"VQA": data["models"]["experts"]["VQA"]}
    data["methods"]["expert_merging"]["beta"] = {}
    alone = save_recipe(tmp_path, data)
    _, found, _ = run("task_arithmetic", scale=1.0, given=alone)
    merged = set(internvl.merged_names(base.names))
    for name in base.names:
        assert same(found.read(name), (vqa if name in merged else base).read(name)), name
        assert not same(vqa.read(name), base.read(name)), f"{name} proves nothing: the expert equals the base"
    assert found.sha256() == run("vqa_reset")[1].sha256()


def test_weight_average_and_task_arithmetic_agree_with_float64(run, tiny_zoo):
    base, *experts = opened(tiny_zoo)
    merged = set(internvl.merged_names(base.names))
    _, average, _ = run("weight_average")
    _, arithmetic, _ = run("task_arithmetic", scale=0.3)
    for name in base.names:
        b, *e = [c.read(name).double().numpy() for c in (base, *experts)]
        expected = {"average": b, "arithmetic": b}
        if name in merged:
            expected = {"average": np.mean(e, axis=0), "arithmetic": b + 0.3 * sum(x - b for x in e)}
        for found, key in ((average, "average"), (arithmetic, "arithmetic")):
            value = found.read(name).double().numpy()
            np.testing.assert_allclose(value, expected[key], rtol=2.0**-8, atol=1e-6, err_msg=f"{key} {name}")


def test_a_merged_folder_opens_with_transformers(run):
    _, found, out = run("task_arithmetic")
    model, processor = internvl.load(out)
    assert processor.tokenizer.eos_token == "<|im_end|>"
    name = internvl.merged_names(found.names)[0]
    stored = dict(model.named_parameters())[internvl.parameter_name(name)]
    assert torch.equal(stored, found.read(name).float())


def test_expert_merging_leaves_coefficients_that_make_the_very_model(run, tiny_zoo):
    report, found, out = run("expert_merging")
    coefficients = Coefficients.load(out.parent / "coefficients.json")
    history = json.loads((out.parent / "history.json").read_text())
    base, *experts = opened(tiny_zoo)
    names = internvl.merged_names(base.names)
    assert list(coefficients.values) == names and report["merged_tensors"] == len(names) == 24
    assert report["trainable_coefficients"] == 2 * 24 and len(history["stages"][0]["history"]) == 4
    assert report["scale"] == 0.3 and report["calibration"]["VQA"]["samples"] == 2
    assert np.abs(coefficients.flat() - 0.3).max() > 1e-3
    for name in names:
        b, *e = [c.read(name).double().numpy() for c in (base, *experts)]
        expected = b + sum(a * (x - b) for a, x in zip(coefficients.values[name][:, 0], e))
        np.testing.assert_allclose(found.read(name).double().numpy(), expected, rtol=2.0**-8, atol=1e-6)


def test_expert_merging_pp_follows_eq_4_from_the_first_stage(run):
    _, _, first = run("expert_merging")
    report, _, out = run("expert_merging_pp")
    stage1 = Coefficients.load(first.parent / "coefficients.json")
    found = Coefficients.load(out.parent / "coefficients.json")
    history = json.loads((out.parent / "history.json").read_text())
    stages = history["stages"]
    assert stages[0] == json.loads((first.parent / "history.json").read_text())["stages"][0]
    chunks, importance = stages[1]["chunks"], stages[1]["importance"]
    power = {name: value**1.2 for name, value in importance.items()}
    for name, m in chunks.items():
        assert m == int(24 * power[name] / sum(power.values()))
        assert found.values[name].shape == (2, max(m, 1))
        if m == 0:
            assert name in found.fixed and found.values[name].tolist() == stage1.values[name].tolist()
    assert 0 < sum(m == 0 for m in chunks.values()) < 24
    assert report["trainable_coefficients"] == 2 * sum(chunks.values()) == len(found.flat())


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(run, tmp_path, recipe):
    _, _, out = run("expert_merging_pp")
    again = merge_row(recipe, "expert_merging_pp", 0, tmp_path / "again" / "model", tmp_path / "fresh-cache", 0.3)
    for name in ("coefficients.json", "history.json", "model/model.safetensors", "model/README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (out.parent / name).read_bytes(), name
    other, _, _ = run("expert_merging_pp", seed=1, name="other")
    assert other["model_sha256"] != again["model_sha256"]


def test_a_killed_row_resumes_its_fit(run, recipe, monkeypatch, tmp_path):
    whole, _, _ = run("expert_merging")
    real, steps = Problem.losses, []

    class Killed(Exception):
        pass

    def dies(self, step, *others):
        steps.append(step)
        if len(steps) == 3:
            raise Killed
        return real(self, step, *others)

    monkeypatch.setattr(Problem, "losses", dies)
    again = [recipe, "expert_merging", 0, tmp_path / "b" / "model"]
    with pytest.raises(Killed):
        merge_row(*again, tmp_path / "cache-b", 0.3)
    assert not (tmp_path / "b").exists()
    resumed = merge_row(*again, tmp_path / "cache-b", 0.3)
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert steps == [0, 1, 2, 2, 3]
    assert not list((tmp_path / "cache-b" / "fits").glob("*.state.json"))


@pytest.mark.parametrize(
    "damaged",
    [
        "fits/*/coefficients.json",
        "fits/*/history.json",
        "calibration/*/*/samples.json",
        "calibration/*/*/teacher.safetensors",
    ],
)
def test_a_damaged_cache_entry_is_named_and_made_again(run, tmp_path, capfd, damaged):
    whole, _, _ = run("expert_merging")
    file = sorted((tmp_path / "cache").glob(damaged))[0]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    capfd.readouterr()
    assert run("expert_merging", name="again")[0] == whole
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == 1 and str(file.parent) in warnings[0] and "is made again" in warnings[0]
    assert file.read_bytes() == content
    run("expert_merging", name="third")
    assert "warning" not in capfd.readouterr().err


def test_a_damaged_state_of_a_fit_is_named_and_the_fit_begins_anew(run, tmp_path, capfd):
    whole, _, _ = run("expert_merging")
    cache = tmp_path / "cache"
    (folder,) = [path for path in (cache / "fits").iterdir() if path.is_dir()]
    shutil.rmtree(folder)
    folder.with_suffix(".state.json").write_text('{"identity": ', encoding="utf-8")
    assert run("expert_merging", name="again")[0] == whole
    assert f"warning: {folder.with_suffix('.state.json')} is unreadable" in capfd.readouterr().err


@pytest.mark.parametrize(
    "row, scale, match",
    [
        ("task_arithmetic", None, "row 'task_arithmetic' needs a scale"),
        ("expert_merging", None, "'scale of task_arithmetic' needs that scale"),
        ("ties", None, "row 'ties' needs a scale"),
        ("tsv", 0.3, "row 'tsv' has no method yet"),
        ("expert_mergin", 0.3, r"unknown row 'expert_mergin': did you mean 'expert_merging'\?"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(run, tmp_path, row, scale, match):
    with pytest.raises(UserError, match=match) as error:
        run(row, scale=scale)
    assert "\n" not in str(error.value)
    assert not (tmp_path / row / "model").exists()


def test_a_hidden_layer_that_is_not_there_is_one_line(tiny_zoo, tmp_path, run):
    data = recipe_data(tiny_zoo)
    data["methods"]["expert_merging"]["hidden_layer"] = 4
    with pytest.raises(UserError, match="hidden_layer is block 4, the model has blocks 1 to 3"):
        run("expert_merging", given=save_recipe(tmp_path, data))


def test_nan_in_any_expert_stops_every_merge_before_a_file_appears(tiny_zoo, tmp_path, run):
    zoo = tmp_path / "zoo"
    shutil.copytree(tiny_zoo, zoo)
    tensors = load_file(zoo / "Chart" / "model.safetensors")
    name = internvl.merged_names(tensors)[5]
    tensors[name][0] = float("nan")
    save_file(tensors, zoo / "Chart" / "model.safetensors", metadata={"format": "pt"})
    broken = save_recipe(tmp_path, recipe_data(zoo))
    for row in ("weight_average", "task_arithmetic", "expert_merging"):
        with pytest.raises(UserError, match=f"Chart: tensor '{name}' contains NaN"):
            run(row, given=broken)
        assert not (tmp_path / row / "model").exists()


def test_kernels_are_deterministic_inside_and_as_before_after_it():
    def flags():
        fill = torch.utils.deterministic.fill_uninitialized_memory
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), fill

    before = flags()
    with deterministic():
        assert flags() == (True, True, False)
        with deterministic(strict=True):
            assert flags() == (True, False, False)
        assert flags() == (True, True, False)
    assert flags() == before
    with pytest.raises(ValueError), deterministic():
        raise ValueError
    assert flags() == before
