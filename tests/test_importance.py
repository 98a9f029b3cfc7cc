"""Layer importance and Eq. 4 against cases worked by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emkit.alignment.importance import allocate_chunks, chunked_start, layer_importance
from emkit.coefficients import Coefficients
from emkit.errors import UserError


@pytest.mark.parametrize(
    "importance, budget, kappa, expected",
    [
        # B = 4: shares 2, 1, 0.6, 0.4 → floors; what is left over (1) stays unspent
        ([0.5, 0.25, 0.15, 0.1], 1.0, 1.0, [2, 1, 0, 0]),
        # κ = 0: every layer the same share B / L, whatever its importance, zero included
        ([0.7, 0.2, 0.1, 0.0], 1.0, 0.0, [1, 1, 1, 1]),
        ([0.7, 0.2, 0.1, 0.0], 2.5, 0.0, [2, 2, 2, 2]),
        # ties get the same count; B = 3: shares 1, 1, 1
        ([1 / 3, 1 / 3, 1 / 3], 1.0, 1.2, [1, 1, 1]),
        # κ = 2, B = 4: squares 16, 4, 4, 0 of 24 → 2.67, 0.67, 0.67, 0
        ([0.5, 0.25, 0.25, 0.0], 1.0, 2.0, [2, 0, 0, 0]),
        # κ = 1/2 flattens, B = 6: roots 4, 2, 1 of 7 → 3.43, 1.71, 0.86
        ([16 / 21, 4 / 21, 1 / 21], 2.0, 0.5, [3, 1, 0]),
        # one layer has all importance
        ([1.0, 0.0], 1.0, 1.2, [2, 0]),
        # no budget: everything is fixed
        ([0.5, 0.5], 0.0, 1.0, [0, 0]),
    ],
)
def test_eq_4_by_hand(importance, budget, kappa, expected):
    named = {f"layer{i}": value for i, value in enumerate(importance)}
    assert list(allocate_chunks(named, budget, kappa).values()) == expected


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.sampled_from([0.9, 1.0, 1.2, 2.0]))
def test_eq_4_agrees_with_exact_fractions_for_kappa_one(weights, budget):
    total = sum(weights)
    found = allocate_chunks({str(i): w / total for i, w in enumerate(weights)}, budget, 1.0)
    b = Fraction(str(budget)) * len(weights)
    assert list(found.values()) == [math.floor(b * w / total) for w in weights]
    assert sum(found.values()) <= b


def test_negative_budget_or_kappa_is_one_line():
    for budget, kappa in ((-1, 1), (1, -0.1)):
        with pytest.raises(UserError, match="must not be negative"):
            allocate_chunks({"a": 1.0}, budget, kappa)


def random_coefficients(task_vectors, seed=0) -> Coefficients:
    rng = np.random.default_rng(seed)
    k = len(task_vectors.experts)
    return Coefficients(task_vectors.experts, {name: rng.normal(size=(k, 1)) for name in task_vectors.names})


@pytest.mark.parametrize("normalise", ["per_expert", "joint"])
def test_importance_is_the_formula_of_section_3_3(task_vectors, normalise):
    alpha = random_coefficients(task_vectors)
    found = layer_importance(alpha, task_vectors, normalise)
    base = task_vectors.base
    tau = {
        (k, name): expert.read(name).double().numpy() - base.read(name).double().numpy()
        for k, expert in enumerate(task_vectors.checkpoints.values())
        for name in task_vectors.names
    }
    s = {key: np.abs(value).mean() for key, value in tau.items()}
    if normalise == "per_expert":
        sums = {k: sum(v for (j, _), v in s.items() if j == k) for k in (0, 1)}
        s = {(k, name): value / sums[k] for (k, name), value in s.items()}
    raw = {
        name: sum(abs(alpha.values[name][k, 0]) * s[k, name] for k in (0, 1)) * tau[0, name].size
        for name in task_vectors.names
    }
    total = sum(raw.values())
    assert found.keys() == raw.keys() and math.isclose(sum(found.values()), 1.0)
    for name, value in found.items():
        assert math.isclose(value, raw[name] / total, rel_tol=1e-6)


def test_importance_that_cannot_be_told_is_one_line(task_vectors):
    zero = Coefficients.constant(task_vectors.names, dict.fromkeys(task_vectors.experts, 0.0))
    with pytest.raises(UserError, match="all learned coefficients are 0"):
        layer_importance(zero, task_vectors)
    task_vectors.tau = lambda name: torch.zeros(2, 3)
    with pytest.raises(UserError, match="an expert equals the base"):
        layer_importance(random_coefficients(task_vectors), task_vectors)


@pytest.mark.parametrize(
    "fixed, start, value_a, value_b", [("stage1", "initial", 0.3, 9.0), ("initial", "stage1", 8.0, 0.3)]
)
def test_layers_without_chunks_keep_one_fixed_coefficient(fixed, start, value_a, value_b):
    stage1 = Coefficients(("E",), {"a": np.array([[8.0]]), "b": np.array([[9.0]])})
    initial = Coefficients.constant(["a", "b"], {"E": 0.3})
    found = chunked_start(stage1, initial, {"a": 3, "b": 0}, fixed, start, {"a": 10, "b": 10})
    assert found.values["a"].tolist() == [[value_a] * 3]
    assert found.values["b"].tolist() == [[value_b]]
    assert found.fixed == {"b"} and len(found.flat()) == 3


def test_more_chunks_than_a_tensor_has_elements_is_one_line():
    one = Coefficients.constant(["a"], {"E": 0.3})
    with pytest.raises(UserError, match="lower the budget or kappa"):
        chunked_start(one, one, {"a": 5}, "stage1", "stage1", {"a": 4})
