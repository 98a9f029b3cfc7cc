"""AdaMerging: the entropy against plain numpy, its coefficient gradient against finite differences, the clamp."""

import math

import numpy as np
import pytest
import torch
from conftest import base_model, chunked, merge_row, open_task_vectors, opened, recipe_data, save_recipe

from emkit import backbones
from emkit.alignment.fit import Penalty, Problem, fit
from emkit.alignment.heads import Head
from emkit.alignment.losses import Entropy
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.objectives import entropy
from emkit.alignment.sequences import collate
from emkit.alignment.variable import Optimiser
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.methods.ties import Elected, Trimmed

internvl = backbones.get("internvl")


def problem(task_vectors, calibration, model, initial=0.3) -> Problem:
    penalty = Penalty(gamma=0.0, initial=dict.fromkeys(task_vectors.experts, initial), count=24)
    return Problem(
        backbone=internvl,
        model=model,
        task_vectors=task_vectors,
        calibration=calibration,
        objective=Entropy(),
        penalty=penalty,
    )


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    return entropy(logits, Head(torch.eye(logits.shape[1], dtype=logits.dtype)))


# ---- the objective
def test_entropy_is_its_definition():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(7, 11)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -(p * np.log(p)).sum(axis=1)
    np.testing.assert_allclose(entropy_of(torch.from_numpy(logits)), wanted, rtol=1e-12)


def test_entropy_is_log_v_for_equal_logits_and_0_for_certainty():
    found = entropy_of(torch.tensor([[2.0] * 8, [1000.0] + [-1000.0] * 7], dtype=torch.float64))
    np.testing.assert_allclose(found, [math.log(8), 0], atol=1e-12)
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    entropy_of(logits).sum().backward()
    assert bool(torch.isfinite(logits.grad).all())


def reference_losses(model, coefficients, task_vectors, calibration) -> dict:
    """Each task's mean entropy in numpy, from a model merged in numpy out of the view's own task vectors."""
    state = model.state_dict()
    for name in task_vectors.names:
        base = task_vectors.base.read(name).double().numpy()
        tau = task_vectors.tau(name, torch.float64).numpy().reshape(len(task_vectors.experts), -1)
        total = base.reshape(-1) + (coefficients.expand(name, base.size) * tau).sum(axis=0)
        state[internvl.parameter_name(name)] = torch.from_numpy(total.reshape(base.shape))
    model.load_state_dict(state)
    losses = {}
    for task in calibration.tasks.values():
        samples = []
        for sample in range(task.samples):
            values = []
            for i in [i for i, s in enumerate(task.sample_of) if s == sample]:
                batch, taken = collate([task.sequences[i]])
                with torch.no_grad():
                    z = internvl.forward(model, batch, task.features[i].double()).logits[taken].numpy()
                p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
                values += [float(x) for x in -(p * np.log(p)).sum(axis=1)]
            samples.append(np.mean(values))
        losses[task.name] = np.mean(samples)
    return losses


def view_of(task_vectors, transformed):
    return Elected(Trimmed(task_vectors, 0.3)) if transformed else task_vectors


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.usefixtures("float64_norms")
def test_gradients_are_finite_differences(task_vectors, calibration, transformed):
    vectors = view_of(task_vectors, transformed)
    start = chunked(task_vectors)
    start = Coefficients(start.experts, {name: value[:, :1] for name, value in start.values.items()})
    model = base_model(task_vectors, torch.float64)
    merged = MergedModel(model, vectors, start, internvl.parameter_name)
    found = problem(vectors, calibration, model).losses(step=0)
    gradient = merged.gradient().numpy()
    reference = base_model(task_vectors, torch.float64)
    for task, value in reference_losses(reference, start, vectors, calibration).items():
        assert set(found[task]) == {"entropy"}
        assert math.isclose(found[task]["entropy"], value, rel_tol=1e-8), task
    flat, step = start.flat(), 1e-4
    for i in np.random.default_rng(0).choice(len(flat), 8, replace=False):
        shifted = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[i] += sign * step
            shifted.append(sum(reference_losses(reference, start.with_flat(moved), vectors, calibration).values()))
        difference = (shifted[0] - shifted[1]) / (2 * step)
        assert math.isclose(gradient[i], difference, rel_tol=1e-5, abs_tol=1e-8), i


# ---- the loop
def entropy_fit(task_vectors, calibration, **changes):
    clamp, initial = changes.pop("clamp", True), changes.pop("initial", 0.3)
    settings = {"name": "adam", "lr": 1e-2, "steps": 4, "schedule": "constant"} | changes
    minimised = problem(task_vectors, calibration, base_model(task_vectors), initial)
    start = Coefficients.constant(task_vectors.names, minimised.penalty.initial)
    trained = "clamped" if clamp else "plain"
    return fit(minimised, start=start, optimiser=Optimiser(**settings), parameterisation=trained)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_first_step_is_the_optimisers(task_vectors, calibration, name):
    """Adam adds weight decay to the gradient, AdamW shrinks the value by itself."""
    found = entropy_fit(task_vectors, calibration, name=name, steps=1, weight_decay=0.5)
    check = base_model(task_vectors, torch.float64)
    start = Coefficients.constant(task_vectors.names, {"VQA": 0.3, "Chart": 0.3})
    merged = MergedModel(check, task_vectors, start, internvl.parameter_name)
    problem(task_vectors, calibration, check).losses(0)
    g, w = merged.gradient().numpy(), start.flat()
    if name == "adam":
        g = g + 0.5 * w
    else:
        w = w * (1 - 1e-2 * 0.5)
    np.testing.assert_allclose(found.coefficients.flat(), w - 1e-2 * g / (np.abs(g) + 1e-8), atol=2e-5)


