"""Ridge with activations: Ridge whose C_k knows what goes into a matrix on expert k's own samples. Not in the paper.

M = Σ_k P_k, P_k = τ_k (C_k + ρ λ I) (Σ_j C_j + ρ I)⁻¹ as in ``ridge``, with

    C_k = a_k A_k + w t_k T_k,   A_k = n X_kᵀX_k / tr(X_kᵀX_k),   T_k = n τ_kᵀτ_k / ‖τ_k‖²

X_k [N, n] being the matrix's inputs while expert k runs on its calibration samples (RegMean's statistics, Jin et al.,
2023), T_k what stands for inputs that five samples do not show, a_k ∝ 1 / ‖τ_k A_k^½‖² and t_k ∝ 1 / ‖τ_k T_k^½‖² of
mean 1 over the experts of a matrix: every expert's *relative* output error counts alike. Matrices whose inputs are not
known (no linear layers) have C_k = t_k T_k. Other tensors than matrices: θ_base + mean τ_k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from emkit.alignment.inputs import Inputs
from emkit.config import option
from emkit.merging import Context, Matrices, Merge, Taus, matrices
from emkit.methods import method
from emkit.methods.ridge import Ridge, WeightMoments, accurate, divider, of_mean_one, whole

NOTHING = 1e-6  # of the largest error, a square: task vectors a thousandth as large


def ridge_activations(
    taus: torch.Tensor, inputs: Sequence[torch.Tensor], rho: float = 0.3, pull: float = 1.0, weights: float = 0.25
) -> torch.Tensor:
    """Σ_k τ_k (C_k + ρ λ I) (Σ_j C_j + ρ I)⁻¹ with C_k of the inputs X_k, K × [N_k, n], and of τ [K, m, n] → [m, n]."""
    moments = ActivationMoments(taus, [x.T @ x for x in inputs], weights)
    return whole(taus, moments, rho, pull)


class RelativeMoments:
    """C_k = t_k T_k [n, n] of each of K matrices τ_k [m, n] in turn: what holds where no inputs are known."""

    def __init__(self, taus: Matrices):
        self.taus = taus
        self.factors = relative([error(tau, t) for tau, t in zip(taus, WeightMoments(taus), strict=True)])

    def __len__(self) -> int:
        return len(self.taus)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (factor * t for factor, t in zip(self.factors, WeightMoments(self.taus), strict=True))


class ActivationMoments:
    """C_k = a_k A_k + ``weights`` t_k T_k [n, n] of each of K matrices τ_k [m, n] in turn; ``inputs`` gives their XᵀX,
    as often as it is gone through."""

    def __init__(self, taus: Matrices, inputs: Iterable[torch.Tensor], weights: float):
        self.taus, self.inputs, self.weights = taus, inputs, weights
        self.factors = relative([error(tau, of_mean_one(x)) for tau, x in zip(taus, inputs, strict=True)])
        self.of_weights = RelativeMoments(taus).factors

    def __len__(self) -> int:
        return len(self.taus)

    def __iter__(self) -> Iterator[torch.Tensor]:
        each = zip(self.inputs, WeightMoments(self.taus), self.factors, self.of_weights, strict=True)
        for x, t, of_inputs, of_weights in each:
            yield of_inputs * of_mean_one(x) + self.weights * of_weights * t


def error(tau: torch.Tensor, moments: torch.Tensor) -> float:
    """‖τ C^½‖² = tr(τ C τᵀ), the square of what leaving τ [m, n] out does to outputs over inputs of moments C."""
    return float(((tau @ moments) * tau).sum())


def relative(errors: Sequence[float]) -> list[float]:
    """1 / error, scaled to a mean of 1 over the experts; those with an error below :data:`NOTHING` of the largest, who
    differ from the base by no more than rounding, have the weight 0 and do not count."""
    least = NOTHING * max(errors)
    inverse = [1 / e if e > least else 0.0 for e in errors]
    there = sum(value > 0 for value in inverse)
    return [value * there / sum(inverse) if there else 0.0 for value in inverse]


class MomentsOfInputs:
    """The C_k of a tensor from what was recorded of its inputs."""

    def __init__(self, inputs: Inputs, experts: Sequence[str], weights: float):
        self.inputs, self.experts, self.weights = inputs, experts, weights

    @property
    def identity(self) -> dict:
        """What the moments depend on besides the task vectors."""
        return {"weights": self.weights, "inputs": dict(self.inputs.keys)}

    def __call__(self, name: str, taus: Matrices) -> Matrices:
        if not all(self.inputs.known(expert, name) for expert in self.experts):
            return RelativeMoments(taus)
        return ActivationMoments(taus, _Read(self.inputs, self.experts, name, next(iter(taus))), self.weights)


class _Read:
    """XᵀX of each expert for one tensor, read when it is its turn, with the dtype and on the device of ``like``."""

    def __init__(self, inputs: Inputs, experts: Sequence[str], name: str, like: torch.Tensor):
        self.inputs, self.experts, self.name = inputs, experts, name
        self.dtype, self.device = like.dtype, like.device

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.inputs.moments(expert, self.name, self.dtype).to(self.device) for expert in self.experts)


class RidgeActivations(Ridge):
    """Options of Ridge with activations."""

    rho: float = option(
        0.3,
        "ρ, the weight of the pull towards λ Σ τ",
        "ours: chosen in a trial on held-out calibration samples of two miniatures",
        ge=0,
    )
    weights: float = option(
        0.25,
        "w, the share of T_k in C_k",
        "ours: chosen in a trial on held-out calibration samples of two miniatures",
        ge=0,
    )


@method(
    "ridge_activations",
    "calibration",
    options=RidgeActivations,
    squares=6,
    parts=(ridge_activations, ActivationMoments, divider),
)
def merge(ctx: Context[RidgeActivations]) -> Merge:
    options, learner = ctx.options, ctx.learner()
    calibration = learner.calibration("middle", "response")
    moments = MomentsOfInputs(learner.inputs(calibration), ctx.task_vectors.experts, options.weights)

    def combined(taus: Taus) -> torch.Tensor:
        own = accurate(taus, options.rho)
        return whole(own, moments(taus.name, own), options.rho, options.pull).float()

    made = matrices(ctx, combined, 1.0)
    return replace(made, scale=None, calibration=calibration.described, identity=moments.identity)
