"""DARE's draws, TIES' exact threshold and its election, each against its definition."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from memory import awkward, float64_taus, run, task_vectors_of

from emkit.methods.dare import Dropped, drop_and_rescale, random_bits
from emkit.methods.ties import Elected, Trimmed, magnitude_thresholds

KINDS = ("generic", "ties", "sparse", "zero", "copies")


# ---- the threshold
def split_vector(vectors: np.ndarray):
    """K whole vectors [K, n] as task vectors of three tensors over a base of zeros."""
    n = vectors.shape[1]
    cuts = [0, n // 3, n // 2, n]
    parts = {f"t{i}": slice(a, b) for i, (a, b) in enumerate(itertools.pairwise(cuts))}
    base = {name: torch.zeros(vectors[0, part].shape) for name, part in parts.items()}
    experts = {
        f"E{k}": {name: torch.from_numpy(v[part].copy()) for name, part in parts.items()} for k, v in enumerate(vectors)
    }
    return task_vectors_of(base, experts)


def sorted_thresholds(vectors: np.ndarray, density: float) -> np.ndarray:
    k = vectors.shape[1] - int(vectors.shape[1] * density)  # d - int(d * K) of the original
    return np.sort(np.abs(vectors), axis=1)[:, k - 1] if k else np.zeros(len(vectors), np.float32)


finite_bits = st.integers(0, 2**32 - 1).filter(lambda b: b & 0x7F800000 != 0x7F800000)
densities = st.sampled_from([0.01, 0.1, 0.2, 0.5, 0.9, 1.0])


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(3, 60), densities)
def test_radix_select_is_a_sort_on_any_finite_bits(data, experts, n, density):
    vectors = data.draw(arrays(np.uint32, (experts, n), elements=finite_bits)).view(np.float32)
    found = magnitude_thresholds(split_vector(vectors), density)
    np.testing.assert_array_equal(found.view(np.uint32), sorted_thresholds(vectors, density).view(np.uint32))


def awkward_vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(2, 5000)).astype(np.float32)
    bf16 = torch.from_numpy(normal).bfloat16().float().numpy()
    return {
        "all equal": np.full((2, 500), -0.25, np.float32),
        "all zero": np.zeros((2, 500), np.float32),
        "over 80 % zeros": normal * (rng.random((2, 5000)) < 0.15),
        "subnormals": (normal * np.float32(1e-41)),
        "bf16 values": bf16,
        "one high half": (np.float32(1) + rng.integers(0, 2**7, (2, 5000)) * np.float32(2**-23)).astype(np.float32),
        "negative zeros": np.where(rng.random((2, 5000)) < 0.9, np.float32(-0.0), normal),
        "far apart": normal * np.float32(10.0) ** rng.integers(-38, 38, (2, 5000)).astype(np.float32),
    }


@pytest.mark.parametrize("kind", list(awkward_vectors()))
@pytest.mark.parametrize("density", [0.2, 0.05, 1.0])
def test_radix_select_is_a_sort_on_awkward_vectors(kind, density):
    vectors = awkward_vectors()[kind].astype(np.float32)
    found = magnitude_thresholds(split_vector(vectors), density)
    np.testing.assert_array_equal(found, sorted_thresholds(vectors, density))
    third, half = vectors.shape[1] // 3, vectors.shape[1] // 2
    for name, part in {"t0": slice(0, third), "t1": slice(third, half)}.items():  # of one tensor
        found = magnitude_thresholds(split_vector(vectors), density, [name])
        np.testing.assert_array_equal(found, sorted_thresholds(vectors[:, part], density))


@pytest.mark.parametrize("kind", list(awkward_vectors()))
def test_the_trim_keeps_exactly_what_is_at_or_above_the_threshold(kind):
    """Also among subnormals, at ±0 and where the threshold is the smallest magnitude."""
    vectors = awkward_vectors()[kind]
    for density in (0.2, 0.9999):
        limits = sorted_thresholds(vectors, density)[:, None]
        found = np.concatenate([tau.flatten(1) for tau in map(Trimmed(split_vector(vectors), density).tau, NAMES)], 1)
        np.testing.assert_array_equal(found, np.where(np.abs(vectors) >= limits, vectors, 0))


NAMES = ("t0", "t1", "t2")


def test_thresholds_read_one_tensor_at_a_time_and_each_twice():
    task_vectors = awkward("generic")
    magnitude_thresholds(task_vectors, 0.2)
    names = task_vectors.names
    for checkpoint in (task_vectors.base, *task_vectors.checkpoints.values()):
        assert checkpoint.reads == names * 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_trim_keeps_ties_and_one_more(kind):
    task_vectors = awkward(kind)
    trimmed = Trimmed(task_vectors, 0.2)
    for k, tau in enumerate(float64_taus(task_vectors)):
        flat = np.concatenate([tau[name].ravel() for name in task_vectors.names])
        kept = np.concatenate([list(trimmed.taus(name))[k].double().numpy().ravel() for name in task_vectors.names])
        threshold = np.sort(np.abs(flat))[len(flat) - int(len(flat) * 0.2) - 1]
        np.testing.assert_array_equal(kept, np.where(np.abs(flat) >= threshold, flat, 0))
        if np.mean(flat == 0) > 0.8:
            np.testing.assert_array_equal(kept, flat)
        elif kind == "generic":
            assert (kept != 0).sum() >= int(len(flat) * 0.2) + 1


# ---- the election
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_where_the_sum_is_zero_the_majority_decides_over_its_scope(scope):
    """x: +1 against −1; the rest of its own tensor is positive once, the other tensor negative three times."""
    base = {"x": torch.zeros(2), "y": torch.zeros(3)}
    first = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([-1.0, -1.0, -1.0])}
    second = {"x": torch.tensor([-1.0, 1.0]), "y": torch.tensor([-1.0, -1.0, 5e-1])}
    elected = Elected(task_vectors_of(base, {"A": first, "B": second}), scope)
    tau = elected.tau("x")
    assert tau[:, 1].tolist() == [2, 1]
    assert tau[:, 0].tolist() == ([0, -1] if scope == "model" else [1, 0])


def test_without_any_majority_an_undecided_entry_stays_at_the_base():
    base = {"x": torch.zeros(2)}
    elected = Elected(
        task_vectors_of(base, {"A": {"x": torch.tensor([1.0, 3.0])}, "B": {"x": torch.tensor([-1.0, -3])}})
    )
    assert not elected.tau("x").any()


def test_the_order_of_experts_does_not_decide_a_sign():
    """In fp32 (1 + 2⁻²⁵) − 1 is 0 and (1 − 1) + 2⁻²⁵ is not."""
    values = [1.0, 2.0**-25, -1.0]
    for order in ([0, 1, 2], [0, 2, 1], [2, 1, 0]):
        experts = {f"E{i}": {"x": torch.tensor([values[i], 0.0])} for i in order}
        elected = Elected(task_vectors_of({"x": torch.zeros(2)}, experts))
        assert sorted(elected.tau("x")[:, 0].tolist()) == [0.0, 2.0**-25, 1.0]


# ---- DARE
def test_the_draw_is_pinned():
    """The bits of a (seed, expert, tensor) are part of the results: they may not change with a library's version."""
    assert random_bits(5, 0, "VQA", "x.weight").tolist() == PINNED
    assert random_bits(2, 0, "VQA", "x.weight").tolist() == PINNED[:2]


