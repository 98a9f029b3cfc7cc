"""``--like authors`` and who gave an option: what runs is what is recorded, and a contradiction is refused."""

import json

import own_models as own
import pytest
import yaml
from conftest import recipe_data, save_recipe

from emkit import cli
from emkit.schema import load_yaml
from eval.__main__ import main

THEIRS = {
    "parameterisation": "sigmoid",
    "temperature": 1.0,
    "regulariser": "authors",
    "hidden_loss": "mean_squared",
    "tokens": "all",
}
ADAMW = {"name": "adamw", "lr": 0.5, "weight_decay": 1e-5, "schedule": "cosine_restarts", "clip": 1.0}
ADAMW |= {"period": 50, "growth": 2, "floor": 0.1}
LIKE = ("--like", "authors")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return own.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(models, tmp_path, capsys):
    """Merge by a recipe with some options; its report, its card and its fits' stages."""

    def merge(options: dict, *more: str, method="expert_merging", file="merge.yaml"):
        data = {
            "method": method,
            "base": str(models / "base"),
            "experts": {name: str(models / name) for name in own.EXPERTS},
            "calibration": {
                "files": {name: str(models / f"{name}.jsonl") for name in own.EXPERTS},
                "max_new_tokens": 4,
            },
            "options": options,
            "device": "cpu",
        }
        (tmp_path / file).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        out = tmp_path / "merged"
        cache = ["--cache", str(models / "cache")]
        status = cli.main(["merge", str(tmp_path / file), "--out", str(out), *LIKE, *cache, *more])
        printed = capsys.readouterr()
        if status or "--dry-run" in more:
            assert not out.exists()
            return status, printed.err
        report = json.loads((out / "emkit_merge.json").read_text(encoding="utf-8"))
        stages = json.loads((out / "history.json").read_text(encoding="utf-8"))["stages"]
        return report, (out / "README.md").read_text(encoding="utf-8"), stages

    return merge


def ran(options: dict, steps: int, hidden_weight: float) -> None:
    """These are the options of the authors' default run."""
    assert {key: options[key] for key in THEIRS if key in options}.items() <= THEIRS.items()
    optimiser = options["optimiser"]
    assert {key: optimiser[key] for key in ADAMW} == ADAMW and optimiser["steps"] == steps
    assert options["hidden_weight"] == hidden_weight and options["parameterisation"] == "sigmoid"


@pytest.mark.parametrize("method", ["expert_merging", "expert_merging_pp"])
def test_what_is_recorded_is_what_ran(run, method):
    report, card, stages = run({"gamma": 0.3}, method=method)
    ran(report["options"], 1, 0.0)  # three prompts of two experts: one step
    assert report["options"]["tokens"] == "all" and report["options"]["gamma"] == 0.3
    assert report["fit"] == {"like": "authors", "dtype": "float32", "micro_tokens": 2048, "checkpointing": False}
    for stage in stages:
        ran(stage["options"], 1, 0.0)
        assert stage["options"]["order"] == "authors" and len(stage["history"]) == 1
        assert stage["history"][0]["learning_rate"] == 0.5
        assert all(set(terms) == {"hidden", "logit"} for terms in stage["history"][0]["tasks"].values())
        assert [terms["hidden"] for terms in stage["history"][0]["tasks"].values()] == [0.0, 0.0]
    rows = {line.split("`")[1]: line for line in card.splitlines() if line.startswith("| `") and "sha256" not in line}
    theirs = [*THEIRS, "optimiser", "hidden_weight", *(["fixed", "start"] if method.endswith("pp") else [])]
    for key in theirs:
        _, _, value, source, _ = (cell.strip() for cell in rows[key].split("|"))
        assert source == "authors' code (--like authors)"
        assert load_yaml(value.strip("`"), key) == report["options"][key]
    assert rows["gamma"].endswith("| this recipe |") and "paper" in rows["hidden_layer"]
    if method.endswith("pp"):
        assert report["options"]["fixed"] == report["options"]["start"] == "initial"


@pytest.mark.parametrize("given", ["recipe", "flag"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_hidden_weight_that_is_given_counts_even_if_it_is_the_default(run, weight, given):
    options = {"hidden_weight": weight} if given == "recipe" else {}
    more = [] if given == "recipe" else ["--option", f"hidden_weight={weight}"]
    report, card, stages = run(options, *more)
    ran(report["options"], 1, weight)
    ran(stages[0]["options"], 1, weight)
    assert all(terms["hidden"] > 0 for terms in stages[0]["history"][0]["tasks"].values())
    assert f"| `hidden_weight` | `{weight}` | this recipe |" in card


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("temperature=3", "temperature is 3, theirs 1.0"),
        ("parameterisation=plain", "parameterisation is plain, theirs sigmoid"),
        ("tokens=response", "tokens is response, theirs all"),
        ("regulariser=paper", "regulariser is paper, theirs authors"),
        ("hidden_loss=squared_norm", "hidden_loss is squared_norm, theirs mean_squared"),
        ("optimiser.lr=0.1", "optimiser.lr is 0.1, theirs 0.5"),
        ("optimiser.steps=50", "optimiser.steps is 50, theirs 1"),
        ("optimiser.growth=1", "optimiser.growth is 1, theirs 2"),
    ],
)
def test_an_option_that_contradicts_is_refused(run, option, said):
    for more in (["--dry-run"], []):
        status, err = run({}, "--option", option, *more)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(errors) == 1 and said in errors[0] and "leave" in errors[0]
    key, value = option.split("=")
    options = {"optimiser": {key.split(".")[1]: yaml.safe_load(value)}} if "." in key else {key: yaml.safe_load(value)}
    status, err = run(options, "--dry-run")
    assert status == 2 and said in err


