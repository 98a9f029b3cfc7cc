"""That a fit does what the notebook's formulas say: its log against the losses, its gradient against a nudge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from emkit.alignment import losses, objectives
from emkit.alignment.losses import Alignment
from emkit.alignment.order import pieces
from emkit.coefficients import Coefficients
from eval.lessons.alignment import TOKENS, Seen, seen, terms
from eval.lessons.fits import Fitted, Setup


def check(setup: Setup, fitted: Fitted, at_start: Mapping[str, Seen]) -> pd.DataFrame:
    """Eq. 1 and 2 as computed here beside what the fit logged at its step 0, by task and term, with the difference."""
    options, logged = fitted.options, fitted.history.stages[0]["history"][0]["tasks"]
    lines = []
    for task, part in at_start.items():
        ours = terms(part, options.temperature, options.hidden_loss, options.hidden_weight)
        for term, value in ours.items():
            line = {"task": task, "term": term, "computed here": value, "logged at step 0": logged[task][term]}
            lines.append({**line, "relative difference": abs(value / logged[task][term] - 1)})
    return pd.DataFrame(lines).set_index(["task", "term"])


def slopes(setup: Setup, names: Sequence[str], nudge: float = 0.05) -> pd.DataFrame:
    """∂(Eq. 3 without R)/∂α of some tensors for every expert, twice: by the chain rule, which the fit uses,
    ⟨∂loss/∂W, τ_k⟩, and by setting α to ᾱ ± ``nudge`` and looking at the loss. At α = ᾱ, on the fit's first samples.
    """
    live, lines = setup.zoo.live, []
    for name, gradient in _gradients(setup, names).items():
        for k, expert in enumerate(setup.start.experts):
            chain = float((gradient * live.vectors.tau(name)[k].to(gradient)).sum())
            around = []
            for sign in (-1, 1):
                alpha = setup.start.with_flat(setup.start.flat())  # a copy
                alpha.values[name][k] += sign * nudge
                around.append(_loss(setup, alpha))
            nudged = (around[1] - around[0]) / (2 * nudge)
            lines.append({"tensor": name, "expert": expert, "chain rule": chain, "nudged": nudged})
    return pd.DataFrame(lines)


def _gradients(setup: Setup, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """∂loss/∂W of some tensors at α = ᾱ, by an ordinary backward pass."""
    live, options, calibration = setup.zoo.live.set(setup.start), setup.options, setup.calibration
    weights: dict[str, Any] = {"beta": options.given_beta, "hidden_weight": options.hidden_weight}
    goal = Alignment(temperature=options.temperature, hidden_loss=options.hidden_loss, **weights)
    at = pieces(calibration, "tasks", options.optimiser.batch, 0, setup.learner.seed)
    parameters, found = dict(live.model.named_parameters()), {}
    live.model.requires_grad_(False)
    for name in names:
        parameters[live.backbone.parameter_name(name)].requires_grad_(True)
    losses.backward(live.backbone, live.model, at, calibration.hidden_layer, goal, tokens=TOKENS)
    for name in names:
        parameter = parameters[live.backbone.parameter_name(name)]
        found[name], parameter.grad = parameter.grad, None
    live.model.requires_grad_(False)
    return found


def _loss(setup: Setup, alpha: Coefficients) -> float:
    """Eq. 3 without R on the fit's first samples."""
    options, live = setup.options, setup.zoo.live.set(alpha)
    found = seen(live, setup.calibration, options.optimiser.batch, setup.learner.seed)
    given = options.temperature, options.hidden_loss, options.hidden_weight
    return objectives.objective({task: terms(part, *given) for task, part in found.items()}, options.given_beta)