PINNED = [842059957, 709960082, 3772014217, 954841016, 3985458090]


def test_another_seed_expert_or_tensor_is_another_draw():
    draws = {tuple(random_bits(4, *key)) for key in [(0, "A", "x"), (1, "A", "x"), (0, "B", "x"), (0, "A", "y")]}
    assert len(draws) == 4
    assert random_bits(4, 0, "AB", "x").tolist() != random_bits(4, 0, "A", "Bx").tolist()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_entries_are_dropped_with_probability_p_and_the_rest_rescaled(p):
    tau = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    found = drop_and_rescale(tau, p, 3, "A", "x")
    kept = found != 0
    assert abs(1 - float(kept.double().mean()) - p) < 4 * (p * (1 - p) / tau.numel()) ** 0.5
    torch.testing.assert_close(found[kept], tau[kept] / (1 - p), rtol=1e-6, atol=0)
    assert abs(float(found.sum() - tau.sum())) < 4 * float(tau.norm()) * (p / (1 - p)) ** 0.5  # E[τ̂] = τ
    assert torch.equal(drop_and_rescale(tau, 0.0, 3, "A", "x"), tau)


def test_the_draw_is_that_of_the_definition():
    tau, p = torch.arange(1.0, 12).reshape(11), 0.3
    bits = random_bits(11, 5, "A", "x").astype(np.float64) / 2**32
    wanted = np.where(bits < p, 0, np.arange(1.0, 12) / (1 - p))
    np.testing.assert_allclose(drop_and_rescale(tau, p, 5, "A", "x").double(), wanted, rtol=1e-6)


def test_the_draw_does_not_depend_on_order_company_or_threads():
    task_vectors = awkward("generic")
    whole = {name: Dropped(task_vectors, 0.4, 7).tau(name) for name in task_vectors.names}
    again = Dropped(task_vectors, 0.4, 7)
    for name in reversed(task_vectors.names):
        assert torch.equal(again.tau(name), whole[name])
    base = task_vectors.base.tensors
    experts = {name: checkpoint.tensors for name, checkpoint in task_vectors.checkpoints.items()}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for name in task_vectors.names:  # one tensor a "shard", experts the other way round, one of them missing
            shard = task_vectors_of({name: base[name]}, {e: {name: experts[e][name]} for e in ("E2", "E0")})
            assert torch.equal(Dropped(shard, 0.4, 7).tau(name), whole[name][[2, 0]])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["ta_dare", "ties_dare"])
def test_a_row_with_dare_is_its_seed(method):
    task_vectors = awkward("generic")
    first, again, other = (run(method, task_vectors, 0.5, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


# ---- views
def test_a_view_says_what_was_done_to_it():
    view = Elected(Trimmed(Dropped(awkward("generic"), 0.2, 1), 0.3))
    assert [sorted(step) for step in view.identity] == [["drop", "seed"], ["density", "scope"], ["elected"]]


def test_zero_coefficients_give_the_base_bit_for_bit():
    task_vectors = awkward("generic", dtype=torch.float16)
    view = Elected(Trimmed(task_vectors, 0.3))
    for name in task_vectors.names:
        found = view.merged(name, np.zeros((3, 1)))
        assert torch.equal(found.view(torch.int16), task_vectors.base.read(name).view(torch.int16))
