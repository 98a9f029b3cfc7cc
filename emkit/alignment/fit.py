"""The one training loop for coefficients: Expert Merging(++) (Sections 3.2 and 3.3) and AdaMerging(++).

What a step does is in :mod:`emkit.alignment`; here is what it is for, when it ends, and how it goes on after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from emkit.alignment.calibration import Calibration
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.options import EngineOptions
from emkit.alignment.order import AUTHORS, chosen_samples, pieces, pull
from emkit.alignment.placement import Placement, place
from emkit.alignment.variable import (
    OPTIMISERS,
    PARAMETERISATIONS,
    SCHEDULES,
    Optimiser,
    Variable,
    authors_sign,
    learning_rate,
)
from emkit.backbones.base import Backbone
from emkit.coefficients import Coefficients
from emkit.determinism import deterministic
from emkit.errors import UserError
from emkit.files import read_json, read_kept, sha256_json, write_json
from emkit.progress import report
from emkit.task_vectors import TaskVectors

__all__ = ["OPTIMISERS", "PARAMETERISATIONS", "SCHEDULES", "Fit", "FitOptions", "Optimiser", "fit"]
__all__ += ["chosen_samples", "learning_rate"]
STATES = 50  # how often in a fit its state is written at least


@dataclass(frozen=True)
class FitOptions:
    """What a fit depends on besides its data; the recipe gives each value with its source.

    ``parameterisation``: ``plain`` trains α itself, as the paper writes it ("α ∈ ℝ"); ``sigmoid`` trains w with
    α = sigmoid(w), as the authors' code does, which keeps α in (0, 1) and slows it near both ends. Plain is the
    default because the best coefficients may lie outside (0, 1) and γ then has Eq. 3's meaning in the step itself.
    ``hidden_weight`` and ``logit_weight`` scale the two alignment terms (1 in the paper; 0 for its ablations).
    ``objective``: ``alignment`` to the experts (Eq. 1 and 2) or ``entropy`` of the merged model's own predictions
    (AdaMerging). ``clamp`` sets plain coefficients back into [0, 1] after every step. ``order``: whose order and
    weights the samples have (:mod:`emkit.alignment.order`).
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
    order: str = "tasks"


@dataclass(frozen=True)
class Fit:
    """``coefficients`` after the last step; ``history``: losses and coefficients before each step."""

    coefficients: Coefficients
    history: list[dict]


def fit(
    backbone: Backbone,
    model: torch.nn.Module,
    task_vectors: TaskVectors | Placement,
    start: Coefficients,
    initial: Mapping[str, float],
    calibration: Calibration,
    options: FitOptions,
    count: float,
    seed: int = 0,
    state: Path | None = None,
    progress: bool = False,
    engine: EngineOptions | None = None,
) -> Fit:
    """Minimise Σ_k β_k (L_hid^(k) + L_logit^(k)) + γ R(α), or Σ_k β_k H^(k) + γ R(α), over the trainable coefficients.

    ``model`` is the base in the dtype to compute in (its merged weights are overwritten), ``start`` the coefficients
    to begin with, ``initial`` ᾱ_k of each expert (what R measures from), ``count`` L or B (Eq. 3). With ``state``,
    a file is written after every step (after every few of a long fit) and a killed fit goes on from it to the
    identical end, since kernels are deterministic. A step's samples depend on ``seed`` and the step only. ``engine``
    says what the machine may give. ``UserError`` when the loss is not finite, and on a GPU for a model with an
    operation that has no deterministic kernel.
    """
    engine = engine or EngineOptions()
    owners, device = start.flat_experts(), next(model.parameters()).device
    anchor = np.array([initial[start.experts[k]] for k in owners])
    at_rest = None
    if options.order in AUTHORS:
        at_rest = authors_sign([initial[name] for name in start.experts], device)[owners]
    variable = Variable(start, options.parameterisation, options.optimiser, anchor, options.clamp, device, at_rest)
    stated = {"start": start.to_json(), "initial": dict(initial), "seed": seed, "options": repr(options)}
    identity = sha256_json(stated | {"engine": engine.identity})
    history = _resume(variable, state, identity)
    placement = task_vectors if isinstance(task_vectors, Placement) else place(task_vectors, model, engine)
    merged = MergedModel(model, placement, _coefficients(start, variable), backbone.parameter_name)
    steps = options.optimiser.steps
    try:
        with (
            deterministic(strict=device.type == "cuda"),
            tqdm(total=steps, initial=len(history), desc="fit", unit="step", disable=not progress) as bar,
        ):
            for step in range(len(history), steps):
                report("fit step", step, steps)
                history.append(
                    _step(backbone, model, merged, variable, start, calibration, options, count, step, seed, engine)
                )
                if state is not None and len(history) % -(-steps // STATES) == 0:
                    write_json(state, {"identity": identity, "history": history, **variable.snapshot()})
                bar.set_postfix(loss=f"{history[-1]['loss']:.4f}", refresh=False)
                bar.update()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"this model cannot be fitted on {device} to the same bits each time: {error}") from error
    finally:
        merged.close()
    return Fit(_coefficients(start, variable), history)


