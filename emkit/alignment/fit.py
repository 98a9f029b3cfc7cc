"""The one training loop for coefficients: Expert Merging(++) (Sections 3.2 and 3.3) and AdaMerging(++).

What is minimised is a :class:`Problem`; here too is when a fit ends, and how it goes on after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from emkit.alignment import losses, objectives
from emkit.alignment.calibration import Calibration
from emkit.alignment.losses import Alignment, Entropy
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.options import EngineOptions
from emkit.alignment.order import AUTHORS, pieces, tasks_in
from emkit.alignment.placement import Placement, place
from emkit.alignment.variable import Optimiser, Variable, authors_sign
from emkit.alignment.weighting import Weighting
from emkit.backbones.base import Backbone
from emkit.coefficients import Coefficients
from emkit.determinism import deterministic
from emkit.errors import UserError
from emkit.files import sha256_json
from emkit.progress import report
from emkit.sealed import read_value, write_value
from emkit.task_vectors import TaskVectors

TOLD = 10_000  # coefficients that every step of a history tells of: of rows there may be millions
FEW_STATES = 8  # where there are more than TOLD coefficients, whose state takes a while to write
STATES = 50  # how often in a fit its state is written at least


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """γ R(α) of Eq. 3: ``initial`` ᾱ_k of each expert, ``count`` L or B, ``kind`` of :func:`objectives.regulariser`."""

    gamma: float
    initial: Mapping[str, float]
    count: float
    kind: str = "paper"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a fit minimises: an objective of the merged model on calibration samples, and the penalty (Eq. 3).

    ``model`` is the base in the dtype to compute in; a fit overwrites its merged weights. ``order``: whose order and
    weights the samples have (:mod:`emkit.alignment.order`). ``weighting``: what the objective's β is at each step,
    where a rule says so.
    """

    backbone: Backbone
    model: torch.nn.Module
    task_vectors: TaskVectors | Placement
    calibration: Calibration
    objective: Alignment | Entropy
    penalty: Penalty
    order: str = "tasks"
    weighting: Weighting | None = None

    def at(self, history: Sequence[Mapping[str, Any]]) -> Problem:
        """The problem with the β of the step after ``history``."""
        if self.weighting is None:
            return self
        return replace(self, objective=replace(self.objective, beta=self.weighting.beta(history)))

    def measured(
        self, coefficients: Coefficients, engine: EngineOptions, calibration: Calibration | None = None
    ) -> dict[str, dict[str, float]]:
        """Every task's terms at ``coefficients``, over all its samples or those of another ``calibration``."""
        samples, placement = calibration or self.calibration, self.task_vectors
        merged = MergedModel(self.model, placement, coefficients, self.backbone.parameter_name)
        try:
            return losses.measured(
                self.backbone,
                self.model,
                pieces(samples, "tasks", "all", 0, 0),
                samples.hidden_layer,
                self.objective,
                tokens=engine.micro_tokens,
            )
        finally:
            merged.close()

    def losses(
        self,
        step: int,
        batch: int | float | str = "all",
        seed: int = 0,
        engine: EngineOptions | None = None,
        before_last: Callable[[], None] = lambda: None,
    ) -> dict[str, dict[str, float]]:
        """One step's losses of every task (E over samples of the mean over positions), with backward passes."""
        engine = engine or EngineOptions()
        found = losses.backward(
            self.backbone,
            self.model,
            pieces(self.calibration, self.order, batch, step, seed),
            self.calibration.hidden_layer,
            self.objective,
            tokens=engine.micro_tokens,
            checkpointing=engine.checkpointing,
            before_last=before_last,
        )
        return {task: found[task] for task in self.calibration.tasks if task in found}

    def regulariser(self, variable: Variable, step: int) -> tuple[float, torch.Tensor]:
        """R at the coefficients of a step and its subgradient [n]."""
        experts, tasks = len(self.penalty.initial), tasks_in(self.calibration, self.order, step)
        value, slope = objectives.regulariser(
            variable.alpha(), variable.anchor, experts, self.penalty.count, self.penalty.kind, tasks, variable.side()
        )
        return float(value), slope

    def variable(self, start: Coefficients, parameterisation: str, optimiser: Optimiser) -> Variable:
        """What is trained, at ``start``."""
        owners, device = start.flat_experts(), next(self.model.parameters()).device
        initial = np.array([self.penalty.initial[name] for name in start.experts])
        at_rest = authors_sign(initial.tolist(), device)[owners] if self.order in AUTHORS else None
        return Variable(start, parameterisation, optimiser, initial[owners], device, at_rest)

    @property
    def identity(self) -> dict:
        """What a state file of another fit may differ in, models and samples aside."""
        return {"objective": repr(self.objective), "penalty": repr(self.penalty), "order": self.order}


