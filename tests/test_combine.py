"""Linear merging against independent float64 arithmetic, and bit for bit where the result is one of the inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from emkit.coefficients import chunk_bounds, mean_experts, merge_experts, merge_tensor

HALVES = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # the exponent bits: all set means NaN or infinity


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy()


@st.composite
def halves(draw, tensors=2):
    """Some tensors of one 16-bit dtype with any finite bit patterns: subnormal, huge, negative zero, far apart."""
    dtype = draw(st.sampled_from(list(HALVES)))
    n = draw(st.integers(1, 24))
    patterns = st.integers(0, 0xFFFF).filter(lambda b: b & HALVES[dtype] != HALVES[dtype])
    raw = [draw(arrays(np.uint16, n, elements=patterns)) for _ in range(tensors)]
    return [torch.from_numpy(x.view(np.int16).copy()).view(dtype) for x in raw]


@settings(max_examples=300, deadline=None)
@given(halves(), st.integers(1, 4))
def test_alpha_zero_is_the_base_and_alpha_one_the_expert_bit_for_bit(tensors, chunks):
    base, expert = tensors
    m = min(chunks, len(base))
    np.testing.assert_array_equal(bits(merge_experts(base, [expert], np.zeros((1, m)))), bits(base))
    np.testing.assert_array_equal(bits(merge_experts(base, [expert], np.ones((1, m)))), bits(expert))


@settings(max_examples=100, deadline=None)
@given(halves(tensors=4), st.integers(0, 2))
def test_one_hot_coefficients_pick_their_expert_bit_for_bit(tensors, k):
    base, *experts = tensors
    np.testing.assert_array_equal(bits(merge_experts(base, experts, np.eye(3)[:, k : k + 1])), bits(experts[k]))


def test_the_textbook_sum_would_not_be_exact():
    """Why merge_experts does not add task vectors: 1 + (2⁻³⁰ − 1) is 0 in fp32."""
    base, expert = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0**-30], dtype=torch.bfloat16)
    tau = expert.float() - base.float()
    assert float(base.float() + tau) == 0.0
    assert float(merge_experts(base, [expert], np.ones((1, 1)))) == 2.0**-30


@settings(max_examples=100, deadline=None)
@given(halves(tensors=3))
def test_merge_tensor_with_zero_coefficients_is_the_base_bit_for_bit(tensors):
    base, *others = tensors
    tau = torch.stack([t.float() for t in others])
    np.testing.assert_array_equal(bits(merge_tensor(base, tau, np.zeros((2, 1)))), bits(base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunks", [1, 7])
def test_linear_merges_agree_with_float64(dtype, chunks):
    rng = np.random.default_rng(0)
    base = torch.tensor(rng.normal(size=(13, 11)), dtype=dtype)
    experts = [(base + torch.tensor(rng.normal(size=(13, 11)) * 0.1)).to(dtype) for _ in range(3)]
    alpha = rng.normal(size=(3, chunks))
    b, *e = [t.double().numpy().reshape(-1) for t in (base, *experts)]
    per_element = np.repeat(alpha, np.diff(chunk_bounds(len(b), chunks)), axis=1)
    expected = (b + sum(a * (x - b) for a, x in zip(per_element, e))).reshape(13, 11)
    ulp = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}[dtype]
    # half a unit in the last place of the result's dtype, and a few fp32 roundings of terms of size 4
    tolerance = {"rtol": 2 * ulp, "atol": 3e-6}
    np.testing.assert_allclose(merge_experts(base, experts, alpha).double(), expected, **tolerance)
    tau = torch.stack([x.float() - base.float() for x in experts])
    np.testing.assert_allclose(merge_tensor(base, tau, alpha).double(), expected, **tolerance)


def test_weight_average_is_the_mean_of_the_experts_without_the_base():
    rng = np.random.default_rng(1)
    for k in range(1, 8):
        experts = [torch.tensor(rng.normal(size=50), dtype=torch.float32) for _ in range(k)]
        expected = np.mean([x.double().numpy() for x in experts], axis=0)
        base = torch.full((50,), 1e6)
        np.testing.assert_allclose(mean_experts(base, experts).double(), expected, rtol=0, atol=1e-6)


@given(halves(tensors=1), st.integers(1, 6))
def test_equal_experts_average_to_themselves(tensors, k):
    expert = tensors[0]
    if torch.isfinite(expert.float() * k).all():
        assert torch.equal(mean_experts(torch.zeros_like(expert), [expert] * k), expert)
