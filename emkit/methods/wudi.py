"""WUDI Merging: θ_base + λ M of every matrix, M minimising the interference with each τ_i (Cheng et al., 2025).

Other tensors than matrices: θ_base + λ · mean τ_k. The objective is quadratic, and stands here also in a form whose
cost has no K, which WUDI v2 shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from emkit.config import Settings, option
from emkit.merging import Context, Merge, matrices
from emkit.methods import method

Solver = Literal["adam", "closed_form"]


def wudi(taus: torch.Tensor, lr: float = 1e-5, iterations: int = 300) -> torch.Tensor:
    """min_M Σ_i ‖(M − τ_i) τ_iᵀ‖² / ‖τ_i‖² by Adam from M = Σ_i τ_i, as its authors run it: [K, m, n] → [m, n]."""
    taus = taus[taus.flatten(1).any(dim=1)]  # of an expert that is the base the term is 0/0
    merged = torch.nn.Parameter(taus.sum(dim=0))
    return descend(merged, taus, taus, taus, torch.optim.Adam([merged], lr=lr), iterations)


def descend(
    merged: torch.nn.Parameter,
    targets: torch.Tensor,
    factors: torch.Tensor,
    taus: torch.Tensor,
    optimiser: torch.optim.Optimizer,
    iterations: int,
) -> torch.Tensor:
    """M [m, n] after some steps down Σ_i ‖(M − T_i) L_iᵀ‖² / ‖τ_i‖², T [K, m, n], L [K, r, n] and τ [K, m, n]."""
    for _ in range(iterations):
        optimiser.zero_grad()
        residuals = (merged - targets) @ factors.transpose(1, 2)  # [K, m, r]
        loss = (residuals.square().sum(dim=(1, 2)) / taus.square().sum(dim=(1, 2))).sum()
        loss.backward()
        optimiser.step()
    return merged.detach()


@dataclass(frozen=True)
class Quadratic:
    """Σ_i ‖(M − T_i) L_iᵀ‖² / ‖τ_i‖² as a function of M, up to a constant: tr(M C Mᵀ) − 2 tr(M Dᵀ),
    gradient 2 (M C − D).

    ``c`` = Σ_i L_iᵀL_i / ‖τ_i‖² [n, n] and ``d`` = Σ_i T_i L_iᵀL_i / ‖τ_i‖² [m, n] are all that it needs of the
    experts, so a step costs one product M C whatever K is; the direct form costs 2K products with τ_i.
    """

    c: torch.Tensor
    d: torch.Tensor

    def minimise(self, m: torch.Tensor, optimiser: str, lr: float, iterations: int) -> torch.Tensor:
        """M after ``iterations`` steps of ``adam`` or ``sgd`` (momentum 0.9) from ``m``, in its dtype."""
        variable, gradient = m.clone(), torch.empty_like(m)
        double_c, double_d = 2 * self.c, 2 * self.d  # exactly, so 2 (M C − D) costs one pass less
        parts = _in_rows(variable)
        for part, rows in zip(parts, gradient.split(parts[0].shape[0]), strict=True):
            part.grad = rows
        stepper: torch.optim.Optimizer = torch.optim.SGD(parts, lr=lr, momentum=0.9, foreach=False)
        if optimiser == "adam":
            stepper = torch.optim.Adam(parts, lr=lr, foreach=False)
        with torch.no_grad():
            for _ in range(iterations):
                torch.mm(variable, double_c, out=gradient).sub_(double_d)
                stepper.step()
        return variable

    def minimum(self) -> torch.Tensor:
        """D C⁺ in float64: of all minima the one in the span of the τ_i's rows, to which gradient descent from Σ τ_i
        leads (that start lies in the span already, and no gradient leaves it)."""
        c, d = self.c.double(), self.d.double()
        return (d @ torch.linalg.pinv(c, hermitian=True)).to(self.d.dtype)


def _in_rows(matrix: torch.Tensor) -> list[torch.nn.Parameter]:
    """The matrix as parameters over its own memory, on a CPU so few rows each that an optimiser's buffers for them fit
    a core's cache; optimisers work entry by entry, so the result is that of the whole."""
    rows = max(matrix.shape[0], 1)
    if matrix.device.type == "cpu":
        rows = max(2**17 // max(matrix.shape[1], 1) // 64 * 64, 64)
    return [torch.nn.Parameter(part) for part in matrix.split(rows)]


def wudi_matrix(
    taus: Iterable[torch.Tensor], solver: Solver = "adam", lr: float = 1e-5, iterations: int = 300
) -> torch.Tensor:
    """argmin_M Σ_i ‖(M − τ_i) τ_iᵀ‖² / ‖τ_i‖², approached from M = Σ_i τ_i (Cheng et al., 2025).

    ``taus`` gives K matrices [m, n], taken one at a time, all arithmetic in their dtype; returns [m, n].

    ``adam`` takes ``iterations`` steps at rate ``lr``, as the authors do; with few steps that is an early stop, not
    the minimum. An entry whose gradient stays the same moves by ``lr`` a step, 0.003 in 300 steps of 1e-5; step t may
    be longer, up to ``lr`` · (1 − β₁)/(1 − β₁ᵗ) · √((1 − β₂ᵗ)/(1 − β₂) · Σ_{j<t} (β₁²/β₂)ʲ) by Cauchy–Schwarz, which
    grows from ``lr`` to 3.7 ``lr`` at step 300 and adds up to 0.0078: no entry moves further than that, and few as
    far. ``closed_form`` is the minimum itself. An all-zero τ_i, whose term is 0/0, is left out.
    """
    quadratic, total = _quadratic(taus)
    if quadratic is None:
        return total
    if solver == "closed_form":
        return quadratic.minimum()
    return quadratic.minimise(total, "adam", lr, iterations)


def _quadratic(taus: Iterable[torch.Tensor]) -> tuple[Quadratic | None, torch.Tensor]:
    """WUDI's objective (T_i = L_i = τ_i), None where every τ_i is 0, and Σ_i τ_i."""
    c = d = total = None
    for tau in taus:
        total = tau.clone() if total is None else total.add_(tau)
        square = tau.square().sum()
        if square == 0:
            continue
        gram = tau.T @ tau / square
        c = gram if c is None else c + gram
        d = tau @ gram if d is None else d.add_(tau @ gram)
    assert total is not None  # K is at least 1
    return (None if c is None or d is None else Quadratic(c, d)), total


ITERATIONS = option(300, "steps", "300 in the code of both WUDI versions' authors and the paper's", ge=0)
FIXED_SCALE = option(1.0, "λ", "its authors: 1")


class Wudi(Settings):
    """Options of WUDI Merging."""

    solver: Solver = option(
        "adam",
        "adam: the authors' early-stopped optimisation; closed_form: the minimum of their objective, which does not "
        "depend on lr and iterations",
        "original: it is what the published scores are of",
    )
    lr: float = option(
        1e-5,
        "Adam's rate. It is in the weights' own units, so models with larger task vectors need a larger one to get as "
        "far",
        "its authors: 1e-5",
        ge=0,
    )
    iterations: int = ITERATIONS
    scale: float = FIXED_SCALE


@method("wudi", options=Wudi, parts=(wudi, wudi_matrix))
def merge(ctx: Context[Wudi]) -> Merge:
    solver, lr, iterations = ctx.options.solver, ctx.options.lr, ctx.options.iterations
    return matrices(ctx, lambda taus: wudi_matrix(taus, solver, lr, iterations), ctx.options.scale)
