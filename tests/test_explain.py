"""``emkit explain``: everything a method declares is shown, from the method itself, with a recipe's numbers."""

from pathlib import Path

import numpy as np
import pytest
from conftest import recipe_data, save_recipe

from emkit import explain, recipe
from emkit.backbones import NAMES
from emkit.cli import main
from emkit.config import about, default
from emkit.methods import registry, resolved

SMOKE = Path(recipe.__file__).parent / "recipes" / "smoke" / "internvl.yaml"  # it has a row for each kind of method
SOURCES = ("authors", "original", "paper", "Section", "Eq.", "Appendix", "ours", "mergekit", "public", "as run")


@pytest.mark.parametrize("name", list(registry()))
def test_every_method_shows_its_docstring_its_parts_and_its_options(name):
    text, found = explain.method(name), registry()[name]
    assert found.about and found.about.splitlines()[0] in text
    for part in found.parts:
        assert part.__name__ in text and part.__doc__.strip().splitlines()[0] in text
    for key, field in found.options.model_fields.items():
        assert f"\n  {key}: " in text and " ".join(about(field).split()) in " ".join(text.split())
        assert not field.is_required() and default(field)[1] in text


@pytest.mark.parametrize("name", list(registry()))
def test_every_default_passes_its_own_check_and_names_a_source(name):
    found = registry()[name]
    scale = {} if found.scale is None else {"scale": found.scale}
    for backbone in NAMES:
        resolved(found, backbone=backbone)
        for key, field in {**found.options.model_fields, **scale}.items():
            assert about(field).strip()
            assert any(word in default(field, backbone)[1] for word in SOURCES), f"{name}.{key}"


def test_every_merging_method_says_what_becomes_of_vectors():
    for name, found in registry().items():
        if found.merges and name != "expert_merging_pp":
            said = " ".join(found.about.split())
            assert "Tensors of every number of dimensions are treated alike" in said or "Other tensors than" in said, (
                name
            )


def test_a_recipe_adds_the_numbers_in_use_with_their_sources(tmp_path):
    data = recipe_data(tmp_path)
    data["methods"]["ties"] = {"density": 0.35}
    data["sources"] = {"methods.ties.density": "ours: tried"}
    data["rows"][5]["options"] = {"merge": "sum"}
    text = explain.method("ties", save_recipe(tmp_path, data))
    assert "density = 0.35  (ours: tried)" in text
    assert "merge = sum  (given in the row)" in text
    assert "scope = model  (default: original's definition" in text
    assert "scale = one of [0.1, 0.3]  (best mean)" in text
    assert "no row has this method" in explain.method("wudi", save_recipe(tmp_path, data))


def test_ties_says_where_the_authors_code_keeps_another_entry():
    """The Expert Merging authors' code drops int(0.8 n) entries, TIES' own n − int(0.2 n)."""
    text = " ".join(explain.method("ties").split())
    assert "Expert Merging authors' code takes the ⌊(1 − ``density``) · n⌋-th smallest" in text
    for n in range(2, 200):
        tau = np.random.default_rng(n).permutation(n) + 1.0
        kept = [int((tau >= np.sort(tau)[k - 1]).sum()) for k in (n - n // 5, n * 4 // 5)]
        assert kept[1] - kept[0] == (n % 5 != 0)


def test_settings_inherited_from_another_method_show_its_source():
    text = explain.method("adamerging_pp", recipe.load(SMOKE))
    assert "initial = 0.3  (original: 0.3)" in text and "density = 0.2  (original: TIES" in text


def test_the_command_line(capsys):
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in registry())
    assert main(["explain", "wudi", "--recipe", str(SMOKE)]) == 0
    assert "iterations = 3  (smoke: as few as run the code" in capsys.readouterr().out
    for arguments, said in (
        (["explain", "wudy"], "error: unknown method 'wudy': did you mean 'wudi'?"),
        (["explain", "--recipe", str(SMOKE)], "error: --recipe needs a METHOD"),
        (["explain", "wudi", "--recipe", "none.yaml"], "error: cannot read the recipe none.yaml"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith(said) and err.count("\n") == 1
