"""``emkit explain``: everything a method declares is shown, from the method itself."""

import numpy as np
import pytest

from emkit import explain
from emkit.cli import main
from emkit.methods import REGISTRY, REQUIRED

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


def test_ties_says_where_the_authors_code_keeps_another_entry():
    """The Expert Merging authors' code drops int(0.8 n) entries, TIES' own n − int(0.2 n)."""
    text = " ".join(explain.method("ties").split())
    assert "Expert Merging authors' code takes the ⌊(1 − ``density``) · n⌋-th smallest" in text
    for n in range(2, 200):
        tau = np.random.default_rng(n).permutation(n) + 1.0
        kept = [int((tau >= np.sort(tau)[k - 1]).sum()) for k in (n - n // 5, n * 4 // 5)]
        assert kept[1] - kept[0] == (n % 5 != 0)


def test_the_command_line(capsys):
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in REGISTRY)
    assert main(["explain", "wudy"]) == 2
    assert capsys.readouterr().err == "error: unknown method 'wudy': did you mean 'wudi'?\n"
