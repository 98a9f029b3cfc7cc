"""The trained coefficients: how α comes from what is trained, its regulariser, and the optimiser, part by part.

Everything here works on one slice of the flat vector at a time, so that a tensor can be updated while its task vectors
are at hand. Adam and AdamW are written out for that (Kingma and Ba, 2015; Loshchilov and Hutter, 2019) and agree with
``torch.optim``'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from emkit.coefficients import Coefficients
from emkit.errors import UserError

PARAMETERISATIONS = ("plain", "sigmoid")
SCHEDULES = ("constant", "cosine", "cosine_restarts")
OPTIMISERS = ("adamw", "adam")
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Optimiser:
    """``adamw``'s or ``adam``'s settings (they differ in where weight decay enters).

    ``batch`` is the number of samples of each task in one step (``all``: every sample); below 1, the part of one: a
    sample that is a pack of many short questions is dealt into that many parts, which take turns. ``clip`` bounds the
    norm of the whole coefficient gradient (null: no bound). ``cosine`` falls from ``lr`` to 0 over ``steps``.
    ``cosine_restarts`` falls to ``floor`` · ``lr`` and starts again, first after ``period`` steps and then after
    ``growth`` times as many as the time before: ``torch``'s CosineAnnealingWarmRestarts with T_0, T_mult and eta_min,
    whose defaults here are what the authors' code gives them.
    """

    name: str = "adamw"
    lr: float = 0.02
    weight_decay: float = 0.0
    steps: int = 50
    schedule: str = "cosine"
    batch: int | float | str = "all"
    clip: float | None = None
    period: int = 50
    growth: int = 2
    floor: float = 0.1


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
    """The trained vector w with its moments, and α as a function of it (float64, on ``device``).

    ``pull`` is the weight of Σ |α − ᾱ| in the objective, γ R(α) being that sum times it; ``anchor`` ᾱ [n]. The sum's
    subgradient is 0 where α = ᾱ, and sign(α − ᾱ) elsewhere. It is taken as sign(w − w̄), w̄ being ᾱ's w, because
    sigmoid(logit(ᾱ)) is rounded to one side of ᾱ or the other. ``at_rest`` [n] is what stands in
    place of that 0 (:func:`authors_sign`).
    """

    def __init__(
        self,
        start: Coefficients,
        parameterisation: str,
        settings: Optimiser,
        anchor: np.ndarray,
        clamp: bool = False,
        device: torch.device | str = "cpu",
        at_rest: np.ndarray | None = None,
    ):
        flat = start.flat()
        if not len(flat):
            raise UserError("there is no coefficient to learn: every layer got 0 chunks; raise the budget")
        self.sigmoid, self.settings = parameterisation == "sigmoid", settings
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
        self.clamp = clamp and not self.sigmoid
        self.pull, self.step, self.rate = 0.0, 0, 0.0

    def alpha(self, where: slice = slice(None)) -> torch.Tensor:
        """α of a slice: a new tensor."""
        return torch.sigmoid(self.w[where]) if self.sigmoid else self.w[where].clone()

    def begin(self, step: int, pull: float) -> None:
        """What holds for every :meth:`descend` of a step (from 0)."""
        self.step, self.pull, self.rate = step, pull, learning_rate(self.settings, step)

    def descend(self, where: slice, gradient: torch.Tensor) -> torch.Tensor:
        """One optimiser step of a slice by ∂loss/∂α of it; its new α."""
        return self.apply(where, self.whole_gradient(where, gradient))

    def whole_gradient(self, where: slice, gradient: torch.Tensor) -> torch.Tensor:
        """∂(loss + γ R)/∂w from ∂loss/∂α."""
        alpha = self.alpha(where)
        gradient = gradient + self.pull * self.away(where)
        return gradient * (alpha * (1 - alpha)) if self.sigmoid else gradient

    def away(self, where: slice) -> torch.Tensor:
        """The subgradient of Σ |α − ᾱ|: on which side of ᾱ each coefficient is."""
        w, rest = self.w[where], self.rest[where]
        return torch.where(w == rest, self.at_rest[where], torch.sign(w - rest))

    def descend_clipped(self, gradient: torch.Tensor) -> torch.Tensor:
        """One step of the whole vector, the norm of its gradient bounded as ``torch.nn.utils.clip_grad_norm_`` does."""
        gradient = self.whole_gradient(slice(None), gradient)
        factor = torch.clamp(self.settings.clip / (torch.linalg.vector_norm(gradient) + 1e-6), max=1.0)
        return self.apply(slice(None), gradient * factor)

    def apply(self, where: slice, gradient: torch.Tensor) -> torch.Tensor:
        """Adam's or AdamW's step of a slice."""
        w, first, second, settings = self.w[where], self.first[where], self.second[where], self.settings
        if settings.name == "adam":
            gradient = gradient + settings.weight_decay * w
        else:
            w.mul_(1 - self.rate * settings.weight_decay)
        first.mul_(BETAS[0]).add_(gradient * (1 - BETAS[0]))
        second.mul_(BETAS[1]).add_(gradient * gradient * (1 - BETAS[1]))
        one, two = (1 - beta ** (self.step + 1) for beta in BETAS)
        w.sub_(first * (self.rate / one) / (second.sqrt() / math.sqrt(two) + EPSILON))
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
