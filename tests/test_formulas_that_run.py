"""The public formulas are what merges run: with any of them raising, the methods that it belongs to fail."""

import pytest
from conftest import merge_row, recipe_data, save_recipe

from emkit.alignment import importance, objectives

ALIGNED = ("expert_merging", "expert_merging_pp")
ENTROPIC = ("adamerging", "adamerging_pp")
FORMULAS = [
    *((objectives, name, row) for name in ("hidden_alignment", "logit_alignment") for row in ALIGNED),
    *((objectives, "entropy", row) for row in ENTROPIC),
    *((objectives, name, row) for name in ("regulariser", "objective") for row in ALIGNED + ENTROPIC),
    *((importance, name, "expert_merging_pp") for name in ("layer_importance", "allocate_chunks", "chunked_start")),
]


class Called(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formulas")


@pytest.fixture(scope="module")
def recipe(tiny_zoo, folder):
    data = recipe_data(tiny_zoo)
    steps = {"name": "adam", "lr": 0.01, "weight_decay": 0.0, "steps": 1, "schedule": "constant", "batch": 1}
    data["methods"]["adamerging"] = {"optimiser": steps}
    data["methods"]["expert_merging"]["optimiser"] |= {"steps": 1}
    known = {row["id"] for row in data["rows"]}
    data["rows"] += [{"id": row, "label": row, "method": row} for row in ALIGNED + ENTROPIC if row not in known]
    return save_recipe(folder, data)


def merge(recipe, folder, row, out) -> None:
    """With the calibration set of the runs before, and a fit of its own."""
    (out / "cache").mkdir(parents=True, exist_ok=True)
    for kept in ("calibration", "heads"):
        (folder / "kept" / kept).mkdir(parents=True, exist_ok=True)
        (out / "cache" / kept).symlink_to(folder / "kept" / kept)
    merge_row(recipe, row, 0, out / "model", out / "cache", 0.3)


@pytest.mark.parametrize("row", ALIGNED + ENTROPIC)
def test_the_rows_merge(recipe, folder, tmp_path, row):
    merge(recipe, folder, row, tmp_path)
    assert (tmp_path / "coefficients.json").is_file()


@pytest.mark.parametrize(("module", "name", "row"), FORMULAS, ids=lambda value: getattr(value, "__name__", value))
def test_a_formula_that_raises_stops_the_merge(recipe, folder, tmp_path, monkeypatch, module, name, row):
    def called(*given, **others):
        raise Called

    monkeypatch.setattr(module, name, called)
    with pytest.raises(Called):
        merge(recipe, folder, row, tmp_path)
