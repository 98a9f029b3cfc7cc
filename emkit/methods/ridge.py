"""Ridge: the matrix M that keeps each expert's own directions, in closed form: θ_base + Σ_k P_k. Not in the paper.

WUDI's objective with a ridge towards its own start, which is one linear system a matrix:

    M = argmin Σ_k ‖(M − τ_k) C_k^½‖² + ρ ‖M − λ Σ_k τ_k‖² = Σ_k P_k
    P_k = τ_k (C_k + ρ λ I) (Σ_j C_j + ρ I)⁻¹

with C_k = n τ_kᵀτ_k / ‖τ_k‖², n the matrix's inputs, so that C_k has the mean eigenvalue 1 and ρ has no unit. It takes
no data, no iterations and no learning rate. Other tensors than matrices: θ_base + mean τ_k.

Derivation: the gradient in M is 2 Σ_k (M − τ_k) C_k + 2 ρ (M − λ Σ_k τ_k); where it is 0,
M (Σ_j C_j + ρ I) = Σ_k τ_k (C_k + ρ λ I), whose right side is a sum over experts, and so M is one of parts P_k.
ρ → ∞ gives λ Σ_k τ_k, which is Task Arithmetic; ρ = 0 the minimum of WUDI's own objective, whose C has eigenvalues over
many decades, which is why WUDI's authors stop early: ρ says that openly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import torch

from emkit.blocks import Block
from emkit.config import Settings, option
from emkit.errors import UserError
from emkit.merging import Context, Matrices, Merge, added, matrices
from emkit.methods import method
from emkit.task_vectors import TaskVectors, Transformed

FINE = 0.1  # ρ below which fp32 is too coarse: C's eigenvalues reach K n / rank


def ridge(taus: torch.Tensor, rho: float = 1.0, pull: float = 1.0) -> torch.Tensor:
    """Σ_k τ_k (C_k + ρ λ I) (Σ_j C_j + ρ I)⁻¹, C_k = n τ_kᵀτ_k / ‖τ_k‖², λ = ``pull``: [K, m, n] → [m, n]."""
    return ridge_parts(taus, rho, pull).sum(dim=0)


def ridge_parts(taus: torch.Tensor, rho: float = 1.0, pull: float = 1.0) -> torch.Tensor:
    """P_k, the part of the closed form that is expert k's: [K, m, n] → [K, m, n]."""
    return torch.stack(list(parts(taus, WeightMoments(taus), rho, pull)))


class WeightMoments:
    """C_k = n τ_kᵀτ_k / ‖τ_k‖² [n, n] of each of K matrices τ_k [m, n], one at a time; 0 for an all-zero τ_k."""

    def __init__(self, taus: Matrices):
        self.taus = taus

    def __len__(self) -> int:
        return len(self.taus)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (of_mean_one(tau.T @ tau) for tau in self.taus)


def of_mean_one(moments: torch.Tensor) -> torch.Tensor:
    """Second moments [n, n], scaled to the mean eigenvalue 1; those of nothing stay 0."""
    trace = moments.trace()
    return moments * (len(moments) / trace) if trace > 0 else torch.zeros_like(moments)


def accurate(taus: Matrices, rho: float) -> Matrices:
    """The same matrices, in float64 where ρ is below :data:`FINE`."""
    return taus if rho >= FINE else _Doubled(taus)


class _Doubled:
    """K matrices, each as float64 when it is its turn."""

    def __init__(self, taus: Matrices):
        self.taus = taus

    def __len__(self) -> int:
        return len(self.taus)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (tau.double() for tau in self.taus)


def parts(taus: Matrices, moments: Matrices, rho: float, pull: float) -> Iterator[torch.Tensor]:
    """P_k = τ_k (C_k + ρ λ I) (Σ_j C_j + ρ I)⁻¹ [m, n] of each expert in turn.

    ``taus`` gives K matrices τ_k [m, n], ``moments`` their C_k [n, n], symmetric and positive semidefinite; λ is
    ``pull``. All arithmetic in their dtype.
    """
    divided = divider(added(moments), rho)
    return (divided(tau @ c + rho * pull * tau) for tau, c in zip(taus, moments, strict=True))