def test_a_contradiction_is_told_before_a_model_is_looked_for(tmp_path, capsys):
    given = [
        "merge",
        "--base",
        str(tmp_path / "none"),
        "--expert",
        f"a={tmp_path / 'none'}",
        "--out",
        str(tmp_path / "o"),
    ]
    given += ["--method", "expert_merging", "--calibration", f"a={tmp_path / 'none.jsonl'}", *LIKE]
    assert cli.main([*given, "--option", "optimiser.lr=0.1"]) == 2
    assert "optimiser.lr is 0.1, theirs 0.5" in capsys.readouterr().err
    assert cli.main([*given, "--option", "optimiser.lr=0.5"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_every_contradiction_is_told_at_once(run):
    status, err = run({"temperature": 3, "fixed": "stage1", "gamma": 2}, "--dry-run", method="expert_merging_pp")
    assert status == 2 and "temperature is 3, theirs 1.0; fixed is stage1, theirs initial)" in err


def test_an_equal_option_is_none(run):
    options = {**THEIRS, "temperature": 1, "optimiser": {"lr": 0.5, "steps": 1, "batch": 1}}
    assert run(options, "--dry-run")[0] == 0
    status, err = run({"gamma": 3, "beta": {"math": 2.0}, "initial": 0.2, "logit_weight": 0.5}, "--dry-run")
    assert status == 0, err


@pytest.mark.parametrize("initial", [0.0, 1.0, -0.2, {"math": 0.2, "code": 1.3}])
def test_a_start_that_a_sigmoid_cannot_have_is_refused_at_once(run, initial):
    status, err = run({"initial": initial}, "--dry-run")
    assert status == 2 and "needs a start between 0 and 1" in err
    if not isinstance(initial, dict):
        assert run({}, "--dry-run", "--scale", str(initial))[0] == 2


@pytest.mark.parametrize("method", ["ties", "wudi", "adamerging", "adamerging_pp"])
def test_other_methods_have_nothing_of_it(models, tmp_path, capsys, method):
    assert cli.main(own.flags(models, tmp_path / "out", method, "--dry-run", *LIKE)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --like authors is for expert_merging") and method in err and err.count("\n") == 1


def test_options_of_a_fit_do_nothing_to_a_method_without_one(models, tmp_path, capsys):
    own.merge(models, tmp_path / "out", "ties", "--checkpointing", "--micro-tokens", "64")
    assert "note: --micro-tokens, --checkpointing: of no effect, ties fits nothing" in capsys.readouterr().err
    assert "fit" not in json.loads((tmp_path / "out" / "emkit_merge.json").read_text(encoding="utf-8"))


def test_a_plain_merge_records_its_own(models, tmp_path):
    own.merge(models, tmp_path / "out", "expert_merging", "--option", "optimiser.steps=2", "--checkpointing")
    report = json.loads((tmp_path / "out" / "emkit_merge.json").read_text(encoding="utf-8"))
    assert report["fit"]["like"] is None and report["fit"]["checkpointing"] is True
    stage = json.loads((tmp_path / "out" / "history.json").read_text(encoding="utf-8"))["stages"][0]
    assert stage["options"]["parameterisation"] == report["options"]["parameterisation"] == "plain"
    assert stage["options"]["optimiser"]["steps"] == 2 and stage["options"]["order"] == "tasks"


def rows(tiny_zoo, folder, capsys, change=lambda data: None, row="expert_merging", *more: str):
    data = recipe_data(tiny_zoo)
    change(data)
    save_recipe(folder, data)
    out = folder / row / "model"
    given = ["merge", str(folder / "table1.yaml"), row, "--profile", str(folder / "profile.yaml")]
    status = main([*given, "--scale", "0.3", "--out", str(out), *LIKE, *more])
    printed = capsys.readouterr()
    if status:
        return status, printed.err
    report, stages = json.loads(printed.out), json.loads((out.parent / "history.json").read_text())["stages"]
    return report, stages, (out / "README.md").read_text(encoding="utf-8")


def test_a_row_has_their_options_in_place_of_its_recipes(tiny_zoo, tmp_path, capsys):
    report, stages, card = rows(tiny_zoo, tmp_path, capsys, row="expert_merging_pp")
    assert report["like"] == "authors" and len(stages) == 2
    for options in (report["options"], *(stage["options"] for stage in stages)):
        ran(options, 1, 0.0)  # the recipe gives no hidden weight
        assert options["gamma"] == 0.1 and options["beta"] == {"VQA": 1.0, "Chart": 2.0}
    assert report["options"]["fixed"] == report["options"]["start"] == "initial"
    assert [stage["options"]["order"] for stage in stages] == ["authors_shuffled"] * 2  # InternVL
    assert "--like authors" in card and '"parameterisation": "sigmoid"' in card


@pytest.mark.parametrize("where", ["methods", "row"])
def test_a_hidden_weight_of_the_recipe_stays_the_recipes(tiny_zoo, tmp_path, capsys, where):
    def change(data):
        if where == "methods":
            data["methods"]["expert_merging"]["hidden_weight"] = 1.0
        else:
            data["rows"][7]["options"] = {"hidden_weight": 1.0}

    report, stages, _ = rows(tiny_zoo, tmp_path, capsys, change)
    ran(report["options"], 1, 1.0)
    ran(stages[0]["options"], 1, 1.0)
    assert all(terms["hidden"] > 0 for terms in stages[0]["history"][0]["tasks"].values())


def test_a_row_of_another_method_is_refused(tiny_zoo, tmp_path, capsys):
    for row in ("ties", "weight_average", "base"):
        status, err = rows(tiny_zoo, tmp_path, capsys, row=row)
        assert status == 2 and "error: --like authors is for expert_merging" in err
