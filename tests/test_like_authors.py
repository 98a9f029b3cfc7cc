"""``--like authors`` against the authors' loop, written down here in plain torch from what is known of their code."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import recipe_data, save_recipe
from engine_toys import toy
from torch.func import functional_call

from emkit import cli
from emkit.coefficients import Coefficients
from emkit.engine.options import EngineOptions
from emkit.engine.order import authors_settings, authors_turns
from emkit.fit import FitOptions, Optimiser, fit
from emkit.sequences import collate

BETA, GAMMA = {"VQA": 1.0, "Chart": 2.5}, 0.7
SAMPLES = 9  # of two tasks: 18 micro-steps, three optimiser steps, the last of two micro-steps


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return toy("internvl", tmp_path_factory.mktemp("authors"), tokens="all", samples=SAMPLES)


class Whole(torch.nn.Module):
    def __init__(self, backbone, model):
        super().__init__()
        self.backbone, self.model = backbone, model

    def forward(self, batch, features, layer, taken):
        return self.backbone.forward(self.model, batch, features, layer, taken)


def authors_loop(made, initial: float, hidden_weight: float) -> list[np.ndarray]:
    """α = σ(w), w₀ = logit(ᾱ); loss of one sample of one task: β (soft cross-entropy, mean over all its tokens, +
    w_h · mean squared hidden error) + γ Σ|α − ᾱ| / (n/K); AdamW 0.5 on w, weight decay 1e-5, cosine warm restarts
    (T₀ 50), 8 accumulation steps, clip 1.0, one epoch; tasks in turn. α [tensor, expert] before each step and after.
    """
    names, k = made.task_vectors.names, 2
    whole = Whole(made.backbone, made.model())
    w = torch.full((len(names), k), math.log(initial / (1 - initial)), requires_grad=True)
    optimiser = torch.optim.AdamW([w], lr=0.5, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=50)
    queue = {name: list(range(SAMPLES)) for name in ("VQA", "Chart")}
    micro_steps = []
    while queue["VQA"] or queue["Chart"]:
        for name in ("VQA", "Chart"):
            if queue[name]:
                micro_steps.append((name, queue[name].pop()))
    trajectory = [torch.sigmoid(w).detach().numpy()]
    for number, (name, sample) in enumerate(micro_steps, 1):
        alpha, weights = torch.sigmoid(w), {}
        for i, tensor in enumerate(names):
            base, experts = made.task_vectors.read(tensor)
            delta = sum(alpha[i, j] * (e.float() - base.float()) for j, e in enumerate(experts))
            weights["model." + made.backbone.parameter_name(tensor)] = base.float() + delta
        task, cross, squares, tokens = made.calibration.tasks[name], 0, 0, 0
        for i in [i for i, s in enumerate(task.sample_of) if s == sample]:
            batch, taken = collate([task.sequences[i]])
            layer = made.calibration.hidden_layer
            out = functional_call(whole, weights, (batch, task.features[i], layer, taken))
            count = torch.tensor(task.sequences[i].count)  # a shared prefix stands for each of its rows
            p = torch.softmax(task.logits(i), dim=-1)
            rows = -(p * torch.log_softmax(out.logits, dim=-1)).sum(dim=-1)
            cross = cross + (count[count > 0] * rows).sum()
            squares = squares + (count[count > 0] * (out.hidden[taken] - task.hidden[i]).square().mean(dim=-1)).sum()
            tokens += float(count.sum())
        penalty = (alpha - initial).abs().sum() / (w.numel() / k)
        loss = BETA[name] * (cross / tokens + hidden_weight * squares / tokens) + GAMMA * penalty
        (loss / 8).backward()
        if number % 8 == 0 or number == len(micro_steps):
            torch.nn.utils.clip_grad_norm_([w], 1.0)
            optimiser.step()
            scheduler.step()
            optimiser.zero_grad()
            trajectory.append(torch.sigmoid(w).detach().numpy())
    return trajectory


@pytest.mark.parametrize("hidden_weight", [0.0, 0.3])
def test_the_coefficients_follow_the_authors_loop_step_by_step(made, hidden_weight):
    given = {"gamma": GAMMA, "beta": BETA, "hidden_weight": hidden_weight, "optimiser": {}, "hidden_layer": "middle"}
    settings = authors_settings(given, SAMPLES, 2)
    keys = ("parameterisation", "temperature", "beta", "gamma", "regulariser", "hidden_loss", "hidden_weight")
    options = FitOptions(
        **{key: settings[key] for key in keys}, optimiser=Optimiser(**settings["optimiser"]), order="authors"
    )
    initial = dict.fromkeys(made.task_vectors.experts, 0.2)
    start = Coefficients.constant(made.task_vectors.names, initial)
    count = len(start.values)
    found = fit(made.backbone, made.model(), made.task_vectors, start, initial, made.calibration, options, count)
    expected = authors_loop(made, 0.2, hidden_weight)
    assert len(found.history) == 3 and np.abs(expected[-1] - expected[0]).max() > 0.1
    trajectory = [*(entry["alpha"] for entry in found.history), found.coefficients.flat()]
    for step, (ours, theirs) in enumerate(zip(trajectory, expected, strict=True)):
        np.testing.assert_allclose(ours, theirs.reshape(-1), atol=2e-4, err_msg=f"step {step}")
    assert np.abs(np.array(trajectory[1]) - expected[1].reshape(-1)).max() < 2e-5


def test_the_settings_are_those_of_their_default_run():
    """Five experts with ten samples each: 50 samples, 7 optimiser steps."""
    found = authors_settings(
        {"gamma": 5.0, "tokens": "response", "optimiser": {"lr": 0.01}, "hidden_weight": 1.0}, 10, 5
    )
    optimiser = Optimiser(**found["optimiser"])
    assert (optimiser.steps, optimiser.lr, optimiser.weight_decay, optimiser.clip) == (7, 0.5, 1e-5, 1.0)
    assert (optimiser.name, optimiser.schedule, optimiser.period) == ("adamw", "cosine_restarts", 50)
    assert found["parameterisation"] == "sigmoid" and found["tokens"] == "all" and found["gamma"] == 5.0


def test_every_sample_has_one_turn_and_tasks_take_turns(made):
    turns = authors_turns(made.calibration)
    assert sorted(turns) == sorted((name, s) for name in ("VQA", "Chart") for s in range(SAMPLES))
    assert turns[:3] == [("VQA", 8), ("Chart", 8), ("VQA", 7)]


def test_a_row_is_merged_like_the_authors(tiny_zoo, tmp_path, capsys):
    data = recipe_data(tiny_zoo)
    save_recipe(tmp_path, data)
    out = tmp_path / "em" / "model"
    arguments = ["merge-row", str(tmp_path / "recipe.yaml"), "expert_merging", "--scale", "0.3", "--out", str(out)]
    assert cli.main([*arguments, "--like", "authors", "--memory", "1GiB", "--micro-tokens", "500"]) == 0
    assert json.loads(capsys.readouterr().out)["row"] == "expert_merging"
    history = json.loads((out.parent / "history.json").read_text())["stages"][0]["history"]
    assert [entry["learning_rate"] for entry in history] == [0.5]  # two samples of two tasks: one step
    assert cli.main([*arguments, "--memory", "much"]) == 2
    assert "is no amount of memory" in capsys.readouterr().err


def test_what_changes_rounding_is_part_of_a_fits_identity():
    assert EngineOptions(memory=5, place="files").identity == {} == EngineOptions().identity
    assert EngineOptions(dtype="bfloat16").identity == {"dtype": "bfloat16"}