def whole(taus: Matrices, moments: Matrices, rho: float, pull: float) -> torch.Tensor:
    """M = Σ_k P_k [m, n] of :func:`parts`, by one solution instead of K."""
    divided = divider(added(moments), rho)
    return divided(added(tau @ c + rho * pull * tau for tau, c in zip(taus, moments, strict=True)))


def divider(total: torch.Tensor, rho: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function D → D (C + ρ I)⁻¹, [m, n] → [m, n], for C = ``total`` [n, n]; with ρ = 0 its pseudoinverse.

    ``total`` is overwritten. ``UserError`` where ρ is lost in the rounding of C.
    """
    if rho == 0:
        inverse = torch.linalg.pinv(total.double(), hermitian=True)
        return lambda d: (d.double() @ inverse).to(d.dtype)
    total.diagonal().add_(rho)
    try:
        factor = torch.linalg.cholesky(total)
    except torch.linalg.LinAlgError as error:
        raise UserError(f"rho {rho:g} is too small for these task vectors: give a larger one, or 0") from error
    return lambda d: torch.cholesky_solve(d.T, factor).T.contiguous()


class Moments(Protocol):
    """The C_k of the matrices of one tensor, given its name and its τ_k."""

    def __call__(self, name: str, taus: Matrices) -> Matrices: ...


class Parts(Transformed):
    """Task vectors of which each matrix τ_k is replaced by its part P_k (:func:`parts`), others by τ_k / K.

    A part depends on the whole tensor of every expert, so those of one tensor are made together, on ``device``, and
    are K tensors of fp32 in memory as long as its blocks are asked for. ``identity`` says what decides them.
    """

    def __init__(
        self, inner: TaskVectors, moments: Moments, rho: float, pull: float, identity: dict, device: str = "cpu"
    ):
        super().__init__(inner, {"parts": {"rho": rho, "pull": pull, **identity}})
        self.moments, self.rho, self.pull, self.device = moments, rho, pull, device

    def transform(self, name: str, block: Block) -> Block:
        made = self._made(name, block(0, self.numel(name)))  # [K, numel]
        return lambda start, stop: made[:, start:stop].clone()

    def _made(self, name: str, taus: torch.Tensor) -> torch.Tensor:
        shape = self.base.info(name).shape
        if len(shape) != 2:
            return taus.div_(len(taus))
        own = accurate(taus.reshape(len(taus), *shape).to(self.device), self.rho)
        found = parts(own, self.moments(name, own), self.rho, self.pull)
        return torch.stack([part.float().cpu() for part in found]).flatten(1)


def weight_moments(name: str, taus: Matrices) -> WeightMoments:
    """C_k from the task vectors alone; ``name`` says nothing here."""
    return WeightMoments(taus)


def ridge_matrix(taus: Matrices, rho: float = 1.0, pull: float = 1.0) -> torch.Tensor:
    """:func:`ridge` of K matrices [m, n] that are read one at a time, three times each; returns [m, n].

    All arithmetic in their dtype, of ρ below :data:`FINE` in float64.
    """
    taus = accurate(taus, rho)
    return whole(taus, WeightMoments(taus), rho, pull)


class Ridge(Settings):
    """Options of Ridge."""

    rho: float = option(
        1.0,
        "ρ, the weight of the pull towards λ Σ τ: 0 is WUDI's own minimum, ∞ Task Arithmetic",
        "ours: chosen in a trial on held-out calibration samples of two miniatures",
        ge=0,
    )
    pull: float = option(1.0, "λ of the pull", "ours: WUDI's start is Σ τ")


@method("ridge", options=Ridge, squares=5, parts=(ridge, ridge_matrix, divider))
def merge(ctx: Context[Ridge]) -> Merge:
    rho, pull = ctx.options.rho, ctx.options.pull
    return replace(matrices(ctx, lambda taus: ridge_matrix(taus, rho, pull).float(), 1.0), scale=None)
