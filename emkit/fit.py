"""The one training loop for coefficients: Expert Merging(++) (Sections 3.2 and 3.3) and AdaMerging(++)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm

from emkit.calibration import Calibration, TaskSamples
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.files import read_json, read_kept, sha256_json, write_json
from emkit.merged_model import MergedModel
from emkit.objectives import entropy, hidden_alignment, logit_alignment, regulariser
from emkit.sequences import batches, collate
from emkit.task_vectors import TaskVectors
from emkit.transforms import View

PARAMETERISATIONS = ("plain", "sigmoid")
SCHEDULES = ("constant", "cosine", "cosine_restarts")
OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
TERMS = {"alignment": ("hidden", "logit"), "entropy": ("entropy",)}  # an objective's losses of each task
STATES = 50  # how often in a fit its state is written at least
BATCH_TOKENS = 2048  # padded tokens in one pass: enough to keep a core busy, little enough for its cache


@dataclass(frozen=True)
class Optimiser:
    """``adamw``'s or ``adam``'s settings (they differ in where weight decay enters).

    ``batch`` is the number of samples of each task in one step (``all``: every sample). ``clip`` bounds the norm of
    the whole coefficient gradient (null: no bound). ``cosine`` falls from ``lr`` to 0 over ``steps``;
    ``cosine_restarts`` starts again every ``period`` steps, as the authors' code does.
    """

    name: str = "adamw"
    lr: float = 0.02
    weight_decay: float = 0.0
    steps: int = 50
    schedule: str = "cosine"
    batch: int | str = "all"
    clip: float | None = None
    period: int = 50


@dataclass(frozen=True)
class FitOptions:
    """What a fit depends on besides its data; the recipe gives each value with its source.

    ``parameterisation``: ``plain`` trains α itself, as the paper writes it ("α ∈ ℝ"); ``sigmoid`` trains w with
    α = sigmoid(w), as the authors' code does, which keeps α in (0, 1) and slows it near both ends. Plain is the
    default because the best coefficients may lie outside (0, 1) and γ then has Eq. 3's meaning in the step itself.
    ``hidden_weight`` and ``logit_weight`` scale the two alignment terms (1 in the paper; 0 for its ablations).
    ``objective``: ``alignment`` to the experts (Eq. 1 and 2) or ``entropy`` of the merged model's own predictions
    (AdaMerging). ``clamp`` sets plain coefficients back into [0, 1] after every step.
    """

    parameterisation: str = "plain"
    temperature: float = 1.0
    beta: Mapping[str, float] = field(default_factory=dict)
    gamma: float = 0.8
    regulariser: str = "paper"
    hidden_loss: str = "mean_squared"
    hidden_weight: float = 1.0
    logit_weight: float = 1.0
    optimiser: Optimiser = field(default_factory=Optimiser)
    objective: str = "alignment"
    clamp: bool = False


@dataclass(frozen=True)
class Fit:
    """``coefficients`` after the last step; ``history``: losses and coefficients before each step."""

    coefficients: Coefficients
    history: list[dict]


def fit(
    backbone: ModuleType,
    model: torch.nn.Module,
    task_vectors: TaskVectors | View,
    start: Coefficients,
    initial: Mapping[str, float],
    calibration: Calibration,
    options: FitOptions,
    count: float,
    seed: int = 0,
    state: Path | None = None,
    progress: bool = False,
) -> Fit:
    """Minimise Σ_k β_k (L_hid^(k) + L_logit^(k)) + γ R(α), or Σ_k β_k H^(k) + γ R(α), over the trainable coefficients.

    ``model`` is the base in the dtype to compute in (its merged weights are overwritten), ``start`` the coefficients
    to begin with, ``initial`` ᾱ_k of each expert (what R measures from), ``count`` L or B (Eq. 3). With ``state``,
    a file is written after every step (after every few of a long fit) and a killed fit goes on from it to the
    identical end. A step's samples depend on ``seed`` and the step only. ``UserError`` when the loss is not finite.
    """
    variable = _Variable(start, options)
    anchor = torch.tensor([initial[start.experts[k]] for k in start.flat_experts()], dtype=torch.float64)
    identity = sha256_json({"start": start.to_json(), "initial": dict(initial), "seed": seed, "options": repr(options)})
    history = variable.resume(state, identity)
    merged = MergedModel(model, task_vectors, start, backbone.parameter_name)
    steps = options.optimiser.steps
    with tqdm(total=steps, initial=len(history), desc="fit", unit="step", disable=not progress) as bar:
        for step in range(len(history), steps):
            coefficients = variable.coefficients()
            merged.write(coefficients)
            losses = _losses(backbone, model, calibration, options, step, seed)
            gradient = torch.from_numpy(merged.gradient(coefficients))
            alpha = variable.alpha()
            penalty = regulariser(alpha, anchor, len(start.experts), count, options.regulariser)
            total = sum(_beta(options, task) * sum(terms.values()) for task, terms in losses.items())
            total += options.gamma * float(penalty.detach())
            if not math.isfinite(total):
                raise UserError(f"the fit diverged at step {step + 1} (loss {total}): lower optimiser.lr")
            rate = learning_rate(options.optimiser, step)
            variable.descend((alpha * gradient).sum() + options.gamma * penalty, rate, options.optimiser.clip)
            history.append(_entry(step, total, float(penalty.detach()), losses, coefficients, rate))
            if state is not None and len(history) % -(-steps // STATES) == 0:
                write_json(state, {"identity": identity, "history": history, **variable.snapshot()})
            bar.set_postfix(loss=f"{total:.4f}", refresh=False)
            bar.update()
    return Fit(variable.coefficients(), history)


class _Variable:
    """The trained vector w (float64) with its optimiser, and α as a function of it."""

    def __init__(self, start: Coefficients, options: FitOptions):
        flat = start.flat()
        self.start, self.sigmoid = start, options.parameterisation == "sigmoid"
        if not len(flat):
            raise UserError("there is no coefficient to learn: every layer got 0 chunks; raise the budget")
        if self.sigmoid and not ((flat > 0) & (flat < 1)).all():
            raise UserError("parameterisation sigmoid needs initial coefficients between 0 and 1, both excluded")
        w = np.log(flat / (1 - flat)) if self.sigmoid else flat
        self.w = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        self.clamp = options.clamp and not self.sigmoid
        settings = options.optimiser
        kind = OPTIMISERS[settings.name]
        self.optimiser = kind([self.w], lr=settings.lr, weight_decay=settings.weight_decay, foreach=False)

    def alpha(self) -> torch.Tensor:
        return torch.sigmoid(self.w) if self.sigmoid else self.w * 1

    def coefficients(self) -> Coefficients:
        return self.start.with_flat(self.alpha().detach().numpy())

    def descend(self, surrogate: torch.Tensor, rate: float, clip: float | None) -> None:
        """One optimiser step; the gradient of ``surrogate`` with respect to α is the objective's."""
        self.optimiser.zero_grad()
        surrogate.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([self.w], clip)
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        if self.clamp:
            self.w.data.clamp_(0, 1)

    def snapshot(self) -> dict:
        moments = self.optimiser.state[self.w]
        vectors = {"w": self.w.detach(), "first": moments["exp_avg"], "second": moments["exp_avg_sq"]}
        return {name: vector.tolist() for name, vector in vectors.items()}

    def resume(self, state: Path | None, identity: str) -> list[dict]:
        """Take up the state that an interrupted fit of the same ``identity`` left, and return its history."""
        found = None if state is None else read_kept(state, read_json)
        if found is None or found["identity"] != identity:
            return []
        w, first, second = (torch.tensor(found[name], dtype=torch.float64) for name in ("w", "first", "second"))
        self.w.data.copy_(w)
        step = torch.tensor(float(len(found["history"])))
        self.optimiser.state[self.w] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        return found["history"]


