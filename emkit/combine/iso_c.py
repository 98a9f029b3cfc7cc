"""Iso-C: isotropic merging in the common subspace."""

from __future__ import annotations

from collections.abc import Iterable

import torch

NULL_SPACES = ("fill", "leave")


def iso_c_matrix(taus: Iterable[torch.Tensor], null_space: str = "fill") -> torch.Tensor:
    """σ̄ U Vᵀ with Σ_k τ_k = U diag(σ) Vᵀ and σ̄ = mean(σ) (Marczak et al., 2025).

    ``taus`` gives K matrices [m, n], taken one at a time; SVD in their dtype; returns [m, n].

    ``null_space`` decides what happens where σ is 0 to rounding, as it is for most directions when the experts are
    low-rank adapters: ``fill`` gives these directions σ̄ like all others, as published and as every public code does,
    although the SVD's rounding noise then decides what they are; ``leave`` keeps them 0 (σ̄ is the mean over all
    min(m, n) directions in both).
    """
    total = None
    for tau in taus:
        total = tau.clone() if total is None else total.add_(tau)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    level = s.mean().expand_as(s)
    if null_space == "leave":
        level = level * (s > s.max() * max(total.shape) * torch.finfo(s.dtype).eps)
    return (u * level) @ vh
