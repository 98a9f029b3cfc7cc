"""Zoos of other seeds: their recipes, their profiles, and a table over several of them."""

import math

import numpy as np
import pytest
import yaml
from scipy import stats as distributions
from small_plan import ROWS, TABLE, score, smoke, write

from emkit.errors import UserError
from emkit.zoo import build
from eval import profile, zoos
from eval.__main__ import main
from eval.places import Job
from eval.plan import Plan

PAIR = ["task_arithmetic", "base"]


def test_a_recipe_with_other_seeds_differs_in_them_alone():
    usual, other = build.load_recipe("mistral-mini"), build.load_recipe("mistral-mini-seed2")
    differing = {key for key in usual if usual[key] != other[key]}
    assert differing == {"seed", "data_seed", "name"}
    assert (other["seed"], other["data_seed"]) == (usual["seed"] + 2, usual["data_seed"] + 2000)
    with pytest.raises(UserError, match=r"no zoo recipe .mistral-seed1.: choose one of .*-seed1"):
        build.load_recipe("mistral-seed1")
    with pytest.raises(UserError, match="no zoo recipe"):
        build.load_recipe("mistral-mini-seed0")


@pytest.mark.parametrize("backbone", ["internvl", "mistral", "qwen2_vl"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_profile_of_a_seed_differs_in_its_models_alone(backbone, seed):
    usual, other = (profile.load(profile.find(name, backbone)).model_dump() for name in ("mini", f"mini-seed{seed}"))
    differing = {key for key in usual if usual[key] != other[key]}
    assert differing == {"name", "zoo", "models", "beside", "asked_as"}
    assert other["zoo"] == f"{backbone}-mini-seed{seed}" and other["models"]["base"].startswith("results/mini-seed")
    table = {"internvl": "table1", "qwen2_vl": "table2", "mistral": "table3"}[backbone]
    plans = [Plan(table, name) for name in ("mini", f"mini-seed{seed}")]
    assert plans[0].protocol == plans[1].protocol and list(plans[0].rows) == list(plans[1].rows)


def test_a_profile_like_one_that_is_not_there(tmp_path):
    path = tmp_path / "mistral.yaml"
    path.write_text(yaml.safe_dump({"like": "mino", "name": "mine"}), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"like: there is no profile 'mino' with a file mistral.yaml: did you mean 'mini'"
    ):
        profile.load(path)


def two(tmp_path, **changes):
    """A table on two zoos."""
    table = TABLE | {"rows": ROWS[:2], "learned": [], "compare": [PAIR], "compare_beyond": []} | changes
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(write(tmp_path / name, table, smoke(name=name, asked_as="smoke")))
    return [Plan(table, found, tmp_path / "results") for table, found in files]


def test_a_pair_over_zoos_against_numpy(tmp_path):
    """Items' scores averaged over zoos, then paired; the zoos' own differences, and their t interval."""
    plans, rng = two(tmp_path), np.random.default_rng(2)
    drawn = rng.integers(0, 2, (2, 2, 2, 12))  # zoo, row, column, item
    for z, plan in enumerate(plans):
        for r, row in enumerate(PAIR):
            for c, name in enumerate(plan.benchmarks):
                score(plan, Job(row, 0), name, *drawn[z, r, c].tolist())
    [found] = zoos.compared(plans, [PAIR])
    differences = 100 * (drawn[:, 0] - drawn[:, 1])  # zoo, column, item
    assert found["each"] == pytest.approx(differences.mean(axis=(1, 2)).tolist())
    items = differences.mean(axis=0)  # column, item
    assert found["items"].delta == pytest.approx(items.mean())
    error = math.sqrt((items.var(axis=1, ddof=1) / 12).sum()) / 2
    shares = ((items.var(axis=1, ddof=1) / 12 / 4) ** 2 / 11).sum()
    reach = distributions.t.ppf(0.975, error**4 / shares) * error
    assert found["items"].high - found["items"].delta == pytest.approx(reach)
    low, high = distributions.t.interval(0.95, 1, np.mean(found["each"]), distributions.sem(found["each"]))
    assert found["zoos"][1:] == pytest.approx((low, high))
    assert found["holm"] == pytest.approx(found["items"].p)
    text = zoos.text(plans)
    assert "| Task Arithmetic | " in text and "`one` | `two`" in text and "Task Arithmetic − Base" in text


def test_what_was_not_run_is_said(tmp_path, capsys):
    plans = two(tmp_path)
    for name in plans[0].benchmarks:
        score(plans[0], Job("base", 0), name, 0, 1)
    assert zoos.compared(plans, [PAIR]) == [{"rows": "Task Arithmetic − Base", "status": "not run yet"}]
    assert "| Task Arithmetic − Base | not run yet | – |" in zoos.text(plans)
    assert main(["zoos", "table3", "mini"]) == 2
    assert "name two profiles or more" in capsys.readouterr().err
    assert main(["zoos", "table3", "mini", "mini", "mini-seed1"]) == 2
    assert "each once" in capsys.readouterr().err
    assert main(["zoos", "table3", "mini", "smoke"]) == 2
    assert "asks other items than" in capsys.readouterr().err
