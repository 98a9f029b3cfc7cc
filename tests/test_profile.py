"""Profiles and tables: the committed ones load, and every mistake is one line that says where and what instead."""

import copy

import pytest
from conftest import recipe_data, save_recipe

from emkit import methods
from emkit.errors import UserError
from eval import profile, table
from eval.merging import row_sha256
from eval.plan import Plan


@pytest.mark.parametrize("path", sorted(profile.FOLDER.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_committed_profiles_are_of_their_folder_and_file(path):
    found = profile.load(path)
    assert (found.name, found.backbone) == (path.parent.name, path.stem)
    known = {row.id for name in table.names() for row in table.load(name).rows}
    assert known >= set(found.scales) | set(found.leave_out)


@pytest.mark.parametrize("name", ["mini", "smoke", "paper"])
@pytest.mark.parametrize("shown", [name for name in table.names() if not table.load(name).averages])
def test_the_rows_of_a_committed_table_have_methods(shown, name):
    plan = Plan(shown, name)
    assert all(row.method in methods.registry() for row in plan.rows.values())
    learned = [row.id for row in plan.rows.values() if row.method in ("expert_merging", "expert_merging_pp")]
    assert learned and all(plan.settings(row).optimiser.steps > 0 for row in learned)


def test_an_unknown_method_is_one_line():
    with pytest.raises(UserError, match="unknown method 'expert_merge': did you mean 'expert_merging'"):
        methods.get("expert_merge")


def load(tmp_path, data):
    return save_recipe(tmp_path, data)


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
        ("seed", [], r"unknown key 'seed': did you mean 'seeds'\?"),
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
        ("models.experts", {}, r"models.experts: \{\} is empty"),
        ("rows", [], r"rows: \[\] is empty"),
        (
            "rows.3.method",
            "weight_averge",
            r"rows\[3\] \('weight_average'\): unknown method 'weight_averge': did you mean 'weight_average'\?",
        ),
        ("rows.3.id", "base", r"'base'\): this id is given to more than one row"),
        ("rows.1.model", "VQ", r"there is no model 'VQ': did you mean 'VQA'\?"),
        ("rows.2.model", "base", "reset_expert needs an expert"),
        ("rows.3.model", "VQA", "and no others, need the key 'model'"),
        ("rows.7.options", {"kappa": 1}, r"options: unknown key 'kappa'"),
        ("rows.3.options", {"gamma": 1}, "the method weight_average has no options"),
        ("rows.3.scale", 0.5, "the method weight_average has no free scale: remove the key 'scale'"),
        (
            "rows.5.options",
            {"densty": 1},
            r"row 'ties'.options: unknown key 'densty': did you mean 'density'\?",
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
        ("methods.weight_average", {}, "the method weight_average has no options"),
        ("methods.tise", {}, r"unknown method 'tise': did you mean 'ties'\?"),
        ("rows.3.label", "Base", r"\('base'\): this label is given to more than one row"),
        ("rows.3.id", "a/b", r"rows\[3\].id: 'a/b'"),
        ("rows.3.calibration", {"samples": 3}, "the method weight_average needs no samples"),
        ("rows.7.calibration", {"sample": 3}, r"row 'expert_merging': calibration: unknown key 'sample': did you mean"),
        ("rows.7.vary", {"gamma": [1]}, r"rows\[7\].vary: 'gamma' cannot vary: scale, options.KEY and calibration.KEY"),
        ("rows.7.vary", {"options.gama": [1]}, r"row 'expert_merging_1'.options: unknown key 'gama'"),
        ("rows.7.vary", {"options.gamma": ["a"]}, r"row 'expert_merging_a'.options.gamma: 'a' is not a number"),
        ("scales", {"expert_mergin": 1.0}, r"scales: unknown row 'expert_mergin': did you mean 'expert_merging'\?"),
        ("scales", {"weight_average": 1.0}, "row 'weight_average': the method weight_average has no free scale"),
        ("leave_out", ["vqa_rest"], r"leave_out: unknown row 'vqa_rest': did you mean 'vqa_reset'\?"),
        ("seeds", [0, "one"], r"seeds\[1\]: 'one' is not a whole number"),
        ("sources", {"gird": "ours"}, r"sources: 'gird' is no key of this profile: did you mean 'grid'\?"),
        ("calibration.source", "jsonl", "calibration.files: the task '(VQA|Chart)' has no file"),
        ("calibration.split", "evaluation", "calibration.split: unknown value 'evaluation'"),
        ("calibration.samples", 0, "calibration.samples: 0 is less than 1"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, key, value, match):
    with pytest.raises(UserError, match=match) as error:
        load(tmp_path, changed(recipe_data(tmp_path), key, value))
    assert "\n" not in str(error.value)
    assert ".yaml" in str(error.value) or key == "methods.tise"


@pytest.mark.parametrize(
    "text, match",
    [
        ("a: [", "r.yaml, line 1: not valid YAML"),
        ("a: 1\na: 2", "r.yaml, line 2: not valid YAML: the key 'a' stands here twice"),
        ("", "is not a mapping"),
        ("- a", "is not a mapping"),
    ],
)
@pytest.mark.parametrize("load_file", [profile.load, table.load])
def test_what_is_no_profile_or_table_at_all_is_one_line(tmp_path, text, match, load_file):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=match) as error:
        load_file(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"cannot read the (profile|table)"):
        load_file(tmp_path / "none.yaml")


def test_numbers_like_1e_5_are_numbers(tmp_path):
    save_recipe(tmp_path, recipe_data(tmp_path))
    path = tmp_path / "profile.yaml"
    path.write_text(path.read_text().replace("weight_decay: 0.0", "weight_decay: 1e-5"))
    assert profile.load(path).methods["expert_merging"]["optimiser"]["weight_decay"] == 0.00001


def test_the_hash_of_a_row_is_of_its_values(tmp_path):
    first = row_sha256(load(tmp_path, recipe_data(tmp_path)), "expert_merging_pp")
    assert (
        row_sha256(load(tmp_path, changed(recipe_data(tmp_path), "rows.8.label", "++")), "expert_merging_pp") == first
    )
    assert (
        row_sha256(load(tmp_path, changed(recipe_data(tmp_path), "rows.8.options", {"kappa": 0})), "expert_merging_pp")
        != first
    )
    assert (
        row_sha256(load(tmp_path, changed(recipe_data(tmp_path), "calibration.samples", 3)), "expert_merging_pp")
        != first
    )


def test_settings_inherit_and_rows_override(tmp_path):
    data = changed(recipe_data(tmp_path), "methods.expert_merging_pp.gamma", 7)
    plan = load(tmp_path, changed(data, "rows.8.options", {"kappa": 0}))
    settings = plan.settings("expert_merging_pp")
    assert (settings.gamma, settings.kappa, settings.temperature) == (7, 0, 1.0)
    assert plan.settings("expert_merging").gamma == 0.1
    with pytest.raises(UserError, match=r"unknown row 'expert_mergin': did you mean 'expert_merging'\?"):
        plan.settings("expert_mergin")


def test_a_row_whose_model_the_profile_lacks_is_not_run(tmp_path):
    plan = load(tmp_path, changed(recipe_data(tmp_path), "rows.1.model", "mixture"))
    assert not plan.runs("vqa") and plan.runs("base")


# ---- sweeps
def test_a_sweep_is_a_row_for_each_value(tmp_path):
    vary = {"options.gamma": [0, 0.2, 0.4]}
    data = changed(changed(recipe_data(tmp_path), "rows.7.vary", vary), "rows.7.label", "{}")
    plan = load(tmp_path, data)
    swept = [f"expert_merging_{value}" for value in ("0", "0.2", "0.4")]
    assert [*plan.rows][7:10] == swept and [plan.rows[row].label for row in swept] == ["0", "0.2", "0.4"]
    assert [plan.settings(row).gamma for row in swept] == [0, 0.2, 0.4]
    assert [plan.settings(row).temperature for row in swept] == [1.0] * 3


def test_a_sweep_of_two_keys_is_every_combination_and_reaches_into_mappings(tmp_path):
    vary = {"calibration.samples": [3, 5], "options.optimiser.lr": [0.1, 0.5]}
    data = changed(changed(recipe_data(tmp_path), "rows.7.vary", vary), "rows.7.label", "N = {}, rate {}")
    plan = load(tmp_path, data)
    row = "expert_merging_5_0.1"
    assert plan.rows[row].label == "N = 5, rate 0.1"
    assert plan.calibration(row).samples == 5 and plan.calibration("expert_merging_pp").samples == 2
    assert (plan.settings(row).optimiser.lr, plan.settings(row).optimiser.steps) == (0.1, 4)
    assert len([name for name in plan.rows if name.startswith("expert_merging_3")]) == 2
    keys = {row: plan._calibration_identity(row) for row in plan.rows if row.startswith("expert_merging_")}
    assert keys["expert_merging_3_0.1"] == keys["expert_merging_3_0.5"] != keys["expert_merging_5_0.5"]
