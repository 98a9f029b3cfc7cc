"""The training loop: gradients against finite differences, losses against numpy, and exact resumption."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import base_model, chunked

from emkit import backbones
from emkit.alignment import fit as fitting
from emkit.alignment.calibration import Calibration
from emkit.alignment.fit import Penalty, Problem, fit
from emkit.alignment.losses import Alignment
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.order import chosen_samples, pieces
from emkit.alignment.sequences import collate
from emkit.alignment.variable import Optimiser, learning_rate
from emkit.coefficients import Coefficients
from emkit.errors import UserError

internvl = backbones.get("internvl")

BETA = {"VQA": 1.0, "Chart": 2.5}


def problem(task_vectors, calibration, objective=None, model=None, **penalty) -> Problem:
    """``penalty``: what it has besides γ = 0 and ᾱ = 0.3."""
    return Problem(
        backbone=internvl,
        model=model or base_model(task_vectors),
        task_vectors=task_vectors,
        calibration=calibration,
        objective=objective or Alignment(beta=BETA),
        penalty=Penalty(**{"gamma": 0.0, "initial": {"VQA": 0.3, "Chart": 0.3}, "count": 24} | penalty),
    )


def reference_losses(model, coefficients, task_vectors, calibration, options) -> dict:
    """Each task's L_hid and L_logit in numpy, from a model merged in numpy: Eq. 1, 2 and 5 word by word."""
    state = model.state_dict()
    for name in task_vectors.names:
        base = task_vectors.base.read(name).double().numpy()
        total = base.reshape(-1).copy()
        spread = coefficients.expand(name, total.size)
        for k, expert in enumerate(task_vectors.checkpoints.values()):
            total += spread[k] * (expert.read(name).double().numpy() - base).reshape(-1)
        state[internvl.parameter_name(name)] = torch.from_numpy(total.reshape(base.shape))
    model.load_state_dict(state)
    losses = {}
    for task in calibration.tasks.values():
        hidden, logit = [], []
        for sample in range(task.samples):
            squares, divergences = [], []
            for i in [i for i, s in enumerate(task.sample_of) if s == sample]:
                batch, taken = collate([task.sequences[i]])
                with torch.no_grad():
                    out = internvl.forward(model, batch, task.features[i].double(), calibration.hidden_layer)
                h, z = out.hidden[taken].numpy(), out.logits[taken].numpy()
                hk, zk = task.hidden[i].double().numpy(), task.logits(i, torch.float64).numpy()
                squares += [float(x) for x in ((h - hk) ** 2).sum(axis=1)]
                z, zk = (x / options.temperature for x in (z, zk))
                logq = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
                logp = zk - np.log(np.exp(zk).sum(axis=1, keepdims=True))
                divergences += [float(x) for x in (np.exp(logp) * (logp - logq)).sum(axis=1)]
            hidden.append(np.mean(squares) / (1 if options.hidden_loss == "squared_norm" else hk.shape[1]))
            logit.append(options.temperature**2 * np.mean(divergences))
        losses[task.name] = {"hidden": np.mean(hidden), "logit": np.mean(logit)}
    return losses


def objective(losses) -> float:
    return sum(BETA[task] * sum(terms.values()) for task, terms in losses.items())


@pytest.mark.parametrize("hidden_loss", ["mean_squared", "squared_norm"])
@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.usefixtures("float64_norms")
def test_losses_are_eq_1_2_and_gradients_are_finite_differences(task_vectors, calibration, hidden_loss, layerwise):
    options = Alignment(beta=BETA, hidden_loss=hidden_loss, temperature=1.7)
    start = chunked(task_vectors)
    if layerwise:
        start = Coefficients(start.experts, {name: value[:, :1] for name, value in start.values.items()})
    model = base_model(task_vectors, torch.float64)
    merged = MergedModel(model, task_vectors, start, internvl.parameter_name)
    found = problem(task_vectors, calibration, options, model).losses(step=0)
    gradient = merged.gradient().numpy()
    reference = base_model(task_vectors, torch.float64)
    expected = reference_losses(reference, start, task_vectors, calibration, options)
    for task, terms in expected.items():
        for term, value in terms.items():
            assert math.isclose(found[task][term], value, rel_tol=1e-8), (task, term)
    flat, step = start.flat(), 1e-4
    assert len(gradient) == len(flat)
    for i in np.random.default_rng(0).choice(len(flat), 10, replace=False):
        shifted = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[i] += sign * step
            losses = reference_losses(reference, start.with_flat(moved), task_vectors, calibration, options)
            shifted.append(objective(losses))
        difference = (shifted[0] - shifted[1]) / (2 * step)
        assert math.isclose(gradient[i], difference, rel_tol=1e-5, abs_tol=1e-8), i


