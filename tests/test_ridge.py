"""Ridge, with and without activations: against least squares of stacked equations (LAPACK), the formula's limits, and
what a model's own hooks see of a layer's inputs."""

import numpy as np
import pytest
import torch
from engine_toys import toy
from memory import assert_merged, awkward, expected, float64_taus, run

from emkit.alignment.inputs import inputs, recorded
from emkit.alignment.sequences import collate
from emkit.errors import UserError
from emkit.methods.ridge import Parts, ridge, ridge_matrix, ridge_parts, weight_moments
from emkit.methods.ridge_activations import ActivationMoments, MomentsOfInputs, RelativeMoments, ridge_activations
from emkit.methods.wudi import wudi_matrix

SHAPES = [(6, 11), (13, 4), (8, 8)]
RHOS = [0.3, 1.0, 7.0]


def matrices(shape, experts=3, seed=0, zero=None) -> torch.Tensor:
    taus = torch.randn(experts, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.1
    taus *= torch.tensor([1.0, 3.0, 0.2, 1.0])[:experts, None, None]  # of different sizes
    if zero is not None:
        taus[zero] = 0
    return taus


def least_squares(taus, factors, rho, pull) -> np.ndarray:
    """argmin_M Σ_k ‖F_k (M − τ_k)ᵀ‖² + ρ ‖M − λ Σ τ‖² with F_kᵀF_k = C_k, as one stack of equations in Mᵀ."""
    n = taus.shape[2]
    left = np.concatenate([*factors, np.sqrt(rho) * np.eye(n)])
    right = np.concatenate([*(f @ tau.T for f, tau in zip(factors, taus)), np.sqrt(rho) * pull * taus.sum(0).T])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def of_weights(taus) -> list[np.ndarray]:
    """√n τ_k / ‖τ_k‖, and nothing of a τ_k that is 0."""
    return [np.sqrt(tau.shape[1]) * tau / (np.linalg.norm(tau) or 1) for tau in taus]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rho, pull", [(0.3, 1.0), (1.0, 1.0), (7.0, 0.4)])
@pytest.mark.parametrize("experts, zero", [(1, None), (3, None), (4, 1)])
def test_ridge_is_the_least_squares_solution(shape, rho, pull, experts, zero):
    taus = matrices(shape, experts, zero=zero)
    wanted = least_squares(taus.numpy(), of_weights(taus.numpy()), rho, pull)
    for found in (ridge(taus, rho, pull), ridge_matrix(taus, rho, pull)):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    np.testing.assert_allclose(ridge_parts(taus, rho, pull).sum(0), wanted, atol=1e-12)
    single = ridge_matrix(taus.float(), rho, pull)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, wanted, atol=2e-6)
    if zero is not None:
        assert not ridge_parts(taus, rho, pull)[zero].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_limits(shape):
    """ρ → ∞ is λ Σ τ; ρ = 0 is WUDI's own minimum; one expert alone keeps itself; order does not matter."""
    taus = matrices(shape)
    np.testing.assert_allclose(ridge(taus, 1e9, 0.3), 0.3 * taus.sum(0), atol=1e-8)
    np.testing.assert_allclose(ridge(taus, 0.0), wudi_matrix(taus, "closed_form"), atol=1e-8)
    np.testing.assert_allclose(ridge(taus[:1], 0.0), taus[0], atol=1e-9)
    np.testing.assert_allclose(ridge(taus[:1], 1.0), taus[0], atol=1e-9)  # λ = 1: the pull is to itself
    np.testing.assert_allclose(ridge(taus.flip(0)), ridge(taus), atol=1e-12)
    np.testing.assert_allclose(ridge_parts(taus.flip(0)).flip(0), ridge_parts(taus), atol=1e-12)


@pytest.mark.parametrize("rank, rho", [(1, 1e-2), (8, 1e-4), (8, 1e-5)])
def test_a_small_rho_keeps_its_meaning_in_fp32_task_vectors_of_low_rank(rank, rho):
    """Where C's eigenvalues reach K n / rank, ρ is far below fp32's rounding of them."""
    generator = torch.Generator().manual_seed(5)
    taus = torch.stack(
        [
            torch.randn(40, rank, generator=generator) @ torch.randn(rank, 400, generator=generator) * 1e-3
            for _ in range(2)
        ]
    )
    wanted = least_squares(taus.double().numpy(), of_weights(taus.double().numpy()), rho, 0.3)
    found = ridge_matrix(taus, rho, 0.3)
    assert float((found - torch.tensor(wanted)).abs().max()) < 1e-6 * np.abs(wanted).max()


def test_a_rho_that_rounding_swallows_is_one_line():
    with pytest.raises(UserError, match="rho 1e-30 is too small for these task vectors"):
        ridge_matrix(torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1)), 1e-30)


