"""``emkit explain``: everything a method declares is shown, from the method itself, with a recipe's numbers."""

from pathlib import Path

import numpy as np
import pytest
from conftest import recipe_data, save_recipe

from emkit import explain, recipe
from emkit.cli import main
from emkit.methods import REGISTRY, REQUIRED

SMOKE = Path(recipe.__file__).parent / "recipes" / "smoke" / "internvl.yaml"  # it has a row for each kind of method
SOURCES = ("authors", "original", "paper", "Section", "Eq.", "Appendix", "ours", "mergekit", "public", "as run")


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_method_shows_its_docstring_its_parts_and_its_options(name):
    text, found = explain.method(name), REGISTRY[name]
    assert found.run.__doc__.strip().splitlines()[0] in text
    for part in found.parts:
        assert part.__name__ in text and part.__doc__.strip().splitlines()[0] in text
    for key, option in found.options.items():
        assert f"  {key}: " in text
        assert (option.default is REQUIRED) == (f"  {key}: given by the recipe" in text)


@pytest.mark.parametrize("name", [name for name in REGISTRY if REGISTRY[name].options])
def test_every_default_passes_its_own_check_and_names_a_source(name):
    for key, option in REGISTRY[name].options.items():
        if option.default is not REQUIRED:
            option.check(option.default, f"{name}.{key}")
        assert option.about.strip()
        if option.default is not REQUIRED and key not in ("null_space", "hidden_weight", "logit_weight", "normalise"):
            assert any(word in option.about for word in SOURCES), f"{name}.{key}"


def test_every_merging_method_says_what_becomes_of_vectors():
    for name, found in REGISTRY.items():
        if name not in ("checkpoint", "reset_expert", "weight_average", "expert_merging_pp"):
            said = " ".join(found.run.__doc__.split())
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
    assert "scope = model  (default)" in text
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
    assert all(name in listed for name in REGISTRY)
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