@pytest.mark.parametrize("parameterisation", ["plain", "sigmoid"])
@pytest.mark.parametrize("regulariser", ["paper", "authors"])
def test_the_first_step_is_adamw_on_the_whole_objective(task_vectors, calibration, parameterisation, regulariser):
    """With betas' bias correction the first Adam step is lr · g / (|g| + ε), here with decoupled weight decay."""
    start = chunked(task_vectors)
    initial = {"VQA": 0.35, "Chart": 0.2}
    settings = Optimiser(lr=0.01, weight_decay=0.1, steps=1, schedule="constant")
    count = 20.0
    minimised = problem(task_vectors, calibration, gamma=3.0, initial=initial, count=count, kind=regulariser)
    found = fit(minimised, start=start, optimiser=settings, parameterisation=parameterisation)
    check = base_model(task_vectors, torch.float64)
    merged = MergedModel(check, task_vectors, start, internvl.parameter_name)
    problem(task_vectors, calibration, model=check).losses(0)
    alpha = start.flat()
    anchor = np.array([initial[start.experts[k]] for k in start.flat_experts()])
    weight = 1 / (2 * count) if regulariser == "paper" else 2 * 2 / len(alpha)
    g = merged.gradient().numpy() + 3.0 * weight * np.sign(alpha - anchor)
    w = alpha if parameterisation == "plain" else np.log(alpha / (1 - alpha))
    g = g if parameterisation == "plain" else g * alpha * (1 - alpha)
    w = w * (1 - 0.01 * 0.1) - 0.01 * g / (np.abs(g) + 1e-8)
    expected = w if parameterisation == "plain" else 1 / (1 + np.exp(-w))
    np.testing.assert_allclose(found.coefficients.flat(), expected, atol=2e-5)
    penalty = weight * np.abs(alpha - anchor).sum()
    entry = found.history[0]
    assert math.isclose(entry["regulariser"], penalty, rel_tol=1e-12)
    assert math.isclose(entry["loss"], objective(entry["tasks"]) + 3.0 * penalty, rel_tol=1e-12)
    for name in start.fixed:
        assert found.coefficients.values[name].tolist() == start.values[name].tolist()


def plain_fit(task_vectors, calibration, steps=6, state=None, batch="all"):
    optimiser = Optimiser(lr=0.03, steps=steps, batch=batch)
    start = Coefficients.constant(task_vectors.names, {"VQA": 0.3, "Chart": 0.3})
    minimised = problem(task_vectors, calibration, gamma=0.1, count=len(task_vectors.names))
    return fit(minimised, start=start, optimiser=optimiser, state=state)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 4])
@pytest.mark.parametrize("batch", ["all", 1])
def test_a_killed_fit_resumes_to_the_identical_end(task_vectors, calibration, tmp_path, monkeypatch, kill_at, batch):
    whole = plain_fit(task_vectors, calibration, batch=batch)
    state = tmp_path / "state.json"
    real = Problem.losses

    def dies(self, step, *others):
        if step == kill_at:
            raise Killed
        return real(self, step, *others)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Problem, "losses", dies)
        plain_fit(task_vectors, calibration, batch=batch, state=state)
    steps = []
    monkeypatch.setattr(Problem, "losses", lambda self, *a: steps.append(a[0]) or real(self, *a))
    resumed = plain_fit(task_vectors, calibration, batch=batch, state=state)
    assert steps == list(range(kill_at, 6))
    assert resumed.coefficients.to_json() == whole.coefficients.to_json()
    assert resumed.history == whole.history


def test_another_fits_state_is_not_taken_up(task_vectors, calibration, tmp_path):
    state = tmp_path / "state.json"
    plain_fit(task_vectors, calibration, steps=3, state=state)
    other = plain_fit(task_vectors, calibration, steps=4, state=state)
    assert other.coefficients.to_json() == plain_fit(task_vectors, calibration, steps=4).coefficients.to_json()


