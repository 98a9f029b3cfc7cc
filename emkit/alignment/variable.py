"""The trained coefficients: how α comes from what is trained, and the optimiser, part by part.

Everything here works on one slice of the flat vector at a time, so that a tensor can be updated while its task vectors
are at hand: Adam and AdamW (Kingma and Ba, 2015; Loshchilov and Hutter, 2019) are ``torch.optim``'s functions, called
on slices of one state. The learning rate is a function of the step, so that a killed fit goes on at any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from emkit.coefficients import Coefficients
from emkit.config import Settings, option
from emkit.errors import UserError

_UPDATES = {"adamw": adamw, "adam": adam}


class Optimiser(Settings):
    """How a fit descends."""

    name: Literal["adamw", "adam"] = option("adamw", "they differ in where weight decay enters")
    lr: float = option(..., "the learning rate", ge=0)
    weight_decay: float = option(0.0, "the decay of what is trained", ge=0)
    steps: int = option(..., "how many steps", ge=1)
    schedule: Literal["constant", "cosine", "cosine_restarts"] = option(
        "cosine",
        "cosine falls from lr to 0 over the steps; cosine_restarts falls to floor · lr and starts again, first after "
        "period steps and then after growth times as many as the time before (torch's CosineAnnealingWarmRestarts)",
    )
    batch: Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=0.01, le=0.5)] | Literal["all"] = option(
        "all",
        "samples of each task in a step (all: every one); below 1, the part of one: a sample that is a pack of many "
        "short questions is dealt into that many parts, which take turns",
    )
    clip: Annotated[float, Field(ge=0)] | None = option(
        None, "bound of the norm of the whole coefficient gradient; null: none"
    )
    period: int = option(50, "steps before the first restart", "authors' code", ge=1)
    growth: int = option(2, "how much longer the period is after each restart", "authors' code", ge=1)
    floor: float = option(0.1, "what cosine_restarts falls to, in units of lr", "authors' code", ge=0, le=1)


def learning_rate(settings: Optimiser, step: int) -> float:
    """The learning rate of a step (from 0)."""
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * (step % settings.steps) / settings.steps))
    period = settings.period
    while step >= period:
        step, period = step - period, period * settings.growth
    least = settings.floor * settings.lr
    return least + (settings.lr - least) * 0.5 * (1 + math.cos(math.pi * step / period))


def _logit(values: np.ndarray) -> np.ndarray:
    """log(x / (1 − x)); −∞ for what is at most 0, ∞ for what is at least 1."""
    values = np.clip(values, 0, 1)
    with np.errstate(divide="ignore"):
        return np.log(values / (1 - values))


class Variable:
    """The trained vector w [n] with its moments, and α as a function of it (float64, on ``device``).

    ``plain`` trains α itself, as the paper writes it ("α ∈ ℝ"); ``clamped`` sets it back into [0, 1] after every step;
    ``sigmoid`` trains w with α = sigmoid(w), as the authors' code does, which keeps α in (0, 1) and slows it near both
    ends. ``anchor`` [n] is ᾱ. ``at_rest`` [n] stands in place of the regulariser's subgradient 0 where nothing has
    moved (:func:`authors_sign`).
    """

    def __init__(
        self,
        start: Coefficients,
        parameterisation: str,
        settings: Optimiser,
        anchor: np.ndarray,
        device: torch.device | str = "cpu",
        at_rest: np.ndarray | None = None,
    ):
        flat = start.flat()
        if not len(flat):
            raise UserError("there is no coefficient to learn: every layer got 0 chunks; raise the budget")
        self.sigmoid, self.clamp = parameterisation == "sigmoid", parameterisation == "clamped"
        self.settings = settings
        if self.sigmoid and not ((flat > 0) & (flat < 1)).all():
            raise UserError("parameterisation sigmoid needs initial coefficients between 0 and 1, both excluded")
        w, rest = (_logit(values) if self.sigmoid else values for values in (flat, np.asarray(anchor, dtype=float)))
        self.w = torch.tensor(w, dtype=torch.float64, device=device)
        self.first, self.second = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.anchor = torch.tensor(anchor, dtype=torch.float64, device=device)
        self.rest = torch.tensor(rest, dtype=torch.float64, device=device)
        self.at_rest = torch.zeros_like(self.w)
        if at_rest is not None:
            self.at_rest.copy_(torch.from_numpy(at_rest))
        self.rate, self.slope, self.taken = 0.0, torch.zeros_like(self.w), torch.tensor(0.0)

    def alpha(self, where: slice = slice(None)) -> torch.Tensor:
        """α of a slice: a new tensor."""
        return torch.sigmoid(self.w[where]) if self.sigmoid else self.w[where].clone()

    def side(self) -> torch.Tensor:
        """sign(α − ᾱ) [n], ``at_rest`` where α = ᾱ.

        It is taken as sign(w − w̄), w̄ being ᾱ's w, because sigmoid(logit(ᾱ)) is rounded to one side of ᾱ or the other.
        """
        return torch.where(self.w == self.rest, self.at_rest, torch.sign(self.w - self.rest))

    def begin(self, step: int, slope: torch.Tensor) -> None:
        """What holds for every :meth:`descend` of a step (from 0): ``slope`` [n] of γ R(α) in α."""
        self.slope, self.rate, self.taken = slope, learning_rate(self.settings, step), torch.tensor(float(step))

    def descend(self, where: slice, gradient: torch.Tensor) -> torch.Tensor:
        """One optimiser step of a slice by ∂loss/∂α of it; its new α."""
        return self.apply(where, self.whole_gradient(where, gradient))

    def whole_gradient(self, where: slice, gradient: torch.Tensor) -> torch.Tensor:
        """∂(loss + γ R)/∂w from ∂loss/∂α."""
        gradient = gradient + self.slope[where]
        if not self.sigmoid:
            return gradient
        alpha = self.alpha(where)
        return gradient * (alpha * (1 - alpha))

    def descend_clipped(self, gradient: torch.Tensor) -> torch.Tensor:
        """One step of the whole vector, the norm of its gradient bounded as ``torch.nn.utils.clip_grad_norm_`` does."""
        gradient = self.whole_gradient(slice(None), gradient)
        factor = torch.clamp(self.settings.clip / (torch.linalg.vector_norm(gradient) + 1e-6), max=1.0)
        return self.apply(slice(None), gradient * factor)

    def apply(self, where: slice, gradient: torch.Tensor) -> torch.Tensor:
        """Adam's or AdamW's step of a slice."""
        w = self.w[where]
        _UPDATES[self.settings.name](
            *([w], [gradient], [self.first[where]], [self.second[where]], [], [self.taken.clone()]),
            **{"foreach": False, "amsgrad": False, "maximize": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
            **{"lr": self.rate, "weight_decay": self.settings.weight_decay},
        )
        if self.clamp:
            w.clamp_(0, 1)
        return self.alpha(where)

    def snapshot(self) -> dict:
        """The state after a step, as JSON."""
        vectors = {"w": self.w, "first": self.first, "second": self.second}
        return {name: vector.tolist() for name, vector in vectors.items()}

    def restore(self, found: dict) -> None:
        """The inverse of :meth:`snapshot`."""
        for name, vector in (("w", self.w), ("first", self.first), ("second", self.second)):
            vector.copy_(torch.tensor(found[name], dtype=torch.float64))


def authors_sign(initial: Sequence[float], device: torch.device | str) -> np.ndarray:
    """sign(sigmoid(logit(ᾱ)) − ᾱ) of each expert in fp32, where the authors' trainer starts: −1, 0 or 1 by rounding.

    ``initial`` ᾱ [K]; the same operations on a tensor of the same shape on the same device as theirs (of one
    coefficient a tensor and expert; with many chunks their vectorised sigmoid may round otherwise). On a CPU it is
    0 at 0.1, 0.2 and 0.3, but −1 at 0.17, where their regulariser then pulls every coefficient up in the first step.
    This is their rounding reproduced, not a meaning.
    """
    anchor = torch.tensor(initial, dtype=torch.float32, device=device)
    w = torch.logit(anchor).unsqueeze(-1)
    return torch.sign(torch.sigmoid(w) - anchor.unsqueeze(-1)).squeeze(-1).double().cpu().numpy()
