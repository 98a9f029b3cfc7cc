"""Toy zoos of three backbones with their calibration, and the plain autograd way to the coefficient gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_models as tiny
import torch
from conftest import write_tiny_zoo
from PIL import Image
from torch.func import functional_call

from emkit import backbones
from emkit.alignment.calibration import Calibration, calibrate
from emkit.alignment.fit import Penalty, Problem
from emkit.alignment.losses import Alignment, Entropy
from emkit.alignment.sequences import collate
from emkit.alignment.sources import Item, ZooSource
from emkit.alignment.teacher import Recording
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.task_vectors import TaskVectors

BETA = {"VQA": 1.0, "Chart": 2.5}


@dataclass(frozen=True)
class Toy:
    backbone: Backbone
    task_vectors: TaskVectors
    calibration: Calibration

    def model(self, dtype=torch.float32) -> torch.nn.Module:
        return self.backbone.load(self.task_vectors.base.path)[0].to(dtype)

    def opened(self) -> TaskVectors:
        """Task vectors read by nobody before."""
        experts = {name: Checkpoint.open(c.path) for name, c in self.task_vectors.checkpoints.items()}
        return TaskVectors(Checkpoint.open(self.task_vectors.base.path), experts, self.backbone.merged_names)


class Asked:
    """Some questions, about an image where the backbone takes one."""

    def __init__(self, seen: bool):
        pixels = np.random.default_rng(5).integers(0, 255, (17, 24, 3), dtype=np.uint8)
        self.image = Image.fromarray(pixels) if seen else None

    def identity(self, task):
        return {}

    def items(self, task, seed):
        for i in range(6):
            yield Item(task, f"{i}", self.image, (f"what is {i}?", f"why, {task}?"))


def toy(name: str, folder: Path, tokens: str = "response", samples: int = 2) -> Toy:
    """Base, two experts (VQA, Chart) and samples of each task, of a backbone with random weights."""
    backbone = backbones.get(name)
    if name == "internvl":
        write_tiny_zoo(folder)
    for seed, member in enumerate(("base", "VQA", "Chart")):
        if name == "mistral":
            tiny.save(tiny.language_model("mistral", seed=seed), folder / member)
        if name == "qwen2_vl":
            model, processor = tiny.qwen2_vl(seed=seed)
            tiny.save(model, folder / member, processor)
    experts = {member: Checkpoint.open(folder / member) for member in ("VQA", "Chart")}
    vectors = TaskVectors(Checkpoint.open(folder / "base"), experts, backbone.merged_names)
    source = ZooSource("train", name) if name == "internvl" else Asked(name == "qwen2_vl")
    settings = Recording(samples=samples, response_tokens=6, hidden_layer=1, tokens=tokens, max_new_tokens=5)
    model, _ = backbone.load(folder / "base")
    return Toy(backbone, vectors, calibrate(backbone, model, vectors, source, settings, 0, folder / "cache"))


def by_autograd(toy: Toy, model, start: Coefficients, objective: Alignment | Entropy) -> tuple[dict, np.ndarray]:
    """Losses and gradients the plain way: weights built by autograd over all task vectors, logits whole."""
    dtype = next(model.parameters()).dtype
    alpha = torch.tensor(start.flat(), dtype=dtype, requires_grad=True)
    weights, at = {}, 0
    for name in toy.task_vectors.names:
        base, experts = toy.task_vectors.read(name)
        merged = base.to(dtype).reshape(-1)
        value = torch.tensor(start.values[name], dtype=dtype)
        if name not in start.fixed:
            value = alpha[at : at + value.numel()].reshape(value.shape)
            at += value.numel()
        bounds = [s * base.numel() // value.shape[1] for s in range(value.shape[1] + 1)]
        sizes = torch.tensor(np.diff(bounds))
        for k, expert in enumerate(experts):
            merged = merged + value[k].repeat_interleave(sizes) * (expert.to(dtype) - base.to(dtype)).reshape(-1)
        weights[toy.backbone.parameter_name(name)] = merged.reshape(base.shape)
    total, losses = 0, {}
    for task in toy.calibration.tasks.values():
        found: dict = {}
        for sample in range(task.samples):
            members = [i for i, s in enumerate(task.sample_of) if s == sample]
            positions = sum(task.sequences[i].count.sum() for i in members)
            for i in members:
                terms = _terms(toy, model, weights, task, i, objective)
                count = torch.tensor(task.sequences[i].count, dtype=dtype)
                weight = count[count > 0] / (positions * task.samples)
                for term, values in terms.items():
                    found[term] = found.get(term, 0) + (weight * values).sum()
        losses[task.name] = {term: float(value.detach()) for term, value in found.items()}
        total = total + objective.beta.get(task.name, 1.0) * sum(found.values())
    total.backward()
    return losses, alpha.grad.numpy().astype(np.float64)


def _terms(toy: Toy, model, weights: dict, task, i: int, objective: Alignment | Entropy) -> dict:
    batch, taken = collate([task.sequences[i]])
    dtype = next(model.parameters()).dtype

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self):
            layer = toy.calibration.hidden_layer
            return toy.backbone.forward(model, batch, task.features[i].to(dtype), layer, taken)

    called = {f"inner.{name}": weight for name, weight in weights.items()}
    out = functional_call(Called(), called, ())
    if isinstance(objective, Entropy):
        return {"entropy": torch.distributions.Categorical(logits=out.logits).entropy()}
    squares = (out.hidden[taken] - task.hidden[i].to(dtype)).square()
    return {
        "hidden": objective.hidden_weight * squares.mean(dim=-1),
        "logit": divergence(out.logits, task.logits(i, dtype), objective.temperature),
    }


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of logits [N, V], by torch: [N]."""
    student, teacher = (torch.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    kl = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True)
    return temperature**2 * kl.sum(dim=-1)


def problem(toy: Toy, model, objective=None, task_vectors=None, initial=None, count=20.0, **others) -> Problem:
    """What a fit of the toy minimises; ``others`` are the penalty's or the problem's own."""
    order = others.pop("order", "tasks")
    penalty = Penalty(**{"gamma": 0.0, "initial": initial or {"VQA": 0.3, "Chart": 0.3}, "count": count} | others)
    vectors = toy.task_vectors if task_vectors is None else task_vectors
    return Problem(
        backbone=toy.backbone,
        model=model,
        task_vectors=vectors,
        calibration=toy.calibration,
        objective=objective or Alignment(),
        penalty=penalty,
        order=order,
    )


def coefficients(toy: Toy, chunks: bool) -> Coefficients:
    """Different values everywhere; with ``chunks`` one to three of them a tensor, and two fixed tensors."""
    rng, values, fixed = np.random.default_rng(3), {}, set()
    for i, name in enumerate(toy.task_vectors.names):
        m = 1 + i % 3 if chunks else 1
        if chunks and i in (1, 9):
            m, _ = 1, fixed.add(name)
        values[name] = rng.uniform(0.1, 0.4, size=(2, m))
    return Coefficients(toy.task_vectors.experts, values, frozenset(fixed))
