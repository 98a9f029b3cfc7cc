"""Every training-free method against a float64 reference written from its formula, on awkward task vectors."""

import numpy as np
import pytest
import torch
from memory import SHAPES, assert_merged, awkward, expected, float64_taus, run

from emkit.methods import get
from emkit.methods.dare import random_bits
from emkit.methods.iso_c import iso_c

KINDS = ("generic", "ties", "sparse", "zero", "copies")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


# ---- references
def mean(taus, name):
    return sum(tau[name] for tau in taus) / len(taus)


def by_tensor(taus, combine) -> dict:
    """``combine`` of the matrices, the mean of the rest."""
    return {
        name: combine([tau[name] for tau in taus]) if taus[0][name].ndim == 2 else mean(taus, name) for name in taus[0]
    }


def ties_reference(taus, density=0.2, scope="model", merge="mean", trim=True) -> dict:
    names, merged = list(taus[0]), {}
    for group in [names] if scope == "model" else [[name] for name in names]:
        flat = np.stack([np.concatenate([tau[name].ravel() for name in group]) for tau in taus])
        k = flat.shape[1] - int(flat.shape[1] * density)  # d - int(d * K) of the original
        if trim and k:
            threshold = np.sort(np.abs(flat), axis=1)[:, k - 1 : k]
            flat = np.where(np.abs(flat) >= threshold, flat, 0)
        sign = np.sign(flat.sum(axis=0))
        sign[sign == 0] = np.sign(sign.sum())
        agree = (np.sign(flat) == sign) & (flat != 0)
        result = (flat * agree).sum(axis=0)
        if merge == "mean":
            result /= np.maximum(agree.sum(axis=0), 1)
        for name in group:
            size = taus[0][name].size
            merged[name], result = result[:size].reshape(taus[0][name].shape), result[size:]
    return merged


def polar(matrix):
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def tsv_reference(matrices):
    """Of an expert that is the base no triplet exists; nothing else is left out."""
    r = min(matrices[0].shape) // len(matrices)
    triplets = [np.linalg.svd(m, full_matrices=False) for m in matrices if m.any()]
    u = np.concatenate([u[:, :r] for u, _, _ in triplets], axis=1)
    s = np.concatenate([s[:r] for _, s, _ in triplets])
    v = np.concatenate([vh[:r].T for _, _, vh in triplets], axis=1)
    return polar(u) @ np.diag(s) @ polar(v).T


def iso_c_reference(matrices):
    u, s, vh = np.linalg.svd(sum(matrices), full_matrices=False)
    return np.mean(s) * u @ vh