def test_experts_of_low_rank():
    """Adapters on directions that do not meet stay what they are, but for what ρ takes: nothing at ρ = 0."""
    generator = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(12, 6, generator=generator, dtype=torch.float64))
    left = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    taus = torch.stack([left[0] @ q[:, :3].T, left[1] @ q[:, 3:].T])
    np.testing.assert_allclose(ridge(taus, 0.0), taus.sum(0), atol=1e-9)
    np.testing.assert_allclose(ridge(taus, 2.0), taus.sum(0), atol=1e-9)  # λ = 1 pulls to the same place
    wanted = least_squares(taus.numpy(), of_weights(taus.numpy()), 2.0, 0.0)
    np.testing.assert_allclose(ridge(taus, 2.0, 0.0), wanted, atol=1e-12)


@pytest.mark.parametrize("kind", ["generic", "zero", "copies", "ties"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_merge_of_whole_models(kind, dtype):
    vectors = awkward(kind, dtype=dtype)
    taus = float64_taus(vectors)
    merged = {}
    for name in vectors.names:
        of_all = np.stack([tau[name] for tau in taus])
        matrix = of_all.ndim == 3
        merged[name] = least_squares(of_all, of_weights(of_all), 1.0, 1.0) if matrix else of_all.mean(0)
    assert_merged(run("ridge", vectors), expected(vectors, merged), dtype, atol=1e-5)


def test_parts_are_a_view_whose_sum_is_the_merge():
    vectors = awkward("generic", dtype=torch.float32)
    view = Parts(vectors, weight_moments, 1.0, 1.0, {})
    for name in vectors.names:
        tau = view.tau(name).double()
        of_all = np.stack([one[name] for one in float64_taus(vectors)])
        whole = least_squares(of_all, of_weights(of_all), 1.0, 1.0) if of_all.ndim == 3 else of_all.mean(0)
        np.testing.assert_allclose(tau.sum(0), whole, atol=1e-5)
        block = view.blocks(name)
        np.testing.assert_array_equal(block(2, 7).numpy(), view.tau(name).flatten(1)[:, 2:7].numpy())
        block(0, 5).fill_(9)  # what is handed out may be overwritten
        np.testing.assert_array_equal(block(2, 7).numpy(), view.tau(name).flatten(1)[:, 2:7].numpy())


# ---- with activations
def stacked(taus, xs, weights) -> list[np.ndarray]:
    """F_k with F_kᵀF_k = a_k A_k + w t_k T_k, each factor computed from norms of products."""
    n, rows = taus.shape[2], []
    inputs = [np.sqrt(n) * x / np.linalg.norm(x) for x in xs]
    own = [np.sqrt(n) * tau / np.linalg.norm(tau) for tau in taus]
    a = np.array([1 / np.linalg.norm(tau @ x.T) ** 2 for tau, x in zip(taus, inputs)])
    t = np.array([1 / np.linalg.norm(tau @ f.T) ** 2 for tau, f in zip(taus, own)])
    a, t = a / a.mean(), t / t.mean()
    for k in range(len(taus)):
        rows.append(np.concatenate([np.sqrt(a[k]) * inputs[k], np.sqrt(weights * t[k]) * own[k]]))
    return rows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rho, weights", [(0.3, 0.25), (1.0, 0.0), (2.0, 0.5)])
def test_ridge_with_activations_is_the_least_squares_solution(shape, rho, weights):
    taus, generator = matrices(shape), torch.Generator().manual_seed(8)
    xs = [torch.randn(rows, shape[1], generator=generator, dtype=torch.float64) for rows in (3, 20, 7)]
    found = ridge_activations(taus, xs, rho, 0.8, weights)
    wanted = least_squares(taus.numpy(), stacked(taus.numpy(), [x.numpy() for x in xs], weights), rho, 0.8)
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_an_expert_that_is_the_base_and_one_that_its_inputs_do_not_reach_ask_for_nothing():
    taus = matrices((5, 6), zero=1)
    xs = [torch.eye(6, dtype=torch.float64)] * 3
    two = ridge_activations(taus[[0, 2]], xs[:2], 0.3, 1.0, 0.25)
    np.testing.assert_allclose(ridge_activations(taus, xs, 0.3, 1.0, 0.25), two, atol=1e-12)
    assert all(torch.isfinite(c).all() for c in ActivationMoments(taus, [torch.zeros(6, 6).double()] * 3, 0.25))
    taus[0, :, 3:] = 0
    unseen = torch.zeros(4, 6, dtype=torch.float64)
    unseen[:, 4] = 1  # what expert 0 changed, its inputs never touch
    moments = ActivationMoments(taus, [unseen.T @ unseen, *(x.T @ x for x in xs[1:])], 0.25)
    assert moments.factors[0] == 0 and moments.of_weights[0] > 0


@pytest.mark.parametrize("size", [1e-4, 1e-7])
def test_an_expert_that_differs_from_the_base_by_rounding_takes_nothing_from_the_others(size):
    """Its *relative* error would count like theirs, and its weight be all there is."""
    taus = matrices((9, 6), 2)
    taus[1] *= size / 3
    xs = [torch.randn(20, 6, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(2)]
    alone = ridge_activations(torch.stack([taus[0], 0 * taus[1]]), xs)
    found = ridge_activations(taus, xs)
    assert float((found - alone).norm() / alone.norm()) < 10 * size


@pytest.mark.parametrize("name", ["mistral", "qwen2_vl", "internvl"])
def test_the_inputs_are_those_that_the_layers_got(name, tmp_path):
    """XᵀX of every merged matrix on a sample: R has it, whatever the number of tokens; rows one by one, unfolded."""
    found = toy(name, tmp_path)
    vectors, backbone, task = found.task_vectors, found.backbone, found.calibration.tasks["Chart"]
    model = backbone.load(vectors.checkpoints["Chart"].path)[0]
    seen: dict[str, list] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, []).append(args[0].double()))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for i, sample in enumerate(task.sample_of):
            if sample == 1:  # one sequence at a time, so that nothing is padded
                fields, taken = collate([task.sequences[i]])
                backbone.forward(model, fields, features=task.features[i], positions=taken)
    for hook in hooks:
        hook.remove()
    rows, where = recorded(backbone, model, task, 1, vectors.names)
    matrices_of = [tensor for tensor in vectors.names if len(vectors.base.info(tensor).shape) == 2]
    assert matrices_of and set(where) == set(matrices_of)
    for tensor in matrices_of:
        x = torch.cat([part.flatten(0, -2) for part in seen[backbone.parameter_name(tensor).removesuffix(".weight")]])
        kept = rows[where[tensor]].double()
        assert kept.shape[0] <= kept.shape[1] == x.shape[1]
        torch.testing.assert_close(kept.T @ kept, x.T @ x, rtol=1e-4, atol=1e-4)
    q, k = (next(t for t in vectors.names if f"{kind}_proj.weight" in t) for kind in "qk")
    assert where[q] == where[k], "queries and keys are given the same"


def test_inputs_are_kept_sample_by_sample_and_made_again_when_damaged(tmp_path, monkeypatch):
    found = toy("mistral", tmp_path)
    model = found.model()
    made = lambda: inputs(found.backbone, model, found.task_vectors, found.calibration, tmp_path / "cache")  # noqa: E731
    first = made()
    tensor = found.task_vectors.names[0]
    wanted = first.moments("VQA", tensor)
    loads = []
    load = type(found.backbone).load
    monkeypatch.setattr(type(found.backbone), "load", lambda *args: loads.append(args[1]) or load(*args))
    assert torch.equal(made().moments("VQA", tensor), wanted) and not loads
    file = first.folders["VQA"][1] / "inputs.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert torch.equal(made().moments("VQA", tensor), wanted) and len(loads) == 1
    assert first.known("VQA", tensor) and not first.known("VQA", "no such tensor")


def test_a_matrix_without_known_inputs_has_the_weights_alone(tmp_path):
    found = toy("mistral", tmp_path)
    kept = inputs(found.backbone, found.model(), found.task_vectors, found.calibration, tmp_path / "cache")
    moments = MomentsOfInputs(kept, found.task_vectors.experts, 0.25)
    taus = matrices((5, 6), 2)
    assert isinstance(moments("no such tensor", taus), RelativeMoments)
    for c, f in zip(RelativeMoments(taus), stacked(taus.numpy(), np.eye(6)[None].repeat(2, 0), 1.0)):
        own = f[6:]  # the rows of τ
        np.testing.assert_allclose(c, own.T @ own, atol=1e-12)


def test_parts_of_a_model_by_what_was_recorded_of_it(tmp_path):
    found = toy("mistral", tmp_path)
    kept = inputs(found.backbone, found.model(), found.task_vectors, found.calibration, tmp_path / "cache")
    name = next(n for n in found.task_vectors.names if "down_proj" in n)
    taus = found.task_vectors.tau(name)
    grams = [kept.moments(expert, name) for expert in found.task_vectors.experts]
    wide = Parts(found.task_vectors, MomentsOfInputs(kept, found.task_vectors.experts, 0.25), 0.3, 1.0, {})
    roots = [np.linalg.cholesky(gram.double().numpy() + 1e-9 * np.eye(len(gram))).T for gram in grams]
    factors = stacked(taus.double().numpy(), roots, 0.25)
    wanted = least_squares(taus.double().numpy(), factors, 0.3, 1.0)
    np.testing.assert_allclose(wide.tau(name).sum(0), wanted, atol=2e-5)
