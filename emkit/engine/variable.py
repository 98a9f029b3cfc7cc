"""The trained coefficients: how α comes from what is trained, its regulariser, and the optimiser, part by part.

Everything here works on one slice of the flat vector at a time, so that a tensor can be updated while its task vectors
are at hand. Adam and AdamW are written out for that (Kingma and Ba, 2015; Loshchilov and Hutter, 2019) and agree with
``torch.optim``'s.
"""

from __future__ import annotations

import math
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
    norm of the whole coefficient gradient (null: no bound). ``cosine`` falls from ``lr`` to 0 over ``steps``;
    ``cosine_restarts`` starts again every ``period`` steps, as the authors' code does.
    """

    name: str = "adamw"
    lr: float = 0.02
    weight_decay: float = 0.0
    steps: int = 50
    schedule: str = "cosine"
    batch: int | float | str = "all"
    clip: float | None = None
    period: int = 50


def learning_rate(settings: Optimiser, step: int) -> float:
    """The learning rate of a step (from 0)."""
    if settings.schedule == "constant":
        return settings.lr
    period = settings.steps if settings.schedule == "cosine" else settings.period
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step % period) / period))


class Variable:
    """The trained vector w with its moments, and α as a function of it (float64, on ``device``).

    ``pull`` is the weight of Σ |α − ᾱ| in the objective, γ R(α) being that sum times it; ``anchor`` ᾱ [n].
    """

    def __init__(
        self,
        start: Coefficients,
        parameterisation: str,
        settings: Optimiser,
        anchor: np.ndarray,
        clamp: bool = False,
        device: torch.device | str = "cpu",
    ):
        flat = start.flat()
        if not len(flat):
            raise UserError("there is no coefficient to learn: every layer got 0 chunks; raise the budget")
        self.sigmoid, self.settings = parameterisation == "sigmoid", settings
        if self.sigmoid and not ((flat > 0) & (flat < 1)).all():
            raise UserError("parameterisation sigmoid needs initial coefficients between 0 and 1, both excluded")
        w = np.log(flat / (1 - flat)) if self.sigmoid else flat
        self.w = torch.tensor(w, dtype=torch.float64, device=device)
        self.first, self.second = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.anchor = torch.tensor(anchor, dtype=torch.float64, device=device)
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
        gradient = gradient + self.pull * torch.sign(alpha - self.anchor[where])
        return gradient * (alpha * (1 - alpha)) if self.sigmoid else gradient

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