def learning_rate(settings: Optimiser, step: int) -> float:
    """The learning rate of a step (from 0)."""
    if settings.schedule == "constant":
        return settings.lr
    period = settings.steps if settings.schedule == "cosine" else settings.period
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step % period) / period))


def chosen_samples(samples: int, batch: int | str, step: int, seed: int, task: int) -> list[int]:
    """Which of a task's samples a step takes: each once an epoch, in an order drawn anew every epoch."""
    if batch == "all" or batch >= samples:
        return list(range(samples))
    per_epoch = -(-samples // batch)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, task, epoch]).permutation(samples)
    return sorted(order[place * batch : (place + 1) * batch].tolist())


def _losses(backbone, model, calibration: Calibration, options: FitOptions, step: int, seed: int) -> dict:
    """One step's losses of every task (E over samples of the mean over positions); gradients accumulate."""
    chosen, weights = [], []
    for number, task in enumerate(calibration.tasks.values()):
        samples = chosen_samples(task.samples, options.optimiser.batch, step, seed, number)
        for sequence, weight in _weighted(task, samples):
            chosen.append((task, sequence))
            weights.append(weight)
    losses = {task: dict.fromkeys(TERMS[options.objective], 0.0) for task in calibration.tasks}
    lengths = [len(task.sequences[i].ids) for task, i in chosen]
    for rows in batches(lengths, BATCH_TOKENS):
        parts = [(*chosen[row], weights[row]) for row in rows]
        for name, terms in _backward(backbone, model, parts, calibration.hidden_layer, options).items():
            for term, value in terms.items():
                losses[name][term] += value
    return losses


def _weighted(task: TaskSamples, samples: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Each sequence of the chosen samples with the weight of its positions; a task's weights sum to 1."""
    members = {sample: [i for i, s in enumerate(task.sample_of) if s == sample] for sample in samples}
    for indices in members.values():
        total = sum(task.sequences[i].count.sum() for i in indices)
        for i in indices:
            count = task.sequences[i].count
            yield i, count[count > 0] / (total * len(samples))


def _backward(backbone, model, parts: list, layer: int, options: FitOptions) -> dict:
    """Losses of one batch by task (each term already weighted), with their gradients accumulated."""
    device = next(model.parameters()).device
    batch, taken = collate([task.sequences[i] for task, i, _ in parts])
    dtype = next(model.parameters()).dtype
    features = torch.cat([task.features[i] for task, i, _ in parts]).to(device, dtype)
    batch = {name: value.to(device) for name, value in batch.items()}
    layer = layer if options.objective == "alignment" else None
    output = backbone.forward(model, batch, features=features, hidden_layer=layer, positions=taken.to(device))
    weight = torch.from_numpy(np.concatenate([w for _, _, w in parts])).to(device, dtype)
    if options.objective == "entropy":
        terms = {"entropy": weight * entropy(output.logits)}
    else:
        hidden, logits = (
            torch.cat([getattr(task, kind)[i] for task, i, _ in parts]).to(device, dtype)
            for kind in ("hidden", "logits")
        )
        aligned = hidden_alignment(output.hidden[taken.to(device)], hidden, options.hidden_loss)
        terms = {
            "hidden": options.hidden_weight * weight * aligned,
            "logit": options.logit_weight * weight * logit_alignment(output.logits, logits, options.temperature),
        }
    sizes = [len(w) for _, _, w in parts]
    beta = torch.tensor([_beta(options, task.name) for task, _, _ in parts], dtype=dtype, device=device)
    beta = beta.repeat_interleave(torch.tensor(sizes, device=device))
    (beta * sum(terms.values())).sum().backward()
    losses: dict = {}
    for term, values in terms.items():
        for (task, _, _), part in zip(parts, values.detach().double().split(sizes), strict=True):
            losses.setdefault(task.name, dict.fromkeys(terms, 0.0))[term] += float(part.sum())
    return losses


def _beta(options: FitOptions, task: str) -> float:
    return options.beta.get(task, 1.0)


def _entry(step: int, total: float, penalty: float, losses: dict, coefficients: Coefficients, rate: float) -> dict:
    """One line of the history: the losses at, and the coefficients before, a step."""
    flat, experts = coefficients.flat(), coefficients.flat_experts()
    summary = {}
    for k, name in enumerate(coefficients.experts):
        own = flat[experts == k]
        summary[name] = {"mean": float(own.mean()), "min": float(own.min()), "max": float(own.max())}
    return {
        "step": step,
        "loss": total,
        "regulariser": penalty,
        "tasks": losses,
        "coefficients": summary,
        "learning_rate": rate,
    }
