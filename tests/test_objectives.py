"""Eq. 1–3 against plain numpy."""

import numpy as np
import pytest
import torch

from emkit.alignment.objectives import hidden_alignment, logit_alignment, regulariser

RNG = np.random.default_rng(0)
Z, ZK = RNG.normal(size=(2, 7, 11)) * 3
H, HK = RNG.normal(size=(2, 7, 5))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_logit_alignment_is_eq_2(temperature):
    p, q = softmax(ZK / temperature), softmax(Z / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=-1)
    found = logit_alignment(torch.tensor(Z), torch.tensor(ZK), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(logit_alignment(torch.tensor(ZK), torch.tensor(ZK), temperature), 0, atol=1e-12)


def test_logit_alignment_has_the_gradient_of_the_authors_soft_cross_entropy():
    z = torch.tensor(Z, requires_grad=True)
    logit_alignment(z, torch.tensor(ZK), 2.0).sum().backward()
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
    np.testing.assert_allclose(regulariser(a, b, k, layers, "paper"), paper, rtol=1e-12)
    np.testing.assert_allclose(regulariser(a, b, k, layers, "authors"), k**2 * paper, rtol=1e-12)
    # chunks: Section 3.3 divides by B K, whatever the floor left of B
    np.testing.assert_allclose(regulariser(a, b, k, 5.5, "paper"), paper * layers / 5.5, rtol=1e-12)
    with pytest.raises(ValueError):
        regulariser(a, b, k, layers, "l2")
