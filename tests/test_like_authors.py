"""``--like authors`` against the authors' loop, written down here in plain torch from what is known of their code."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import recipe_data, save_recipe
from engine_toys import problem, toy
from torch.func import functional_call

from emkit.alignment import objectives
from emkit.alignment.fit import fit
from emkit.alignment.like import imposed, layer
from emkit.alignment.losses import Alignment
from emkit.alignment.options import EngineOptions
from emkit.alignment.order import authors_order, authors_steps, authors_turns, pieces, tasks_in
from emkit.alignment.sequences import collate
from emkit.alignment.variable import Optimiser
from emkit.coefficients import Coefficients
from eval.__main__ import main

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


def authors_loop(made, initial: float, hidden_weight: float, micro_steps: list) -> list[np.ndarray]:
    """α = σ(w), w₀ = logit(ᾱ); loss of one sample of one task: β (soft cross-entropy, mean over all its tokens, +
    w_h · mean squared hidden error) + γ Σ|α − ᾱ| / (n/K); AdamW 0.5 on w, weight decay 1e-5, cosine warm restarts
    (T₀ 50, T_mult 2, down to a tenth), 8 accumulation steps, clip 1.0, one epoch. α [tensor, expert] before each step
    and after.
    """
    names, k = made.task_vectors.names, 2
    whole = Whole(made.backbone, made.model())
    w = torch.full((len(names), k), math.log(initial / (1 - initial)), requires_grad=True)
    optimiser = torch.optim.AdamW([w], lr=0.5, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=50, T_mult=2, eta_min=0.05)
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


def base_class_turns(sizes: dict[str, int]) -> list[tuple[str, int]]:
    """Tasks in turn, the last sample of each first."""
    queue = {name: list(range(size)) for name, size in sizes.items()}
    turns = []
    while any(queue.values()):
        turns += [(name, samples.pop()) for name, samples in queue.items() if samples]
    return turns


def internvl_turns(sizes: dict[str, int], seed: int) -> list[tuple[str, int]]:
    """Rounds of all tasks, the shorter ones over and over, shuffled as ``DataLoader(shuffle=True)`` shuffles."""
    rounds = [(name, i % size) for i in range(max(sizes.values())) for name, size in sizes.items()]
    sampler = torch.utils.data.RandomSampler(rounds, generator=torch.Generator().manual_seed(seed))
    return [rounds[i] for i in sampler]


def cut(made, sizes: dict[str, int]):
    """The calibration with so many samples of each task."""
    tasks = {}
    for name, size in sizes.items():
        task = made.calibration.tasks[name]
        kept = sum(sample < size for sample in task.sample_of)
        lists = {
            key: value[:kept] for key, value in vars(task).items() if isinstance(value, list) and len(value) >= kept
        }
        tasks[name] = dataclasses.replace(task, **lists)
        assert tasks[name].samples == size
    return dataclasses.replace(made.calibration, tasks=tasks)


@pytest.mark.parametrize(
    ("order", "hidden_weight", "sizes"),
    [
        ("authors", 0.0, {"VQA": SAMPLES, "Chart": SAMPLES}),
        ("authors", 0.3, {"VQA": SAMPLES, "Chart": SAMPLES}),
        ("authors_shuffled", 0.0, {"VQA": SAMPLES, "Chart": SAMPLES}),
        ("authors_shuffled", 0.3, {"VQA": SAMPLES, "Chart": 1}),  # Chart's sample is in every step several times
    ],
)
def test_the_coefficients_follow_the_authors_loop_step_by_step(made, order, hidden_weight, sizes):
    given = {"gamma": GAMMA, "beta": BETA, "hidden_weight": hidden_weight, "optimiser": {}, "hidden_layer": "middle"}
    settings = given | layer(given, imposed("expert_merging", SAMPLES, 2, "mistral"))
    objective = Alignment(**{key: settings[key] for key in ("temperature", "beta", "hidden_loss", "hidden_weight")})
    initial = dict.fromkeys(made.task_vectors.experts, 0.2)
    start = Coefficients.constant(made.task_vectors.names, initial)
    penalty = {"gamma": settings["gamma"], "kind": settings["regulariser"], "order": order}
    few = dataclasses.replace(made, calibration=cut(made, sizes))
    minimised = problem(few, made.model(), objective, None, initial, len(start.values), **penalty)
    optimiser, trained = Optimiser(**settings["optimiser"]), settings["parameterisation"]
    found = fit(minimised, start=start, optimiser=optimiser, parameterisation=trained, seed=4)
    turns = base_class_turns(sizes) if order == "authors" else internvl_turns(sizes, 4)
    expected = authors_loop(made, 0.2, hidden_weight, turns)
    assert len(found.history) == 3 and np.abs(expected[-1] - expected[0]).max() > 0.1
    trajectory = [*(entry["alpha"] for entry in found.history), found.coefficients.flat()]
    for step, (ours, theirs) in enumerate(zip(trajectory, expected, strict=True)):
        np.testing.assert_allclose(ours, theirs.reshape(-1), atol=2e-4, err_msg=f"step {step}")
    assert np.abs(np.array(trajectory[1]) - expected[1].reshape(-1)).max() < 2e-5


@pytest.mark.parametrize("backbone", ["internvl", "qwen2_vl", "mistral", "causal_lm"])
def test_the_settings_are_those_of_their_default_run(backbone):
    """Five experts with ten samples each: 50 samples, 7 optimiser steps."""
    given = {"gamma": 5.0, "tokens": "response", "optimiser": {"lr": 0.01}, "hidden_weight": 1.0}
    found = given | layer(["gamma", "tokens"], imposed("expert_merging", 10, 5, backbone))
    optimiser = Optimiser(**found["optimiser"])
    assert (optimiser.steps, optimiser.lr, optimiser.weight_decay, optimiser.clip) == (7, 0.5, 1e-5, 1.0)
    assert (optimiser.name, optimiser.schedule, optimiser.period) == ("adamw", "cosine_restarts", 50)
    assert (optimiser.growth, optimiser.floor) == (2, 0.1)
    assert found["parameterisation"] == "sigmoid" and found["tokens"] == "all" and found["gamma"] == 5.0
    assert found["hidden_weight"] == 0.0 and "fixed" not in found
    assert layer(given, {}) == {} and layer([], {}) == {"hidden_weight": 0.0}
    assert imposed("expert_merging_pp", 10, 5, backbone)["fixed"] == "initial"


def test_every_sample_has_one_turn_and_tasks_take_turns(made):
    turns = authors_turns(made.calibration)
    assert sorted(turns) == sorted((name, s) for name in ("VQA", "Chart") for s in range(SAMPLES))
    assert turns[:3] == [("VQA", 8), ("Chart", 8), ("VQA", 7)]


def test_internvl_has_the_order_of_their_own_internvl_trainer(made):
    assert [authors_order(name) for name in ("internvl", "qwen2_vl", "mistral")] == ["authors_shuffled"] + 2 * [
        "authors"
    ]
    sizes = {"VQA": 9, "Chart": 4}
    data = cut(made, sizes)
    assert authors_turns(data) == base_class_turns(sizes)
    for seed in range(3):
        turns = authors_turns(data, "authors_shuffled", seed)
        assert turns == internvl_turns(sizes, seed) and len(turns) == 18
    assert sorted(turns) == sorted([("VQA", i) for i in range(9)] + [("Chart", i % 4) for i in range(9)])
    assert authors_turns(data, "authors_shuffled", 0) != authors_turns(data, "authors_shuffled", 1)
    assert authors_steps([9, 4], "authors_shuffled") == 3 and authors_steps([9, 4]) == 2
    # the last step holds two micro-steps of eight: a quarter of the regulariser's weight, 1/(n/K) each
    alpha = torch.full((24,), 0.5, dtype=torch.float64)
    weights = []
    for step in range(3):
        tasks = tasks_in(data, "authors_shuffled", step)
        weights.append(objectives.regulariser(alpha, alpha - 1, 2, 12, "authors", tasks)[1].unique().tolist())
    assert weights == [[1 / 12], [1 / 12], [1 / 48]]


def test_a_sample_with_two_turns_in_a_step_weighs_twice(made):
    found = pieces(cut(made, {"VQA": 2, "Chart": 1}), "authors_shuffled", 1, 0, 0)
    weight = {(name, i): 0.0 for name in ("VQA", "Chart") for i in range(2)}
    for piece in found:
        weight[piece.task.name, piece.task.sample_of[piece.index]] += float(piece.weights.sum())
    assert weight == pytest.approx({("VQA", 0): 1 / 8, ("VQA", 1): 1 / 8, ("Chart", 0): 2 / 8, ("Chart", 1): 0})


def test_a_row_is_merged_like_the_authors(tiny_zoo, tmp_path, capsys):
    data = recipe_data(tiny_zoo)
    save_recipe(tmp_path, data)
    out = tmp_path / "em" / "model"
    arguments = ["merge", str(tmp_path / "table1.yaml"), "expert_merging", "--scale", "0.3", "--out", str(out)]
    arguments += ["--profile", str(tmp_path / "profile.yaml")]
    assert main([*arguments, "--like", "authors", "--memory", "1GiB", "--micro-tokens", "500"]) == 0
    assert json.loads(capsys.readouterr().out)["row"] == "expert_merging"
    history = json.loads((out.parent / "history.json").read_text())["stages"][0]["history"]
    assert [entry["learning_rate"] for entry in history] == [0.5]  # two samples of two tasks: one step
    assert main([*arguments, "--memory", "much"]) == 2
    assert "is no amount of memory" in capsys.readouterr().err


def test_what_changes_rounding_is_part_of_a_fits_identity():
    assert EngineOptions(memory=5, place="files").identity == {} == EngineOptions().identity
    assert EngineOptions(dtype="bfloat16").identity == {"dtype": "bfloat16"}
