"""WUDI Merging and what it shares with WUDI v2: a quadratic interference objective, in a form whose cost has no K."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

SOLVERS = ("adam", "closed_form")


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
        if optimiser == "adam":
            stepper = torch.optim.Adam(parts, lr=lr, foreach=False)
        else:
            stepper = torch.optim.SGD(parts, lr=lr, momentum=0.9, foreach=False)
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
    taus: Iterable[torch.Tensor], solver: str = "adam", lr: float = 1e-5, iterations: int = 300
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
    return (None if c is None else Quadratic(c, d)), total
