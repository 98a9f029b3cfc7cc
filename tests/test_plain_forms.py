"""The formula that a lecturer would show is what runs: every plain form against its streamed one, at awkward sizes."""

import numpy as np
import pytest
import torch
from memory import run, task_vectors_of

from emkit import blocks
from emkit.methods.dare import dare, random_bits
from emkit.methods.iso_c import iso_c
from emkit.methods.task_arithmetic import task_arithmetic
from emkit.methods.ties import ties
from emkit.methods.ties_dare import ties_dare
from emkit.methods.tsv import tsv
from emkit.methods.weight_average import weight_average
from emkit.methods.wudi import wudi
from emkit.methods.wudi_v2 import wudi_v2

BLOCK = 64  # entries of all experts in a block
SIZES = [(1,), (2,), (31,), (32,), (33,), (64,), (65,), (7, 9), (16, 4), (1, 5), (13, 1)]
SCALE = 0.7


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", BLOCK)


def one_tensor(shape, experts, dtype, seed=0):
    """Task vectors of one tensor, their τ_k [K, *shape] in fp32, and the base."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).to(dtype)
    steps = [0.3 * torch.randn(shape, generator=generator) for _ in range(experts)]
    tensors = {f"E{k}": {"x": (base.float() + step).to(dtype)} for k, step in enumerate(steps)}
    taus = torch.stack([expert["x"].float() - base.float() for expert in tensors.values()])
    return task_vectors_of({"x": base}, tensors), taus, base


def uniform(taus, seed):
    """The numbers that the streamed form draws for tensor x, in [0, 1)."""
    draws = [random_bits(tau.numel(), seed, f"E{k}", "x").astype(np.float64) / 2**32 for k, tau in enumerate(taus)]
    return torch.from_numpy(np.stack(draws)).reshape(taus.shape)


def assert_same(method, shape, experts, dtype, merged, scale: float | None = SCALE, atol=2e-6, **options):
    """``merged`` of the experts' τ [K, *shape] and the base, rounded to the base's dtype, is what the method writes."""
    vectors, taus, base = one_tensor(shape, experts, dtype)
    found = run(method, vectors, scale, **options)["x"]
    wanted = merged(taus, base.float()).to(dtype).double().numpy()
    np.testing.assert_allclose(found, wanted, rtol=torch.finfo(dtype).eps, atol=atol)


every = [
    pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str),
    pytest.mark.parametrize("experts", [1, 2, 3, 4]),
    pytest.mark.parametrize("shape", SIZES, ids=str),
]


def for_all(test):
    for mark in every:
        test = mark(test)
    return test


@for_all
def test_entry_by_entry(shape, experts, dtype):
    added = lambda of: lambda taus, base: base + SCALE * of(taus)  # noqa: E731
    assert_same("weight_average", shape, experts, dtype, lambda t, b: weight_average(t + b), None)
    assert_same("task_arithmetic", shape, experts, dtype, lambda t, b: task_arithmetic(b, t, SCALE))
    thinned = lambda taus: dare(taus, 0.4, uniform(taus, 0)).sum(0)  # noqa: E731
    assert_same("ta_dare", shape, experts, dtype, added(thinned), drop=0.4)
    for merge in ("mean", "sum"):
        assert_same(
            "ties", shape, experts, dtype, added(lambda t, how=merge: ties(t, 0.5, how)), density=0.5, merge=merge
        )
    for trim in (True, False):
        plain = lambda t, again=trim: ties_dare(t, 0.3, 0.5, "mean", again, uniform(t, 0))  # noqa: E731
        assert_same("ties_dare", shape, experts, dtype, added(plain), drop=0.3, density=0.5, second_trim=trim)


def test_ties_is_exact_over_the_whole_vector_of_several_tensors():
    """scope model: the plain form on the concatenated tensors, bit for bit; ties in magnitude and in the election."""
    rng = np.random.default_rng(0)
    shapes = {"a": (5, 7), "b": (33,), "c": (2, 3, 4)}
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    experts = {
        f"E{k}": {n: torch.tensor(rng.integers(-3, 4, s), dtype=torch.float32) for n, s in shapes.items()}
        for k in range(4)
    }
    whole = torch.stack([torch.cat([tensors[name].reshape(-1) for name in shapes]) for tensors in experts.values()])
    for density in (0.1, 0.5, 1.0):
        found = run("ties", task_vectors_of(base, experts), 1.0, density=density)
        joined = np.concatenate([found[name].reshape(-1) for name in shapes])
        assert np.array_equal(joined, ties(whole, density).double().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("experts", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(7, 9), (16, 4), (12, 12), (1, 5)], ids=str)
def test_matrix_by_matrix(shape, experts, dtype):
    added = lambda of, scale=1.0: lambda taus, base: base + scale * of(taus)  # noqa: E731
    assert_same("tsv", shape, experts, dtype, added(tsv), None, atol=2e-5)
    assert_same("iso_c", shape, experts, dtype, added(iso_c, SCALE), SCALE, atol=2e-5)
    steps = {"lr": 1e-3, "iterations": 25}
    assert_same("wudi", shape, experts, dtype, added(lambda t: wudi(t, 1e-3, 25)), None, atol=1e-3, **steps)
    for form, lr in (("internvl", 1e-3), ("qwen2_vl", 0.1)):
        plain = lambda t, f=form, rate=lr: wudi_v2(t, f, rate, 25)  # noqa: E731
        assert_same("wudi_v2", shape, experts, dtype, added(plain), None, atol=1e-3, form=form, lr=lr, iterations=25)
