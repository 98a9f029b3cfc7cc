"""Where a merge is written: nothing of anybody else's is ever replaced, and nothing is lost on the way."""

import shutil

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
