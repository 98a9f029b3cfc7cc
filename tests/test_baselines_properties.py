"""What has to hold for any task vectors: permuting the experts, scaling them, copies of one expert."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from memory import run, task_vectors_of

from emkit.methods.iso_c import iso_c
from emkit.methods.ties import Elected, Trimmed, disjoint_merge
from emkit.methods.tsv import polar, tsv
from emkit.methods.wudi import wudi_matrix
from emkit.methods.wudi_v2 import wudi_v2_matrix

# small integers, so that ties, zeros and sums of exactly 0 are frequent
entries = st.integers(-3, 3)


@st.composite
def models(draw, min_experts=1):
    """A base of zeros (fp32), and experts of a matrix and a vector."""
    k, m, n = draw(st.integers(min_experts, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    shapes = {"matrix": (m, n), "vector": (n,)}
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    experts = {
        f"E{i}": {
            name: torch.from_numpy(draw(arrays(np.float32, shape, elements=entries.map(np.float32))))
            for name, shape in shapes.items()
        }
        for i in range(k)
    }
    return base, experts


def selected(base, experts, density=0.5, scope="model"):
    return Elected(Trimmed(task_vectors_of(base, experts), density, scope), scope)


few = settings(max_examples=60, deadline=None)


@few
@given(models(2), st.randoms(use_true_random=False), st.sampled_from(["model", "tensor"]))
def test_the_order_of_experts_does_not_matter_to_ties_and_dare(model, random, scope):
    base, experts = model
    order = list(experts)
    random.shuffle(order)
    shuffled = {name: experts[name] for name in order}
    for method, options in (("ties", {"scope": scope}), ("ta_dare", {}), ("ties_dare", {"scope": scope})):
        first = run(method, task_vectors_of(base, experts), 0.5, 3, **options)
        second = run(method, task_vectors_of(base, shuffled), 0.5, 3, **options)
        for name in first:
            np.testing.assert_allclose(first[name], second[name], atol=1e-5)


@few
@given(models(), st.sampled_from([0.25, 2.0, 1024.0]), st.sampled_from(["model", "tensor"]))
def test_ties_of_scaled_experts_is_the_scaled_merge(model, factor, scope):
    """A power of two scales fp32 numbers exactly, so thresholds and signs must not move at all."""
    base, experts = model
    larger = {k: {name: factor * tensor for name, tensor in tensors.items()} for k, tensors in experts.items()}
    first, second = (run("ties", task_vectors_of(base, e), 1.0, scope=scope) for e in (experts, larger))
    for name in first:
        np.testing.assert_array_equal(factor * first[name], second[name])


@few
@given(models(), st.integers(2, 5))
def test_copies_of_one_expert_are_that_expert_trimmed(model, copies):
    base, experts = model
    one = {"E0": experts["E0"]}
    many = {f"E{i}": experts["E0"] for i in range(copies)}
    alone = Trimmed(task_vectors_of(base, one), 0.5)
    for name in base:
        merged = disjoint_merge(selected(base, many).taus(name))
        torch.testing.assert_close(merged, alone.tau(name)[0], rtol=1e-6, atol=0)
        total = disjoint_merge(selected(base, many).taus(name), "sum")
        torch.testing.assert_close(total, copies * alone.tau(name)[0])


@few
@given(models(), st.sampled_from(["model", "tensor"]), st.sampled_from([0.2, 0.5, 1.0]))
def test_selected_entries_are_the_experts_own_and_of_one_sign(model, scope, density):
    base, experts = model
    view = selected(base, experts, density, scope)
    for name in base:
        tau = view.tau(name)
        own = torch.stack([tensors[name] for tensors in experts.values()])
        assert bool(((tau == 0) | (tau == own)).all())
        assert not bool(((tau > 0).any(0) & (tau < 0).any(0)).any())


# ---- one matrix of K
def random_matrices(seed, experts=3, shape=(7, 5)):
    return torch.randn(experts, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COMBINERS = {
    "tsv": tsv,
    "iso_c": iso_c,
    "wudi": lambda taus: wudi_matrix(taus, "adam", 1e-3, 20),
    "wudi closed form": lambda taus: wudi_matrix(taus, "closed_form"),
    "wudi_v2 internvl": lambda taus: wudi_v2_matrix(taus, "internvl", 1e-3, 20),
    "wudi_v2 qwen2_vl": lambda taus: wudi_v2_matrix(taus, "qwen2_vl", 1e-3, 20),
}


@pytest.mark.parametrize("name", list(COMBINERS))
@pytest.mark.parametrize("shape", [(7, 5), (4, 9), (6, 6), (8, 1)])
def test_the_order_of_matrices_does_not_matter(name, shape):
    for seed in range(5):
        taus = random_matrices(seed, shape=shape)
        first, second = COMBINERS[name](taus), COMBINERS[name](taus[[2, 0, 1]])
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["tsv", "iso_c", "wudi closed form"])
def test_scaled_matrices_give_the_scaled_merge(name):
    for seed in range(5):
        taus = random_matrices(seed)
        torch.testing.assert_close(COMBINERS[name](5 * taus), 5 * COMBINERS[name](taus))


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
def test_rotations_of_rows_and_columns_pass_through(name):
    taus = random_matrices(0, shape=(6, 6))
    left, right = (torch.linalg.qr(random_matrices(seed, 1, (6, 6))[0])[0] for seed in (1, 2))
    torch.testing.assert_close(COMBINERS[name](left @ taus @ right), left @ COMBINERS[name](taus) @ right)


def test_one_expert_is_itself_to_tsv_and_its_own_minimum_to_wudi():
    taus = random_matrices(0, 1)
    for name in ("tsv", "wudi", "wudi closed form", "wudi_v2 internvl", "wudi_v2 qwen2_vl"):
        torch.testing.assert_close(COMBINERS[name](taus), taus[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("copies", [2, 3])
def test_copies_of_one_expert_are_its_leading_part_to_tsv(copies):
    tau = random_matrices(0, 1, (9, 6))[0]
    u, s, vh = np.linalg.svd(tau.numpy(), full_matrices=False)
    r = 6 // copies
    wanted = u[:, :r] @ np.diag(s[:r]) @ vh[:r]
    np.testing.assert_allclose(tsv(tau.repeat(copies, 1, 1)), wanted, atol=1e-10)


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_one_expert_are_k_times_one_to_iso_c(copies):
    tau = random_matrices(0, 1)
    torch.testing.assert_close(iso_c(tau.repeat(copies, 1, 1)), copies * iso_c(tau))


def test_the_polar_factor_is_the_nearest_orthonormal_matrix():
    matrix = random_matrices(3, 1, (8, 5))[0]
    found = polar(matrix)
    torch.testing.assert_close(found.T @ found, torch.eye(5, dtype=torch.float64))
    distance = float((matrix - found).norm())
    for seed in range(20):
        other = torch.linalg.qr(found + 0.05 * random_matrices(seed, 1, (8, 5))[0])[0]
        other = other * torch.sign((other * found).sum(0))
        assert float((matrix - other).norm()) > distance - 1e-12


def test_tsv_decorrelates():
    """Singular vectors are orthonormal across tasks: the merged matrix has the experts' leading values as its own."""
    taus = random_matrices(5, 3, (12, 9))
    values = torch.cat([torch.linalg.svdvals(tau)[:3] for tau in taus]).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(tsv(taus)), values)