def _step(
    backbone, model, merged: MergedModel, variable: Variable, start, calibration, options, count, step, seed, engine
) -> dict:
    """One optimiser step; its line of the history.

    Where nothing in the update needs all gradients at once, each tensor is updated within the backward, while its
    task vectors are at hand; a bound on the gradient's norm needs them all, and so a second reading.
    """
    before = variable.alpha()
    n, experts = len(before), len(start.experts)
    weight = pull(options.order, options.regulariser, n, experts, count, calibration, step)
    variable.begin(step, options.gamma * weight)
    clipped = options.optimiser.clip is not None

    def last() -> None:
        if not clipped:
            merged.update_on_arrival(variable.descend)

    losses = _losses(backbone, model, calibration, options, step, seed, engine, last)
    if clipped:
        merged.rewrite(variable.descend_clipped(merged.gradient()))
    else:
        merged.finish_updates()
    penalty = weight * float((before - variable.anchor).abs().sum())
    total = sum(options.beta.get(task, 1.0) * sum(terms.values()) for task, terms in losses.items())
    total += options.gamma * penalty
    if not math.isfinite(total):
        raise UserError(f"the fit diverged at step {step + 1} (loss {total}): lower optimiser.lr")
    return _entry(step, total, penalty, losses, start.with_flat(before.cpu().numpy()), variable.rate)


def _losses(
    backbone,
    model,
    calibration: Calibration,
    options: FitOptions,
    step: int,
    seed: int,
    engine: EngineOptions | None = None,
    before_last: Callable[[], None] = lambda: None,
) -> dict:
    """One step's losses of every task (E over samples of the mean over positions), with backward passes."""
    from emkit.alignment import losses as of_step  # here, because it imports transformers: plans have no use for it

    engine = engine or EngineOptions()
    chosen = pieces(calibration, options.order, options.optimiser.batch, step, seed)
    found = of_step.backward(
        backbone,
        model,
        chosen,
        calibration.hidden_layer,
        options,
        options.beta,
        engine.micro_tokens,
        before_last,
        engine.checkpointing,
    )
    return {task: found[task] for task in calibration.tasks if task in found}


def _coefficients(start: Coefficients, variable: Variable) -> Coefficients:
    return start.with_flat(variable.alpha().cpu().numpy())


def _resume(variable: Variable, state: Path | None, identity: str) -> list[dict]:
    """Take up the state that an interrupted fit of the same ``identity`` left, and return its history."""
    found = None if state is None else read_kept(state, read_json)
    if found is None or found["identity"] != identity:
        return []
    variable.restore(found)
    return found["history"]


def _entry(step: int, total: float, penalty: float, losses: dict, coefficients: Coefficients, rate: float) -> dict:
    """One line of the history: the losses at, and the coefficients before, a step.

    ``alpha`` holds the trained coefficients in the order of :meth:`Coefficients.flat`.
    """
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
        "alpha": flat.tolist(),
        "learning_rate": rate,
    }
