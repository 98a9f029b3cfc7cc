"""The engine against plain autograd on three backbones; placements bit for bit; micro-batches; shards."""

import itertools
import math

import numpy as np
import pytest
import torch
from engine_toys import BETA, by_autograd, coefficients, problem, toy
from transformers.modeling_layers import GradientCheckpointingLayer

from emkit.alignment.arithmetic import Arithmetic, Rows
from emkit.alignment.fit import fit
from emkit.alignment.lean import recomputed
from emkit.alignment.losses import Alignment, Entropy
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import InHost, OnDevice, Placement
from emkit.alignment.variable import Optimiser
from emkit.coefficients import Coefficients
from emkit.methods.ties import Elected, Trimmed


@pytest.fixture(scope="module", params=["internvl", "qwen2_vl", "mistral"])
def made(request, tmp_path_factory):
    return toy(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def intern(tmp_path_factory):
    return toy("internvl", tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize(
    "objective",
    [Alignment(beta=BETA, temperature=1.7, hidden_weight=0.3), Entropy(beta=BETA)],
    ids=lambda o: o.terms[-1],
)
def test_gradients_are_autograds(made, chunks, objective):
    start = coefficients(made, chunks)
    losses, expected = by_autograd(made, made.model(), start, objective)
    model = made.model()
    merged = MergedModel(model, made.task_vectors, start, made.backbone.parameter_name)
    found = problem(made, model, objective).losses(0)
    gradient = merged.gradient().numpy()
    for task, terms in losses.items():
        for term, value in terms.items():
            assert math.isclose(found[task][term], value, rel_tol=2e-6, abs_tol=1e-7), (task, term)
    assert len(gradient) == len(start.flat()) and np.abs(expected).max() > 1e-3
    assert np.abs(gradient - expected).max() <= 1e-6 * np.linalg.norm(expected)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{"micro_tokens": 1}, {"micro_tokens": 300}, {"checkpointing": True}])
def test_micro_batches_and_recomputed_activations_change_nothing_but_rounding(made, changes):
    start = coefficients(made, chunks=True)
    gradients = []
    for engine in (EngineOptions(micro_tokens=10**6), EngineOptions(**changes)):
        model = made.model()
        merged = MergedModel(model, made.task_vectors, start, made.backbone.parameter_name)
        problem(made, model, Alignment(beta=BETA)).losses(0, engine=engine)
        gradients.append(merged.gradient().numpy())
        assert not any(module.training for module in model.modules())
    assert np.abs(gradients[1] - gradients[0]).max() <= 2e-6 * np.linalg.norm(gradients[0])


def test_activations_are_recomputed_where_asked(intern, monkeypatch):
    """Fewer tensors are kept for the backward."""
    start, kept = coefficients(intern, False), []
    for wanted in (False, True):
        model = intern.model()
        MergedModel(model, intern.task_vectors, start, intern.backbone.parameter_name)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            problem(intern, model).losses(0, engine=EngineOptions(checkpointing=wanted))
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]


def fitted(made, vectors, engine=None, clip=None, parameterisation="plain", chunks=True, model=None, steps=3):
    start = coefficients(made, chunks)
    optimiser = Optimiser(lr=0.05, steps=steps, batch=1, clip=clip)
    model = model or made.model()
    minimised = problem(made, model, Alignment(beta=BETA), vectors, {"VQA": 0.3, "Chart": 0.2}, gamma=0.1)
    found = fit(minimised, start=start, optimiser=optimiser, parameterisation=parameterisation, engine=engine)
    return found, model


ON_A_GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: placements on one are not compared")
)


@pytest.mark.parametrize("device", ["cpu", ON_A_GPU])
@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize(
    ("clip", "dtype"), [(None, torch.float32), (0.01, torch.float32), (None, torch.bfloat16), (0.01, torch.bfloat16)]
)
def test_placements_are_bit_for_bit_the_same(made, transformed, clip, dtype, device):
    """On the device as fp32 task vectors or as stored, in host memory, from the files; ``dtype`` is the weights'."""
    outcomes = []
    for kind in ("device", "stored", "host", "files"):
        vectors = made.opened()
        if transformed:
            vectors = Elected(Trimmed(vectors, 0.4))
        where = {
            "device": lambda v: OnDevice(v, device, torch.float32),
            "stored": lambda v: OnDevice(v, device, None),
            "host": lambda v: InHost(v, device),
            "files": lambda v: Placement(v, device),
        }[kind](vectors)
        found, model = fitted(made, where, clip=clip, model=made.model(dtype).to(device))
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        outcomes.append((found, weights))
    first, weights = outcomes[0]
    assert first.history[0]["loss"] != first.history[-1]["loss"]
    for found, others in outcomes[1:]:
        assert found.history == first.history and found.coefficients.to_json() == first.coefficients.to_json()
        assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.parametrize("parameterisation", ["plain", "sigmoid"])
