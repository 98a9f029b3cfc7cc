"""WUDI and WUDI v2: the Gram form against the objective as it is written, by autograd; the minimum against lstsq."""

import inspect

import numpy as np
import pytest
import torch
from memory import assert_merged, awkward, expected, float64_taus, run

from emkit.methods.wudi import wudi_matrix
from emkit.methods.wudi_v2 import wudi_v2_matrix

SHAPES = [(6, 11), (13, 4), (8, 8)]


def matrices(shape, experts=3, seed=0, dtype=torch.float64, zero=None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    taus = torch.randn(experts, *shape, generator=generator, dtype=torch.float64) * 0.1
    if zero is not None:
        taus[zero] = 0
    return taus.to(dtype)


def direct(start, targets, factors, taus, optimiser, iterations):
    """min_M Σ_i ‖(M − T_i) L_iᵀ‖²_F / ‖τ_i‖²_F, each term as it stands, gradients by autograd."""
    m = torch.nn.Parameter(start.clone())
    stepper = optimiser([m])
    for _ in range(iterations):
        stepper.zero_grad()
        loss = sum(
            ((m - target) @ factor.T).square().sum() / tau.square().sum()
            for target, factor, tau in zip(targets, factors, taus)
            if tau.any()
        )
        loss.backward()
        stepper.step()
    return m.detach()


def leading(matrix, r):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :r] @ torch.diag(s[:r]) @ vh[:r], torch.diag(s[:r]) @ vh[:r]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("experts, zero", [(1, None), (3, None), (3, 1)])
def test_wudi_is_the_direct_form(shape, experts, zero):
    taus = matrices(shape, experts, zero=zero)
    wanted = direct(taus.sum(0), taus, taus, taus, lambda p: torch.optim.Adam(p, lr=1e-3), 40)
    found = wudi_matrix(taus, "adam", 1e-3, 40)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    if experts > 1:
        assert float((found - taus.sum(0)).abs().max()) > 0.01
    single = wudi_matrix(taus.float(), "adam", 1e-3, 40)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("experts, zero", [(1, None), (3, None), (3, 1)])
