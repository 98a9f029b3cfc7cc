"""Iso-C: θ_base + λ σ̄ U Vᵀ of every matrix, with Σ_k τ_k = U diag(σ) Vᵀ and σ̄ = mean(σ) (Marczak et al., 2025).

Isotropic merging in the common subspace; λ is free (their α, tuned in (0, 3]). Other tensors than matrices:
θ_base + λ · mean τ_k.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from emkit.config import Settings, option
from emkit.merging import Context, Merge, added, matrices
from emkit.methods import method

NullSpace = Literal["fill", "leave"]


def iso_c(taus: Iterable[torch.Tensor], null_space: NullSpace = "fill") -> torch.Tensor:
    """σ̄ U Vᵀ with Σ_k τ_k = U diag(σ) Vᵀ and σ̄ = mean(σ) (Marczak et al., 2025).

    ``taus`` gives K matrices [m, n], taken one at a time; SVD in their dtype; returns [m, n].

    ``null_space`` decides what happens where σ is 0 to rounding, as it is for most directions when the experts are
    low-rank adapters: ``fill`` gives these directions σ̄ like all others, as published and as every public code does,
    although the SVD's rounding noise then decides what they are; ``leave`` keeps them 0 (σ̄ is the mean over all
    min(m, n) directions in both).
    """
    total = added(taus)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    level = s.mean().expand_as(s)
    if null_space == "leave":
        level = level * (s > s.max() * max(total.shape) * torch.finfo(s.dtype).eps)
    return (u * level) @ vh


class IsoC(Settings):
    """Options of Iso-C."""

    null_space: NullSpace = option(
        "fill",
        "what directions with singular value 0 get: fill, the mean singular value; leave, nothing, which low-rank "
        "adapters need for a result that does not depend on the SVD's noise",
        "original: as published, and as run for the paper",
    )


SCALE = option(
    1.0,
    "λ, what the merged matrix is scaled by",
    "ours: the singular values then sum to those of the added task vectors; its authors search (0, 3]",
)


@method("iso_c", options=IsoC, scale=SCALE, parts=(iso_c,))
def merge(ctx: Context[IsoC]) -> Merge:
    return matrices(ctx, lambda taus: iso_c(taus, ctx.options.null_space), ctx.needed_scale())
