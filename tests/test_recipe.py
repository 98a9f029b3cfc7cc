"""Recipes: the committed ones load, and every mistake is one line that says where and what instead."""

import copy
from pathlib import Path

import pytest
import yaml
from conftest import recipe_data

from emkit import methods, recipe
from emkit.errors import UserError

FOLDER = Path(recipe.__file__).parent / "recipes"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/internvl.yaml")), ids=lambda p: p.parent.name)
def test_committed_recipes_load_and_their_rows_have_methods(path):
    found = recipe.load(path)
    assert found.profile == path.parent.name
    for row in found.rows:
        assert row["method"] is None or row["method"] in methods.registry()
    for row in ("expert_merging", "expert_merging_pp"):
        assert found.settings(found.row(row)).optimiser.steps > 0


def test_an_unknown_method_is_one_line():
    with pytest.raises(UserError, match="unknown method 'expert_merge': did you mean 'expert_merging'"):
        methods.get("expert_merge")


def load(tmp_path, data):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    return recipe.load(tmp_path / "r.yaml")


def changed(data, dotted, value):
    """A copy with ``value`` at a dotted key ("rows.0.id"); ``...`` deletes the key."""
    data = copy.deepcopy(data)
    *path, last = [int(key) if key.isdigit() else key for key in dotted.split(".")]
    at = data
    for key in path:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return data


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("methods.expert_merging.gama", 1, r"methods.expert_merging: unknown key 'gama': did you mean 'gamma'\?"),
        ("benchmark", [], r"unknown key 'benchmark': did you mean 'benchmarks'\?"),
        (
            "methods.expert_merging.optimiser.schedule",
            "cosin",
            r"optimiser.schedule: unknown value 'cosin': did you mean 'cosine'\?",
        ),
        ("methods.expert_merging.gamma", "much", r"methods.expert_merging.gamma: 'much' is not a number"),
        ("methods.expert_merging.gamma", True, "gamma: True is not a number"),
        ("methods.expert_merging.gamma", -1, "gamma: -1 is less than 0"),
        ("methods.expert_merging.gamma", float("nan"), "gamma: nan is not a finite number"),
        ("methods.expert_merging.initial", "scale", "methods.expert_merging.initial: 'scale' is not a number"),
        ("methods.expert_merging.initial", {"VQA": 0.1}, "initial: the expert 'Chart' has no value"),
        ("methods.expert_merging.beta", {"Vqa": 1}, r"beta: unknown expert 'Vqa': did you mean 'VQA'\?"),
        ("methods.expert_merging.hidden_layer", 0, "hidden_layer: 0 is less than 1"),
        ("methods.expert_merging.optimiser.steps", 2.5, "steps: 2.5 is not a whole number"),
        ("methods.expert_merging_pp.fixed", "stage2", r"fixed: unknown value 'stage2': did you mean 'stage1'\?"),
        ("backbone", "internv1", "unknown backbone 'internv1': did you mean 'internvl'"),
        ("models", [], r"models: \[\] is not a mapping"),
        ("models.experts", {}, "no expert is named"),
        ("rows", [], "rows: the list is empty"),
        (
            "rows.3.method",
            "weight_averge",
            r"rows\[3\].method: unknown value 'weight_averge': did you mean 'weight_average'\?",
        ),
        ("rows.3.id", "base", r"'base'\): this id is given to more than one row"),
        ("rows.1.model", "VQ", r"there is no model 'VQ': did you mean 'VQA'\?"),
        ("rows.1.model", "mixture", "there is no model 'mixture'"),
        ("rows.2.model", "base", "reset_expert needs an expert"),
        ("rows.3.model", "VQA", "and no others, need the key 'model'"),
        ("rows.7.options", {"kappa": 1}, r"options: unknown key 'kappa'"),
        ("rows.3.options", {"gamma": 1}, "the method weight_average has no options"),
        ("rows.3.scale", 0.5, "the method weight_average has no free scale: leave out the key 'scale'"),
        (
            "rows.5.options",
            {"densty": 1},
            r"rows\[5\] \('ties'\).options: unknown key 'densty': did you mean 'density'\?",
        ),
        ("rows.5.options", {"density": "0.2"}, "options.density: '0.2' is not a number"),
        ("rows.5.options", {"density": 0}, "options.density: 0 is less than 0.0001"),
        ("rows.5.options", {"scope": "layer"}, "options.scope: unknown value 'layer': choose one of model, tensor"),
        ("rows.5.options", {"second_trim": True}, "options: unknown key 'second_trim'"),
        ("methods.ties", {"merge": "median"}, "methods.ties.merge: unknown value 'median'"),
        ("methods.ties_dare", {"second_trim": "yes"}, "second_trim: 'yes' is neither true nor false"),
        ("methods.ties_dare", {"drop": 1.0}, "methods.ties_dare.drop: 1.0 is more than 0.9999"),
        ("methods.wudi", {"iterations": 2.5}, "methods.wudi.iterations: 2.5 is not a whole number"),
        ("methods.wudi", {"solver": "sgd"}, "methods.wudi.solver: unknown value 'sgd'"),
        ("methods.wudi_v2", {"lr": "fast"}, "methods.wudi_v2.lr: 'fast' is not a number"),
        ("methods.adamerging", {"optimiser": {"name": "sgd"}}, "optimiser.name: unknown value 'sgd'"),
        ("methods.adamerging", {"initial": {"VQA": 0.3}}, "initial: the expert 'Chart' has no value"),
        ("methods.adamerging", {"gamma": 1}, "methods.adamerging: unknown key 'gamma'"),
        ("methods.ties", [], r"methods.ties: \[\] is not a mapping"),
        ("methods.weight_average", {}, "methods: unknown key 'weight_average'"),
        ("seeds", [0, "one"], r"seeds\[1\]: 'one' is not a whole number"),
        ("sources", {"scale.gird": "ours"}, r"sources: 'scale.gird' is no key of this recipe: did you mean 'grid'\?"),
        ("calibration.source", "jsonl", "calibration.files: the task '(VQA|Chart)' has no file"),
        ("calibration.split", "evaluation", "calibration.split: unknown value 'evaluation'"),
        ("calibration.samples", 0, "calibration.samples: 0 is less than 1"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, key, value, match):
    with pytest.raises(UserError, match=match) as error:
        load(tmp_path, changed(recipe_data(tmp_path), key, value))
    assert "\n" not in str(error.value)
    assert "r.yaml" in str(error.value)