@dataclass(frozen=True)
class Fit:
    """``coefficients`` after the last step; ``history``: losses and coefficients before each step."""

    coefficients: Coefficients
    history: list[dict]


def fit(
    problem: Problem,
    *,
    start: Coefficients,
    optimiser: Optimiser,
    parameterisation: str = "plain",
    seed: int = 0,
    engine: EngineOptions | None = None,
    state: Path | None = None,
    progress: bool = False,
) -> Fit:
    """Minimise Σ_k β_k (L_hid^(k) + L_logit^(k)) + γ R(α) (Eq. 3), or Σ_k H^(k), over the trainable coefficients.

    ``start``: the coefficients to begin with; ``parameterisation``: what is trained (:class:`Variable`). With
    ``state``, a file is written after every step (after every few of a long fit) and a killed fit goes on from it to
    the identical end, since kernels are deterministic. A step's samples depend on ``seed`` and the step only.
    ``engine`` says what the machine may give. ``UserError`` when the loss is not finite, and on a GPU for a model with
    an operation that has no deterministic kernel.
    """
    engine = engine or EngineOptions()
    variable = problem.variable(start, parameterisation, optimiser)
    stated = {"start": start.to_json(), "seed": seed, "optimiser": repr(optimiser), "trained": parameterisation}
    identity = sha256_json(stated | problem.identity | {"engine": engine.identity})
    history = _resume(variable, state, identity)
    vectors, steps = problem.task_vectors, optimiser.steps
    kept_every = -(-steps // (STATES if len(variable.w) <= TOLD else FEW_STATES))
    placement = vectors if isinstance(vectors, Placement) else place(vectors, problem.model, engine)
    merged = MergedModel(problem.model, placement, _coefficients(start, variable), problem.backbone.parameter_name)
    try:
        with (
            deterministic(strict=variable.w.device.type == "cuda"),
            tqdm(total=steps, initial=len(history), desc="fit", unit="step", disable=not progress) as bar,
        ):
            for step in range(len(history), steps):
                report("fit step", step, steps)
                history.append(_step(problem.at(history), merged, variable, start, step, seed, engine))
                if state is not None and len(history) % kept_every == 0:
                    write_value(state, {"identity": identity, "history": history, **variable.snapshot()})
                bar.set_postfix(loss=f"{history[-1]['loss']:.4f}", refresh=False)
                bar.update()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        device = variable.w.device
        raise UserError(f"this model cannot be fitted on {device} to the same bits each time: {error}") from error
    finally:
        merged.close()
    return Fit(_coefficients(start, variable), history)


def _step(
    problem: Problem,
    merged: MergedModel,
    variable: Variable,
    start: Coefficients,
    step: int,
    seed: int,
    engine: EngineOptions,
) -> dict:
    """One optimiser step; its line of the history.

    Where nothing in the update needs all gradients at once, each tensor is updated within the backward, while its
    task vectors are at hand; a bound on the gradient's norm needs them all, and so a second reading.
    """
    gamma, optimiser = problem.penalty.gamma, variable.settings
    before = start.with_flat(variable.alpha().cpu().numpy())
    r, slope = problem.regulariser(variable, step)
    variable.begin(step, gamma * slope)

    def before_last() -> None:
        if optimiser.clip is None:
            merged.update_on_arrival(variable.descend)

    found = problem.losses(step, optimiser.batch, seed, engine, before_last)
    if optimiser.clip is None:
        merged.finish_updates()
    else:
        merged.rewrite(variable.descend_clipped(merged.gradient()))
    total = objectives.objective(found, problem.objective.beta, gamma, r)
    if not math.isfinite(total):
        raise UserError(f"the fit diverged at step {step + 1} (loss {total}): lower optimiser.lr")
    entry = _entry(step, total, r, found, before, variable.rate)
    return entry if problem.weighting is None else {**entry, "beta": dict(problem.objective.beta)}


def _coefficients(start: Coefficients, variable: Variable) -> Coefficients:
    return start.with_flat(variable.alpha().cpu().numpy())


def _resume(variable: Variable, state: Path | None, identity: str) -> list[dict]:
    """Take up the state that an interrupted fit of the same ``identity`` left, and return its history."""
    found = None if state is None else read_value(state)
    if found is None or found["identity"] != identity:
        return []
    variable.restore(found)
    return found["history"]


def _entry(step: int, total: float, penalty: float, losses: dict, coefficients: Coefficients, rate: float) -> dict:
    """One line of the history: the losses at, and the coefficients before, a step.

    ``alpha`` holds the trained coefficients in the order of :meth:`Coefficients.flat`, unless there are more than
    :data:`TOLD` of them.
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
        **({"alpha": flat.tolist()} if len(flat) <= TOLD else {}),
        "learning_rate": rate,
    }