def test_updating_in_the_backward_is_updating_after_it(made, parameterisation):
    """A bound that no gradient reaches takes the way of two readings."""
    one, model = fitted(made, made.task_vectors, parameterisation=parameterisation)
    two, other = fitted(made, made.task_vectors, clip=1e9, parameterisation=parameterisation)
    np.testing.assert_allclose(one.coefficients.flat(), two.coefficients.flat(), rtol=1e-12, atol=1e-15)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    merged = {
        n: made.task_vectors.merged(n, one.coefficients.values[n], torch.float32) for n in made.task_vectors.names
    }
    parameters = dict(model.named_parameters())
    for name, value in merged.items():
        torch.testing.assert_close(parameters[made.backbone.parameter_name(name)].detach(), value, rtol=1e-6, atol=1e-6)


def test_each_tensor_is_read_once_a_step_or_twice_with_a_bound_on_the_gradient(intern):
    class Counting(Placement):
        def rows(self, name):
            reads[name] = reads.get(name, 0) + 1
            return super().rows(name)

    engine = EngineOptions(micro_tokens=10**6)
    for clip, each in ((None, 1), (1.0, 2)):
        reads: dict[str, int] = {}
        fitted(intern, Counting(intern.opened(), "cpu"), engine, clip, chunks=False, steps=4)
        assert set(reads.values()) == {1 + 4 * each}, clip  # once to begin with


def test_bfloat16_weights_have_float64_coefficients(intern):
    model = intern.model(torch.bfloat16)
    found, _ = fitted(intern, intern.task_vectors, model=model)
    whole, _ = fitted(intern, intern.task_vectors)
    assert found.coefficients.flat().dtype == np.float64
    moved, expected = (f.coefficients.flat() - coefficients(intern, True).flat() for f in (found, whole))
    assert np.corrcoef(moved, expected)[0, 1] > 0.9


def test_the_regulariser_alone_moves_tensors_that_the_loss_does_not_reach(intern):
    """Only the middle hidden state is in the loss: later blocks have no gradient but γ's."""
    start = Coefficients.constant(intern.task_vectors.names, {"VQA": 0.3, "Chart": 0.3})
    model = intern.model()
    minimised = problem(intern, model, Alignment(logit_weight=0.0), None, {"VQA": 0.2, "Chart": 0.4}, 24, gamma=1.0)
    optimiser = Optimiser(lr=0.01, steps=1, schedule="constant")
    found = fit(minimised, start=start, optimiser=optimiser).coefficients
    last = [name for name in found.values if ".layers.2." in name]
    assert last
    for name in last:
        np.testing.assert_allclose(found.values[name][:, 0], [0.29, 0.31], rtol=1e-6)
        expected = intern.task_vectors.merged(name, found.values[name], torch.float32)
        parameter = dict(model.named_parameters())[intern.backbone.parameter_name(name)]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-6)


# ---- the sums
def numpy_rows(n=1000, experts=3, seed=0):
    rng = np.random.default_rng(seed)
    base, vectors = rng.normal(size=n), rng.normal(size=(experts, n))
    rows = Rows(
        torch.tensor(base, dtype=torch.bfloat16), [torch.tensor(v, dtype=torch.bfloat16) for v in vectors], False
    )
    tau = np.stack([(v.double() - rows.base.double()).numpy() for v in rows.vectors])
    return rows, tau


@pytest.mark.parametrize("bounds", [[0, 1000], [0, 1, 64, 65, 700, 1000]])
@pytest.mark.parametrize("block", [7, 64, 10**6])
def test_sums_over_chunks_and_blocks(bounds, block):
    rows, tau = numpy_rows()
    rng = np.random.default_rng(1)
    gradient, alpha = rng.normal(size=1000).astype(np.float32), rng.normal(size=(3, len(bounds) - 1))
    sums = Arithmetic("cpu", torch.float32, block)
    found = sums.contract(rows, torch.from_numpy(gradient), bounds).numpy()
    expected = [[t[a:b] @ gradient[a:b].astype(float) for a, b in itertools.pairwise(bounds)] for t in tau]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    out = torch.empty(1000)
    sums.merge(rows, torch.from_numpy(alpha), bounds, out)
    spread = np.repeat(alpha, np.diff(bounds), axis=1)
    np.testing.assert_allclose(
        out.numpy(), rows.base.double().numpy() + (spread * tau).sum(axis=0), rtol=1e-5, atol=1e-5
    )


# ---- activations
def test_recomputed_blocks_drop_nothing():
    class Block(GradientCheckpointingLayer):
        def forward(self, x):
            return torch.nn.functional.dropout(x, 0.5, self.training)

    model = torch.nn.Sequential(Block(), Block()).eval()
    x = torch.ones(1000, requires_grad=True)
    with recomputed(model, True):
        out = model(x)
        out.sum().backward()
    assert torch.equal(out, torch.ones(1000)) and torch.equal(x.grad, torch.ones(1000))
    assert not any(module.training for module in model.modules())