@pytest.mark.parametrize(
    "text, match",
    [
        ("a: [", "r.yaml, line 1: not valid YAML"),
        ("a: 1\na: 2", "r.yaml, line 2: not valid YAML: the key 'a' stands here twice"),
        ("", "None is not a mapping"),
        ("- a", "is not a mapping"),
    ],
)
def test_what_is_no_recipe_at_all_is_one_line(tmp_path, text, match):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=match) as error:
        recipe.load(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot read the recipe"):
        recipe.load(tmp_path / "none.yaml")


def test_numbers_like_1e_5_are_numbers(tmp_path):
    data = recipe_data(tmp_path)
    text = yaml.safe_dump(data).replace("weight_decay: 0.0", "weight_decay: 1e-5")
    (tmp_path / "r.yaml").write_text(text)
    found = recipe.load(tmp_path / "r.yaml")
    assert found.data["methods"]["expert_merging"]["optimiser"]["weight_decay"] == 0.00001


def test_the_hash_is_of_the_content_not_of_the_layout(tmp_path):
    first = load(tmp_path, recipe_data(tmp_path))
    (tmp_path / "r.yaml").write_text("# a comment\n" + yaml.safe_dump(recipe_data(tmp_path), default_flow_style=True))
    assert recipe.load(tmp_path / "r.yaml").sha256 == first.sha256
    assert load(tmp_path, changed(recipe_data(tmp_path), "seeds", [1])).sha256 != first.sha256


def test_settings_inherit_and_rows_override(tmp_path):
    data = changed(recipe_data(tmp_path), "methods.expert_merging_pp.gamma", 7)
    data = changed(data, "rows.8.options", {"kappa": 0})
    found = load(tmp_path, data)
    settings = found.settings(found.row("expert_merging_pp"))
    assert (settings.gamma, settings.kappa, settings.temperature) == (7, 0, 1.0)
    assert found.settings(found.row("expert_merging")).gamma == 0.1
    with pytest.raises(UserError, match=r"unknown row 'expert_mergin': did you mean 'expert_merging'\?"):
        found.row("expert_mergin")