def test_the_loss_falls(task_vectors, calibration):
    history = plain_fit(task_vectors, calibration, steps=12).history
    assert [entry["step"] for entry in history] == list(range(12))
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def test_a_diverging_fit_is_one_line(task_vectors, calibration):
    broken = dict(calibration.tasks)
    before = float(broken["VQA"].final[0][0, 0])
    broken["VQA"].final[0][0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the fit diverged at step 1 .*lower optimiser.lr"):
        plain_fit(task_vectors, Calibration(broken, calibration.hidden_layer, calibration.keys))
    broken["VQA"].final[0][0, 0] = before


def test_sigmoid_needs_initial_values_between_0_and_1(task_vectors, calibration):
    start = Coefficients.constant(task_vectors.names, {"VQA": 1.0, "Chart": 0.3})
    minimised = problem(task_vectors, calibration, initial={"VQA": 1.0, "Chart": 0.3})
    with pytest.raises(UserError, match="between 0 and 1"):
        fit(minimised, start=start, optimiser=Optimiser(lr=0.1, steps=1), parameterisation="sigmoid")


def test_nothing_to_learn_is_one_line(task_vectors, calibration):
    start = Coefficients.constant(task_vectors.names, {"VQA": 0.3, "Chart": 0.3})
    start = Coefficients(start.experts, start.values, frozenset(start.values))
    with pytest.raises(UserError, match="no coefficient to learn"):
        fit(problem(task_vectors, calibration), start=start, optimiser=Optimiser(lr=0.1, steps=1))


def test_schedules():
    rates = {
        s: [learning_rate(Optimiser(lr=2.0, steps=4, schedule=s, period=2, growth=1, floor=0.0), i) for i in range(4)]
        for s in ("constant", "cosine", "cosine_restarts")
    }
    np.testing.assert_allclose(rates["constant"], [2, 2, 2, 2])
    np.testing.assert_allclose(rates["cosine"], [2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)])
    np.testing.assert_allclose(rates["cosine_restarts"], [2, 1, 2, 1])


def test_a_batch_takes_each_sample_once_an_epoch():
    assert chosen_samples(5, "all", 3, 0, 0) == [0, 1, 2, 3, 4] == chosen_samples(5, 9, 3, 0, 0)
    for epoch in range(3):
        steps = [chosen_samples(5, 2, 3 * epoch + i, 1, 0) for i in range(3)]
        assert [len(s) for s in steps] == [2, 2, 1] and sorted(itertools.chain(*steps)) == [0, 1, 2, 3, 4]
    assert any(chosen_samples(5, 1, 0, seed, 0) != chosen_samples(5, 1, 0, 0, 0) for seed in range(1, 9))


def test_a_part_of_a_sample_takes_each_of_its_sequences_once_an_epoch(calibration):
    """Weights of the positions in a step sum to 1 for every task, whatever the part; more parts than sequences: all."""
    for batch, parts in ((0.5, 2), (0.01, 100)):
        for task in calibration.tasks.values():
            alone = Calibration({task.name: task}, calibration.hidden_layer, calibration.keys)
            sizes = [task.sample_of.count(sample) for sample in range(task.samples)]
            seen = []
            for step in range(sum(min(parts, size) for size in sizes)):
                found = pieces(alone, "tasks", batch, step, 7)
                assert len({task.sample_of[piece.index] for piece in found}) == 1
                assert math.isclose(sum(float(piece.weights.sum()) for piece in found), 1.0)
                seen += [piece.index for piece in found]
            assert sorted(seen) == list(range(len(task.sequences)))


@pytest.mark.parametrize(
    ("said", "raised"),
    [("fold does not have a deterministic implementation", UserError), ("out of memory", RuntimeError)],
)
def test_an_operation_without_a_deterministic_kernel_is_one_line(task_vectors, calibration, monkeypatch, said, raised):
    def step(*given):
        raise RuntimeError(said)

    monkeypatch.setattr(fitting, "_step", step)
    with pytest.raises(raised, match=said) as error:
        plain_fit(task_vectors, calibration)
    assert type(error.value) is raised
