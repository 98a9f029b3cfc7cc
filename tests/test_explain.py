"""``emkit explain``: everything a method declares is shown, from the method itself."""

import numpy as np
import pytest

from emkit import explain
from emkit.backbones import NAMES
from emkit.cli import main
from emkit.config import about, default
from emkit.methods import registry, resolved

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
    assert all(name in listed for name in registry())
    assert main(["explain", "wudy"]) == 2
    assert capsys.readouterr().err == "error: unknown method 'wudy': did you mean 'wudi'?\n"
