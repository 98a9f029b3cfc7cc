"""A new user's way: the help, a written recipe, and learned coefficients on the screen."""

import json

import numpy as np
import own_models as own
import pytest
import yaml
from PIL import Image

from emkit import cli
from emkit.coefficients import Coefficients
from emkit.methods import get
from emkit.own import init, recipe


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_help_leads_from_init_to_merge_to_show(arguments, capsys):
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n  {name} ") for name in ("init", "merge", "coefficients", "explain", "zoo")]
    assert places == sorted(places)
    examples = [line.split() for line in text.splitlines() if line.startswith("    emkit ")]
    assert [words[1] for words in examples] == ["init", "merge", "coefficients", "merge"]
    for words in examples:  # every example is one that the command takes
        cli.app.commands[words[1]].make_context(words[1], words[2:])
    for name, command in cli.app.commands.items():
        for path in [[name], *([name, action] for action in getattr(command, "commands", ()))]:
            assert cli.main([*path, "--help"]) == 0
            assert " ".join(path) in capsys.readouterr().out


@pytest.mark.parametrize("method", recipe.METHODS)
def test_a_written_recipe_is_whole_and_holds_the_defaults(tmp_path, method, capsys):
    file = tmp_path / "merge.yaml"
    given = ["init", str(file), "--method", method, "--base", "m/b", "--expert", "a=m/x", "--expert", "m/no"]
    assert cli.main(given) == 0
    text = file.read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    assert data["base"] == "m/b" and data["experts"] == {"a": "m/x", "no": "m/no"} and data["method"] == method
    read = recipe.read(file)
    recipe.check(read, f"{file}: ")
    written = recipe.MergeRecipe(read, "causal_lm")
    bare = recipe.MergeRecipe({"method": method, "experts": data["experts"]}, "causal_lm")
    assert written.settings() == bare.settings() and written.scale == bare.scale
    assert set(written.settings().model_dump()) == set(written.sources()) == set(get(method).options.model_fields)
    assert "this recipe" not in written.sources().values() and not read.get("options") and "scale" not in read
    assert all(line.startswith((" ", "#")) or ":" in line or not line for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120
    assert "merge.yaml written" in capsys.readouterr().out
    assert cli.main(given) == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("method", recipe.METHODS)
def test_what_is_uncommented_is_given_and_at_its_default_changes_nothing(tmp_path, method):
    file, lines = tmp_path / "merge.yaml", []
    assert cli.main(["init", str(file), "--method", method, "--base", "m/b", "--expert", "a=m/x"]) == 0
    keys = get(method).options.model_fields
    for line in file.read_text(encoding="utf-8").splitlines():
        key = line.removeprefix("  # ").partition(":")[0]
        lines.append(line.replace("# ", "", 1) if line.startswith("  # ") and key in keys else line)
    file.write_text("\n".join(lines), encoding="utf-8")
    read = recipe.read(file)
    assert set(read.get("options", {})) == set(keys)
    recipe.check(read, "")
    written = recipe.MergeRecipe(read, "causal_lm")
    bare = recipe.MergeRecipe({"method": method, "experts": {"a": "m/x"}}, "causal_lm")
    assert written.settings() == bare.settings()
    assert set(written.sources().values()) <= {"this recipe"}


def test_a_written_recipe_gives_nothing_that_like_authors_sets(tmp_path, capsys):
    models = own.write_models(tmp_path)
    file = str(tmp_path / "merge.yaml")
    experts = [word for name in own.EXPERTS for word in ("--expert", f"{name}={models / name}")]
    prompts = [word for name in own.EXPERTS for word in ("--calibration", f"{name}={models / f'{name}.jsonl'}")]
    assert cli.main(["init", file, "--base", str(models / "base"), *experts]) == 0
    merge = ["merge", file, *prompts, "--out", str(tmp_path / "out"), "--device", "cpu", "--dry-run"]
    assert cli.main([*merge, "--like", "authors"]) == 0, capsys.readouterr().err
    assert cli.main([*merge, "--like", "authors", "--option", "temperature=2"]) == 2


def test_a_given_value_is_the_recipes_also_where_it_is_the_default():
    found = recipe.MergeRecipe({"method": "ties", "experts": {}, "options": {"density": 0.2}}, "causal_lm")
    assert found.sources()["density"] == "this recipe" and found.sources()["scope"].startswith("original")


def test_the_papers_values_where_it_has_them():
    """Appendix B.2: N 5, 5, 10; prior 0.1, 0.3, 0.3; γ 5, 0.8, 0.8; κ 1.2."""
    for backbone, n, prior, gamma in (("internvl", 5, 0.1, 5.0), ("mistral", 5, 0.3, 0.8), ("qwen2_vl", 10, 0.3, 0.8)):
        found = recipe.MergeRecipe({"method": "expert_merging_pp", "experts": {}}, backbone)
        settings = found.settings()
        assert (found.scale, settings.gamma, settings.kappa) == (prior, gamma, 1.2)
        assert found.calibration.samples == n and settings.hidden_layer == "middle"


def test_part_of_the_optimiser_may_be_given_and_flags_win(tmp_path):
    (tmp_path / "merge.yaml").write_text("options: {optimiser: {lr: 0.5}, gamma: 1}\nseed: 3\n")
    words = ["x", "--option", "optimiser.steps=7", "--option", "gamma=2", "--seed", "4", "--samples", "2"]
    flags = cli.app.commands["merge"].make_context("merge", words).params
    from emkit.own.cli import with_flags

    data = with_flags(recipe.read(tmp_path / "merge.yaml"), flags)
    assert data["options"] == {"optimiser": {"lr": 0.5, "steps": 7}, "gamma": 2} and data["seed"] == 4
    found = recipe.MergeRecipe({"method": "expert_merging", "experts": {}, **data}, "causal_lm")
    optimiser = found.settings().optimiser
    assert (optimiser.lr, optimiser.schedule, optimiser.steps) == (0.5, "cosine", 7)
    assert found.sources()["gamma"] == "this recipe" != found.sources()["temperature"]


def test_trying_another_method_leaves_the_first_ones_settings_out(tmp_path, capsys):
    own.write_models(tmp_path)
    file = str(tmp_path / "merge.yaml")
    experts = [word for name in own.EXPERTS for word in ("--expert", str(tmp_path / name))]
    assert cli.main(["init", file, "--base", str(tmp_path / "base"), *experts]) == 0
    text = (tmp_path / "merge.yaml").read_text(encoding="utf-8").replace("# scale:", "scale:")
    (tmp_path / "merge.yaml").write_text(text.replace("# gamma", "gamma"), encoding="utf-8")
    assert cli.main(["merge", file, "--method", "ties", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "note: scale and options of" in capsys.readouterr().err
    assert cli.main(["merge", file, "--method", "tis"]) == 2
    assert f"error: {file} and flags: method: unknown method 'tis'" in capsys.readouterr().err


def test_a_recipe_for_internvl_has_internvls_defaults(tiny_zoo, tmp_path):
    assert cli.main(["init", str(tmp_path / "a.yaml"), "--base", str(tiny_zoo / "base")]) == 0
    assert cli.main(["init", str(tmp_path / "b.yaml"), "--base", "some/hub-id", "--backbone", "internvl"]) == 0
    for file in ("a.yaml", "b.yaml"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert "\n# scale: 0.1\n" in text and "\n  # gamma: 5.0\n" in text
        found = recipe.MergeRecipe(recipe.read(tmp_path / file), recipe.read(tmp_path / file)["backbone"])
        assert (found.scale, found.settings().gamma, found.backbone) == (0.1, 5.0, "internvl")


def test_flags_name_other_experts_than_the_recipe(tmp_path):
    own.write_models(tmp_path)
    experts = [word for name in own.EXPERTS for word in ("--expert", str(tmp_path / name))]
    assert cli.main(["init", str(tmp_path / "m.yaml"), "--base", str(tmp_path / "base"), *experts]) == 0
    given = ["merge", str(tmp_path / "m.yaml"), *experts[:2], "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main([*given, "--calibration", f"math={tmp_path / 'math.jsonl'}"]) == 0


def test_an_experts_path_may_have_an_equals_sign(tmp_path, monkeypatch):
    from emkit.own.cli import _experts

    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-4").mkdir()
    assert _experts(["runs/lr=1/m", "lr=1e-4", "a=runs/lr=2/m"]) == {
        "m": "runs/lr=1/m",
        "lr=1e-4": "lr=1e-4",
        "a": "runs/lr=2/m",
    }


@pytest.fixture
def coefficients(tmp_path):
    """Two blocks of two kinds and one tensor in no block; the last of the first expert has two chunks."""
    values = {
        "model.layers.0.self_attn.q_proj.weight": np.array([[0.0], [0.25]]),
        "model.layers.0.mlp.up_proj.weight": np.array([[0.5], [0.75]]),
        "model.layers.10.self_attn.q_proj.weight": np.array([[1.0], [-1.0]]),
        "multi_modal_projector.linear_1.weight": np.array([[0.2, 0.4], [0.3, 0.3]]),
    }
    Coefficients(("a", "b"), values).save(tmp_path / "coefficients.json")
    return tmp_path


def test_coefficients_are_drawn_as_text(coefficients, capsys):
    assert cli.main(["coefficients", "show", str(coefficients)]) == 0
    text = capsys.readouterr().out
    a, b = text.split("\n\n")[:2]
    lines = a.splitlines()
    assert lines[0] == "a: mean 0.450, 0.000 to 1.000" and lines[1].split() == [
        "block",
        "q_proj",
        "up_proj",
        "linear_1",
    ]
    assert [line.split()[0] for line in lines[2:]] == ["0", "10", "other"]
    assert "0.300" in lines[4] and "██  1.000" in lines[3] and "··" in b.splitlines()[3]
    assert "1 tensors have several chunks" in text


def test_coefficients_are_drawn_as_a_picture(coefficients, capsys):
    file = coefficients / "heat.png"
    assert cli.main(["coefficients", "show", str(coefficients / "coefficients.json"), "--out", str(file)]) == 0
    assert Image.open(file).size[0] > 200
    rows, _, values = Coefficients.load(coefficients / "coefficients.json").grid()
    assert rows == ["0", "10", "other"] and values[1][1, 0] == -1.0 and np.isnan(values[1][1, 1])
    assert cli.main(["coefficients", "show", str(coefficients), "--out", str(coefficients / "heat.xyz")]) == 2
    assert "end the name in .png" in capsys.readouterr().err and not (coefficients / "heat.xyz").exists()


def test_a_file_of_something_else_is_one_line(tmp_path, capsys):
    (tmp_path / "coefficients.json").write_text(json.dumps({"a": 1}))
    assert cli.main(["coefficients", "show", str(tmp_path)]) == 2
    assert "is no file of merging coefficients" in capsys.readouterr().err


def test_yaml_words_stay_words():
    lines = [init._line("no", "on"), init._line("a b", "1e3"), init._line("x", {"y": [1], "z": "é"})]
    assert yaml.safe_load("\n".join(lines)) == {"no": "on", "a b": "1e3", "x": {"y": [1], "z": "é"}}
