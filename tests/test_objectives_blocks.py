"""Eq. 2 and the entropy by blocks of the vocabulary against numpy, and torch's own under autograd, in float64."""

import numpy as np
import pytest
import torch
from engine_toys import divergence

from emkit.alignment import objectives
from emkit.alignment.heads import Head, headless
from emkit.alignment.objectives import entropy, logit_alignment

RNG = np.random.default_rng(0)
N, D, DK, V = 6, 5, 4, 23
H, HK = torch.tensor(RNG.normal(size=(N, D))), torch.tensor(RNG.normal(size=(N, DK)))
HEAD = Head(torch.tensor(RNG.normal(size=(V, D)) * 2), torch.tensor(RNG.normal(size=V)))
TEACHER = Head(torch.tensor(RNG.normal(size=(V, DK)) * 2))
WEIGHT = torch.tensor(RNG.uniform(0.5, 2, size=N))
BLOCKS = pytest.mark.parametrize("block", [1, 7, 22, 23, 100, None])


def numpy_kl(temperature):
    z = (H.numpy() @ HEAD.weight.numpy().T + HEAD.bias.numpy()) / temperature
    zk = HK.numpy() @ TEACHER.weight.numpy().T / temperature
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (zk, z))
    return temperature**2 * (p * np.log(p / q)).sum(axis=1), temperature * (q - p) @ HEAD.weight.numpy()


@BLOCKS
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_alignment_and_its_gradient(block, temperature):
    final = H.clone().requires_grad_()
    found = logit_alignment(final, HEAD, HK, TEACHER, temperature, block)
    (found * WEIGHT).sum().backward()
    value, gradient = numpy_kl(temperature)
    np.testing.assert_allclose(found.detach(), value, rtol=1e-10)
    np.testing.assert_allclose(final.grad, gradient * WEIGHT.numpy()[:, None], rtol=1e-10, atol=1e-13)
    plain = divergence(HEAD.logits(H), TEACHER.logits(HK), temperature)
    np.testing.assert_allclose(found.detach(), plain, rtol=1e-12)


def test_positions_are_taken_some_at_a_time(monkeypatch):
    """400 positions with a vocabulary that is too large for one block: the same values and gradients."""
    monkeypatch.setitem(objectives.HELD, "cpu", 1500)
    h, teacher = torch.randn(400, D, dtype=torch.float64), torch.randn(400, DK, dtype=torch.float64)
    final, other = h.clone().requires_grad_(), h.clone().requires_grad_()
    for function, plain in (
        (
            lambda f: logit_alignment(f, HEAD, teacher, TEACHER, 1.3),
            lambda f: divergence(HEAD.logits(f), TEACHER.logits(teacher), 1.3),
        ),
        (lambda f: entropy(f, HEAD), lambda f: plain_entropy(HEAD.logits(f))),
    ):
        found, expected = function(final), plain(other)
        np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-10, atol=1e-12)
        found.square().sum().backward()
        expected.square().sum().backward()
        np.testing.assert_allclose(final.grad, other.grad, rtol=1e-9, atol=1e-10)


def plain_entropy(logits):
    return torch.distributions.Categorical(logits=logits).entropy()


@BLOCKS
def test_entropy_and_its_gradient(block):
    final, other = H.clone().requires_grad_(), H.clone().requires_grad_()
    found = entropy(final, HEAD, block)
    (found * WEIGHT).sum().backward()
    z = H.numpy() @ HEAD.weight.numpy().T + HEAD.bias.numpy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.detach(), -(p * np.log(p)).sum(axis=1), rtol=1e-10)
    (plain_entropy(HEAD.logits(other)) * WEIGHT).sum().backward()
    np.testing.assert_allclose(final.grad, other.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("block", [7, None])
def test_alignment_with_oneself_is_0_and_large_logits_stay_finite(block):
    head = Head(HEAD.weight.float() * 1000)
    final = H.float().requires_grad_()
    found = logit_alignment(final, head, H.float(), head, 1.0, block)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), 0, atol=1e-4)
    assert bool(torch.isfinite(final.grad).all())
    assert bool(torch.isfinite(entropy(final, head, block)).all())


@pytest.mark.parametrize("function", ["logit_alignment", "entropy"])
def test_tokens_by_vocabulary_are_never_held(function):
    """No tensor of N × V numbers is made, nor of more than a few blocks."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if torch.is_tensor(tensor) and tensor.ndim == 2:
                    largest = max(largest, tensor.numel() if tensor.shape[1] != 8 else 0)
            return out

    h, weight = torch.randn(50, 8, requires_grad=True), torch.randn(5000, 8)
    with Watch():
        if function == "logit_alignment":
            logit_alignment(h, Head(weight), h.detach(), Head(weight), 1.0, 100).sum().backward()
        else:
            entropy(h, Head(weight), 100).sum().backward()
    assert largest == 50 * 100


def test_a_model_without_its_head_gives_final_states():
    import tiny_models as tiny

    for kind in ("mistral", "gpt_neox"):
        model = tiny.language_model(kind)
        ids = torch.arange(5)[None] + 10
        with torch.no_grad():
            logits = model(ids).logits
            with headless(model) as head:
                final = model(ids).logits
            assert final.shape == (1, 5, 16)
            torch.testing.assert_close(head.logits(final[0]), logits[0])
            torch.testing.assert_close(model(ids).logits, logits)