def test_coefficients_stay_in_0_1_when_clamped_and_only_then(task_vectors, calibration):
    free = entropy_fit(task_vectors, calibration, lr=0.5, clamp=False).coefficients.flat()
    assert free.min() < 0 and free.max() > 1
    clamped = entropy_fit(task_vectors, calibration, lr=0.5).coefficients.flat()
    assert clamped.min() == 0 and clamped.max() == 1


def test_a_coefficient_at_the_edge_can_come_back(task_vectors, calibration):
    """What the clamp after the step does and one inside the model would not do."""
    history = entropy_fit(task_vectors, calibration, lr=0.5, steps=12).history
    low = [entry["coefficients"]["VQA"]["min"] for entry in history]
    assert low[0] == 0.3 and min(low) == 0
    found = entropy_fit(task_vectors, calibration, lr=0.02, steps=12, initial=0.0)
    assert (found.coefficients.flat() > 0).any()


def test_the_entropy_falls(task_vectors, calibration):
    history = entropy_fit(task_vectors, calibration, lr=0.03, steps=12).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[0]["loss"] == pytest.approx(sum(terms["entropy"] for terms in history[0]["tasks"].values()))


# ---- the rows
STEPS = {"name": "adam", "lr": 0.01, "weight_decay": 0.0, "steps": 3, "schedule": "constant", "batch": 1}


@pytest.fixture
def recipe(tiny_zoo, tmp_path):
    data = recipe_data(tiny_zoo)
    data["methods"]["adamerging"] = {"optimiser": STEPS}
    data["rows"] += [
        {"id": "adamerging", "label": "AdaMerging", "method": "adamerging"},
        {"id": "adamerging_pp", "label": "AdaMerging++", "method": "adamerging_pp", "options": {"density": 0.4}},
        {"id": "whole", "label": "AdaMerging++, whole", "method": "adamerging_pp", "options": {"density": 1.0}},
    ]
    return save_recipe(tmp_path, data)


def merged(recipe, row, folder, seed=0):
    out = folder / row / "model"
    report = merge_row(recipe, row, seed, out, folder / "cache")
    return report, Checkpoint.open(out), Coefficients.load(out.parent / "coefficients.json")


@pytest.mark.parametrize("row", ["adamerging", "adamerging_pp"])
def test_a_row_leaves_coefficients_that_make_the_very_model(recipe, tmp_path, tiny_zoo, row):
    report, found, coefficients = merged(recipe, row, tmp_path)
    assert report["scale"] is None and report["trainable_coefficients"] == 2 * 24
    assert np.abs(coefficients.flat() - 0.3).max() > 1e-3
    vectors = open_task_vectors(tiny_zoo)
    base, *experts = opened(tiny_zoo)
    names = vectors.names
    tau = {n: np.stack([e.read(n).double().numpy() - base.read(n).double().numpy() for e in experts]) for n in names}
    if row == "adamerging_pp":
        flat = np.concatenate([tau[n].reshape(2, -1) for n in names], axis=1)
        k = flat.shape[1] - int(flat.shape[1] * 0.4)  # d - int(d * K) of the original
        threshold = np.sort(np.abs(flat), axis=1)[:, k - 1 : k]
        flat = np.where(np.abs(flat) >= threshold, flat, 0)
        sign = np.sign(flat.sum(axis=0))
        sign[sign == 0] = np.sign(sign.sum())
        flat = np.where(np.sign(flat) == sign, flat, 0)
        for n in names:
            size = tau[n][0].size
            tau[n], flat = flat[:, :size].reshape(tau[n].shape), flat[:, size:]
    for n in names:
        wanted = base.read(n).double().numpy() + np.tensordot(coefficients.values[n][:, 0], tau[n], axes=1)
        np.testing.assert_allclose(found.read(n).double().numpy(), wanted, rtol=2.0**-8, atol=1e-6, err_msg=n)
    for n in set(base.names) - set(names):
        assert torch.equal(found.read(n), base.read(n))


def test_both_use_expert_mergings_calibration_set_and_are_kept_apart(recipe, tmp_path):
    merge_row(recipe, "expert_merging", 0, tmp_path / "em" / "model", tmp_path / "cache", 0.3)
    first, _, one = merged(recipe, "adamerging", tmp_path)
    second, _, two = merged(recipe, "adamerging_pp", tmp_path)
    folders = [path for path in (tmp_path / "cache" / "calibration").iterdir() if path.is_dir()]
    assert len(folders) == 2  # one a task
    assert len([path for path in (tmp_path / "cache" / "fits").iterdir() if path.is_dir()]) == 3
    assert first["model_sha256"] != second["model_sha256"] and one.to_json() != two.to_json()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(recipe, tmp_path):
    first, _, _ = merged(recipe, "adamerging_pp", tmp_path / "a")
    second, _, _ = merged(recipe, "adamerging_pp", tmp_path / "b")
    other, _, _ = merged(recipe, "adamerging_pp", tmp_path / "c", seed=1)
    assert first["model_sha256"] == second["model_sha256"] != other["model_sha256"]