def test_the_closed_form_is_the_minimum_in_the_experts_span(shape, experts, zero):
    """min ‖M Aᵀ − B‖ with A = [τ_i/‖τ_i‖] and B = [τ_i τ_iᵀ/‖τ_i‖]: lstsq gives the solution of least norm."""
    taus = matrices(shape, experts, zero=zero)
    own = [tau.numpy() for tau in taus if tau.any()]
    a = np.concatenate([tau / np.linalg.norm(tau) for tau in own])
    b = np.concatenate([tau @ tau.T / np.linalg.norm(tau) for tau in own])
    wanted = np.linalg.lstsq(a, b, rcond=None)[0].T
    np.testing.assert_allclose(wudi_matrix(taus, "closed_form"), wanted, atol=1e-7)
    long = wudi_matrix(taus, "adam", 1e-3, 4000)
    if len(own) > 1 and shape[1] < shape[0]:  # C is regular: Adam ends where the closed form is
        np.testing.assert_allclose(long, wanted, atol=5e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("experts, zero", [(1, None), (3, None), (3, 1)])
def test_wudi_v2_is_the_direct_form(shape, experts, zero):
    taus = matrices(shape, experts, zero=zero)
    r = min(shape) // experts
    factors = [leading(tau, r)[1] for tau in taus]
    mean = taus.mean(0)
    centred = [leading(tau - mean, r)[0] + mean for tau in taus]
    wanted = direct(taus.sum(0), centred, factors, taus, lambda p: torch.optim.Adam(p, lr=1e-3), 40)
    torch.testing.assert_close(wudi_v2_matrix(taus, "internvl", 1e-3, 40), wanted, rtol=0, atol=1e-7)
    plain = [leading(tau, r)[0] for tau in taus]
    wanted = direct(mean, plain, factors, taus, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 40)
    torch.testing.assert_close(wudi_v2_matrix(taus, "qwen2_vl", 0.1, 40), wanted, rtol=0, atol=1e-9)


def test_more_experts_than_dimensions_leave_the_start():
    taus = matrices((3, 2), experts=3)
    torch.testing.assert_close(wudi_v2_matrix(taus, "internvl", 1e-3, 5), taus.sum(0))
    torch.testing.assert_close(wudi_v2_matrix(taus, "qwen2_vl", 1e-3, 5), taus.mean(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["generic", "ties", "zero"])
def test_the_methods_are_their_matrices(kind, dtype):
    """From checkpoints to checkpoint with the authors' numbers; vectors are averaged."""
    task_vectors = awkward(kind, dtype=dtype)
    taus = float64_taus(task_vectors)

    def reference(combine):
        stacks = {name: torch.from_numpy(np.stack([tau[name] for tau in taus])) for name in taus[0]}
        return {n: (combine(s) if s.ndim == 3 else s.mean(0)).numpy() for n, s in stacks.items()}

    def wudi(stack):
        return direct(stack.sum(0), stack, stack, stack, lambda p: torch.optim.Adam(p, lr=1e-5), 300)

    def internvl(stack):
        r = min(stack[0].shape) // len(stack)
        factors = [leading(tau, r)[1] for tau in stack]
        targets = [leading(tau - stack.mean(0), r)[0] + stack.mean(0) for tau in stack]
        return direct(stack.sum(0), targets, factors, stack, lambda p: torch.optim.Adam(p, lr=1e-5), 300)

    def qwen2_vl(stack):
        r = min(stack[0].shape) // len(stack)
        factors, targets = [leading(tau, r)[1] for tau in stack], [leading(tau, r)[0] for tau in stack]
        return direct(stack.mean(0), targets, factors, stack, lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9), 300)

    for method, options, combine in (
        ("wudi", {}, wudi),
        ("wudi_v2", {}, internvl),
        ("wudi_v2", {"form": "qwen2_vl"}, qwen2_vl),
    ):
        wanted = expected(task_vectors, reference(combine))
        assert_merged(run(method, task_vectors, **options), wanted, dtype, atol=2e-4)


# ---- properties
def test_scaling_all_experts_scales_the_minimum():
    taus = matrices((6, 11))
    torch.testing.assert_close(wudi_matrix(3 * taus, "closed_form"), 3 * wudi_matrix(taus, "closed_form"))


def test_copies_of_one_expert_have_that_expert_as_their_minimum():
    tau = matrices((6, 11), 1)
    torch.testing.assert_close(wudi_matrix(tau.repeat(4, 1, 1), "closed_form"), tau[0], rtol=0, atol=1e-7)


def test_nothing_but_zeros_is_zero():
    zeros = torch.zeros(3, 5, 4)
    for found in (
        wudi_matrix(zeros),
        wudi_matrix(zeros, "closed_form"),
        wudi_v2_matrix(zeros),
        wudi_v2_matrix(zeros, "qwen2_vl"),
    ):
        assert torch.equal(found, torch.zeros(5, 4))


def test_how_far_adam_can_move_an_entry():
    """What the docstring says of 300 steps at 1e-5: 0.003 by a steady gradient, up to 3.7e-5 in the last step by the
    worst sequence of gradients (its ratio of the averages' weights, by Cauchy–Schwarz), 0.0078 in all at most."""
    one, two, lr = 0.9, 0.999, 1e-5

    def moved(gradients) -> list[float]:
        entry = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        adam, places = torch.optim.Adam([entry], lr=lr, eps=0), [0.0]
        for gradient in gradients:
            entry.grad = torch.tensor([gradient], dtype=torch.float64)
            adam.step()
            places.append(entry.item())
        return np.abs(np.diff(places)).tolist()

    def bound(t: int) -> float:
        series = sum((one**2 / two) ** j for j in range(t))
        return lr * (1 - one) / (1 - one**t) * ((1 - two**t) / (1 - two) * series) ** 0.5

    assert sum(moved([1.0] * 300)) == pytest.approx(0.003, rel=1e-6)
    for t in (1, 2, 10, 100, 300):
        worst = moved([(one / two) ** (t - i) for i in range(1, t + 1)])
        assert worst[-1] == pytest.approx(bound(t), rel=1e-6)
        assert all(step <= bound(i) * (1 + 1e-9) for i, step in enumerate(worst, 1))
    assert bound(1) == pytest.approx(lr) and bound(300) == pytest.approx(3.7e-5, rel=0.01)
    assert 0.0077 < sum(bound(t) for t in range(1, 301)) < 0.0078
    said = inspect.getdoc(wudi_matrix)
    assert "3.7 ``lr``" in said and "0.0078" in said
