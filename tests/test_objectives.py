"""Eq. 1–3 against plain numpy."""

import numpy as np
import pytest
import torch

from emkit.alignment.heads import Head
from emkit.alignment.objectives import hidden_alignment, logit_alignment, objective, regulariser

RNG = np.random.default_rng(0)
Z, ZK = RNG.normal(size=(2, 7, 11)) * 3
H, HK = RNG.normal(size=(2, 7, 5))


def eq_2(z, zk, temperature=1.0):
    """Of logits: heads that are the identity."""
    z, zk = (logits if torch.is_tensor(logits) else torch.tensor(logits) for logits in (z, zk))
    same = Head(torch.eye(z.shape[1], dtype=z.dtype))
    return logit_alignment(z, same, zk, same, temperature)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_logit_alignment_is_eq_2(temperature):
    p, q = softmax(ZK / temperature), softmax(Z / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=-1)
    found = eq_2(Z, ZK, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(eq_2(ZK, ZK, temperature), 0, atol=1e-12)


def test_logit_alignment_has_the_gradient_of_the_authors_soft_cross_entropy():
    z = torch.tensor(Z, requires_grad=True)
    eq_2(z, ZK, 2.0).sum().backward()
    p, q = softmax(ZK / 2.0), softmax(Z / 2.0)
    np.testing.assert_allclose(z.grad, 2.0 * (q - p), rtol=1e-9, atol=1e-12)


def test_hidden_alignment_is_eq_1_or_its_mean():
    squared = [sum((a - b) ** 2 for a, b in zip(x, y)) for x, y in zip(H, HK)]
    h, hk = torch.tensor(H), torch.tensor(HK)
    np.testing.assert_allclose(hidden_alignment(h, hk, "squared_norm"), squared, rtol=1e-12)
    np.testing.assert_allclose(hidden_alignment(h, hk, "mean_squared"), np.array(squared) / 5, rtol=1e-12)
    with pytest.raises(ValueError):
        hidden_alignment(h, hk, "cosine")


def test_regulariser_is_eq_3_or_k_squared_of_it():
    k, layers = 3, 4
    alpha, initial = RNG.normal(size=(k, layers)), np.array([[0.1], [0.2], [0.3]])
    paper = sum(abs(alpha[i, j] - initial[i, 0]) for i in range(k) for j in range(layers)) / (k * layers)
    a, b = torch.tensor(alpha.reshape(-1)), torch.tensor(np.repeat(initial, layers, axis=1).reshape(-1))
    n, value, slope = k * layers, 0, 1
    sign = np.sign(alpha - initial).reshape(-1)
    for kind, tasks, wanted in [("paper", None, 1), ("authors", None, k**2), ("authors", 0.25, 0.25 * k)]:
        found = regulariser(a, b, k, layers, kind, tasks)
        np.testing.assert_allclose(found[value], wanted * paper, rtol=1e-12)
        np.testing.assert_allclose(found[slope], wanted * sign / n, rtol=1e-12)
    # chunks: Section 3.3 divides by B K, whatever the floor left of B
    np.testing.assert_allclose(regulariser(a, b, k, 5.5, "paper")[value], paper * layers / 5.5, rtol=1e-12)
    with pytest.raises(ValueError):
        regulariser(a, b, k, layers, "l2")


def test_the_regularisers_subgradient_is_autograds_and_a_given_side_stands_for_it():
    alpha = torch.tensor(RNG.normal(size=9), requires_grad=True)
    initial = alpha.detach() + torch.tensor([1.0, -1, 0] * 3)
    (3 * sum((a - b).abs() for a, b in zip(alpha, initial)) / (3 * 4)).backward()
    value, slope = regulariser(alpha.detach(), initial, 3, 4)
    torch.testing.assert_close(3 * slope, alpha.grad)
    side = torch.tensor([1.0] * 9)
    again, given = regulariser(alpha.detach(), initial, 3, 4, side=side)
    assert torch.equal(again, value) and torch.equal(given, side / 12)


def test_the_objective_is_the_sum_of_eq_3():
    losses = {"a": {"hidden": 0.5, "logit": 2.0}, "b": {"hidden": 1.0, "logit": 3.0}}
    assert objective(losses, {"a": 2.0}, 0.8, 0.25) == pytest.approx(2.0 * (0.5 + 2.0) + (1.0 + 3.0) + 0.8 * 0.25)
    terms = {
        task: {name: torch.tensor(value, requires_grad=True) for name, value in t.items()} for task, t in losses.items()
    }
    objective(terms, {"a": 2.0}).backward()
    assert {task: {float(v.grad) for v in t.values()} for task, t in terms.items()} == {"a": {2.0}, "b": {1.0}}