# ---- exact agreement
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_ties(kind, dtype, scope, merge):
    for experts in (1, 3, 4):
        task_vectors = awkward(kind, experts, dtype)
        found = run("ties", task_vectors, 0.7, scope=scope, merge=merge)
        wanted = ties_reference(float64_taus(task_vectors), 0.2, scope, merge)
        assert_merged(found, expected(task_vectors, wanted, 0.7), dtype)


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_ties_at_other_densities(density):
    task_vectors = awkward("generic")
    wanted = ties_reference(float64_taus(task_vectors), density)
    assert_merged(run("ties", task_vectors, 1.0, density=density), expected(task_vectors, wanted), torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_dare_rows_are_their_plain_rows_on_the_thinned_vectors(kind):
    task_vectors = awkward(kind)
    thinned = []
    for expert, tau in zip(task_vectors.experts, float64_taus(task_vectors)):
        kept = {n: random_bits(t.size, 4, expert, n).reshape(t.shape) / 2**32 >= 0.2 for n, t in tau.items()}
        thinned.append({name: np.where(kept[name], value / 0.8, 0) for name, value in tau.items()})
    total = {name: sum(tau[name] for tau in thinned) for name in thinned[0]}
    found = run("ta_dare", task_vectors, 0.3, seed=4)
    assert_merged(found, expected(task_vectors, total, 0.3), torch.bfloat16)
    for trim in (True, False):
        found = run("ties_dare", task_vectors, 0.3, seed=4, second_trim=trim)
        wanted = ties_reference(thinned, trim=trim)
        assert_merged(found, expected(task_vectors, wanted, 0.3), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind, experts", [("generic", 1), ("generic", 3), ("sparse", 1), ("sparse", 3), ("zero", 3)])
def test_tsv(kind, dtype, experts):
    task_vectors = awkward(kind, experts, dtype, shapes=SHAPES | {"e.large": (30, 24)})
    wanted = by_tensor(float64_taus(task_vectors), tsv_reference)
    if kind == "sparse":  # some matrices have fewer than r triplets; the reference knows only full rank
        wanted = {name: value for name, value in wanted.items() if name in ("b.norm", "e.large")}
    found = {name: value for name, value in run("tsv", task_vectors).items() if name in wanted}
    base = {name: task_vectors.base.read(name).double().numpy() for name in wanted}
    assert_merged(found, {name: base[name] + wanted[name] for name in wanted}, dtype, atol=2e-5)


def test_tsv_as_it_ran_is_weight_average_bit_for_bit():
    for dtype in DTYPES:
        task_vectors = awkward("generic", dtype=dtype)
        as_run, average = run("tsv", task_vectors, form="as_run"), run("weight_average", task_vectors)
        assert all(np.array_equal(as_run[name], average[name]) for name in average)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind, experts", [("generic", 1), ("generic", 4), ("zero", 4), ("copies", 4)])
def test_iso_c(kind, dtype, experts):
    task_vectors = awkward(kind, experts, dtype)
    taus = float64_taus(task_vectors)
    wanted = expected(task_vectors, by_tensor(taus, iso_c_reference), 0.6)
    assert_merged(run("iso_c", task_vectors, 0.6), wanted, dtype, atol=2e-5)
    assert_merged(run("iso_c", task_vectors, 0.6, null_space="leave"), wanted, dtype, atol=2e-5)


def test_iso_c_leaves_the_null_space_if_asked():
    rng = np.random.default_rng(0)
    low = [torch.tensor(rng.normal(size=(10, 2)) @ rng.normal(size=(2, 7)), dtype=torch.float32) for _ in range(2)]
    u, s, vh = np.linalg.svd(sum(low).double().numpy())
    wanted = s.mean() * u[:, :4] @ vh[:4]
    np.testing.assert_allclose(iso_c(low, "leave"), wanted, atol=1e-5)
    assert np.linalg.matrix_rank(iso_c(low, "fill").double().numpy(), tol=1e-3) == 7


# ---- what holds for every method
FIXED = ("tsv", "wudi", "wudi_v2")
FREE = ("task_arithmetic", "ties", "ta_dare", "ties_dare", "iso_c")
MATRIX = ("tsv", "iso_c", "wudi", "wudi_v2")


def scale_of(method):
    return 1.0 if method in FREE else None


@pytest.mark.parametrize("method", FREE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_zero_is_the_base_bit_for_bit(method, dtype):
    task_vectors = awkward("generic", dtype=dtype)
    for name, value in run(method, task_vectors, 0.0).items():
        assert np.array_equal(value, task_vectors.base.read(name).double().numpy())


@pytest.mark.parametrize("method", [*FIXED, *FREE])
def test_all_zero_task_vectors_give_the_base(method):
    for experts in (1, 2):
        task_vectors = awkward("generic", experts)
        for checkpoint in task_vectors.checkpoints.values():
            checkpoint.tensors = task_vectors.base.tensors
        for name, value in run(method, task_vectors, scale_of(method)).items():
            assert np.array_equal(value, task_vectors.base.read(name).double().numpy()), name


@pytest.mark.parametrize("method", MATRIX)
def test_vectors_among_matrices_are_averaged(method):
    task_vectors = awkward("generic", shapes=SHAPES | {"f.kernel": (3, 4, 5)})
    scale = 0.5 if method == "iso_c" else None
    found = run(method, task_vectors, scale)
    wanted = expected(task_vectors, {n: mean(float64_taus(task_vectors), n) for n in task_vectors.names}, scale or 1.0)
    for name in ("b.norm", "f.kernel"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2.0**-8, atol=1e-6)
    assert not np.allclose(found["d.square"], wanted["d.square"], rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize("method", [*FIXED, *FREE, "weight_average"])
def test_methods_read_one_tensor_at_a_time_and_only_what_is_merged(method):
    """A merge is a stream: after the passes that TIES needs, tensors come in the order of their names."""
    task_vectors = awkward("generic")
    task_vectors.names = ["a.wide", "d.square"]
    before = {name: task_vectors.base.read(name).double().numpy() for name in ("b.norm", "c.tall")}
    found = run(method, task_vectors, scale_of(method))
    assert list(found) == sorted(SHAPES)
    assert all(np.array_equal(found[name], before[name]) for name in before)
    assert not np.array_equal(found["d.square"], task_vectors.base.read("d.square").double().numpy())
    for checkpoint in task_vectors.checkpoints.values():
        assert set(checkpoint.reads) == {"a.wide", "d.square"}


def test_which_scales_are_free_and_which_their_authors_fix():
    assert {name for name in (*FREE, *FIXED) if get(name).scale_from == "validation"} == set(FREE)
    assert {name for name in (*FREE, *FIXED) if get(name).scale_from == "authors: 1"} == set(FIXED)
    for name in FREE:
        assert "scale" in get(name).needs and "scale" not in get(name).options.model_fields
    for name in FIXED:
        assert "scale" not in get(name).needs and get(name).options.model_fields["scale"].default == 1.0


@pytest.mark.parametrize("method", FIXED)
def test_a_fixed_scale_can_be_another_by_option(method):
    task_vectors = awkward("generic", dtype=torch.float32)
    one, half = run(method, task_vectors), run(method, task_vectors, scale=None, **{"scale_option": 0.5})
    for name in one:
        base = task_vectors.base.read(name).double().numpy()
        np.testing.assert_allclose(half[name] - base, 0.5 * (one[name] - base), atol=2e-6)
