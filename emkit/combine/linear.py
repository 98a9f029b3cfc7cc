"""Linear merging, θ_base + Σ_k α_k τ_k, with one coefficient per tensor or per chunk of it (Eq. 5)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from emkit.coefficients import chunk_bounds


def merge_tensor(base: torch.Tensor, tau: Iterable[torch.Tensor], coefficients: np.ndarray) -> torch.Tensor:
    """θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} for task vectors that are given as such (Eq. 5).

    ``base`` [*shape] of any floating dtype, ``tau`` K tensors of that shape, ``coefficients`` [K, m] for m contiguous
    chunks of the flattened tensor. Sums in fp32 (in float64 for a float64 base), rounded once to the base's dtype; a
    coefficient of exactly 0 contributes nothing, so all-zero coefficients return the base bit for bit.
    """
    weights = np.concatenate([np.ones((1, coefficients.shape[1])), coefficients])
    return _weighted_sum([base, *tau], weights)


def merge_experts(base: torch.Tensor, experts: Sequence[torch.Tensor], coefficients: np.ndarray) -> torch.Tensor:
    """The same merge from the experts themselves: (1 − Σ_k α_k) θ_base + Σ_k α_k θ_k.

    Algebraically Eq. 5, and exact where exactness matters. ``θ_base + (θ_k − θ_base)`` in floating point is not θ_k
    when the two are far apart in magnitude (1 + (2⁻³⁰ − 1) is 0 in fp32); here one expert with α = 1 has the weights
    (0, 1), terms with weight 0 are left out, and the sum is θ_k itself, down to the sign of a zero. α = 0 gives the
    base in the same way. The price is a few roundings of fp32 (2⁻²⁴ relative to the weights), far below the one
    rounding to a 16-bit dtype.

    ``base`` [*shape], ``experts`` K tensors of that shape, ``coefficients`` [K, m] float64; returns the base's dtype.
    """
    rest = np.array([[1.0 - float(np.sum(column)) for column in coefficients.T]])
    return _weighted_sum([base, *experts], np.concatenate([rest, coefficients]))


def mean_experts(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weight Average: the mean of the experts, the base not among them; fp32, rounded once to the base's dtype.

    Summed first and divided once, so that equal experts average to themselves bit for bit.
    """
    wide = _wide(base.dtype)
    total = experts[0].to(wide)
    for expert in experts[1:]:
        total = total + expert.to(wide)
    return (total / len(experts)).to(base.dtype)


def _weighted_sum(terms: Sequence[torch.Tensor], weights: np.ndarray) -> torch.Tensor:
    """Σ_j weights[j, s] · terms[j] on each chunk s, terms of weight 0 left out; the dtype of ``terms[0]``."""
    wide = _wide(terms[0].dtype)
    flat = [term.reshape(-1) for term in terms]
    out = torch.empty_like(flat[0])
    bounds = chunk_bounds(len(out), weights.shape[1])
    for s, (start, stop) in enumerate(itertools.pairwise(bounds)):
        total = None
        for term, weight in zip(flat, weights[:, s].tolist(), strict=True):
            if weight == 0.0:
                continue
            product = term[start:stop].to(wide) * weight
            total = product if total is None else total + product
        out[start:stop] = 0 if total is None else total.to(out.dtype)
    return out.reshape(terms[0].shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
