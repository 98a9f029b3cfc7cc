"""TSV Merging: θ_base + λ U⊥ diag(s) V⊥ᵀ of every matrix (Gargiulo et al., 2025).

The experts' leading singular vectors, decorrelated between the tasks. Other tensors than matrices, and with ``form``
as_run all tensors: θ_base + λ · mean τ_k.
"""

from __future__ import annotations

from typing import Literal

import torch

from emkit.config import Settings, option
from emkit.merging import Context, Matrices, Merge, averaged, matrices, replaced
from emkit.methods import method


def tsv(taus: Matrices) -> torch.Tensor:
    """U⊥ diag(s) V⊥ᵀ, made of the experts' leading singular triplets (Gargiulo et al., 2025).

    Of each τ_k = U_k diag(s_k) V_kᵀ the first r = ⌊min(m, n) / K⌋ triplets are kept and stood side by side,
    U = [U_1 … U_K], s = (s_1 … s_K), V = [V_1 … V_K]; U⊥ and V⊥ are their polar factors, the nearest matrices with
    orthonormal columns: P Qᵀ of the SVD U = P Σ Qᵀ.

    ``taus`` holds K matrices [m, n], taken one at a time; SVDs in their dtype; returns [m, n].

    A triplet with singular value 0 (an expert equal to the base, a low-rank one) is left out: its vectors are whatever
    the SVD routine returns. For the same reason a polar factor here has no component along directions that U or V
    lacks, as when two experts share vectors: K copies of one expert give its rank-r approximation and nothing
    else. The original code keeps such directions, whose content is then the SVD's rounding noise.
    """
    left, middle, right = [], [], []
    for tau in taus:
        u, s, vh = torch.linalg.svd(tau, full_matrices=False)
        r = min(tau.shape) // len(taus)
        r = min(r, int((s > _noise(tau.shape, s)).sum()))
        left.append(u[:, :r])
        middle.append(s[:r])
        right.append(vh[:r].T)
    u, s, v = torch.cat(left, dim=1), torch.cat(middle), torch.cat(right, dim=1)
    if not len(s):
        return torch.zeros_like(tau)
    return (polar(u) * s) @ polar(v).T


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """P Qᵀ of the SVD P Σ Qᵀ, directions with σ = 0 (to rounding) left out."""
    p, s, qh = torch.linalg.svd(matrix, full_matrices=False)
    real = s > _noise(matrix.shape, s)
    return p[:, real] @ qh[real]


def _noise(shape: tuple[int, ...], singular: torch.Tensor) -> torch.Tensor:
    """The size of singular values that rounding alone can make (numpy's and MATLAB's rule for a matrix' rank)."""
    return singular.max() * max(shape) * torch.finfo(singular.dtype).eps


class Tsv(Settings):
    """Options of TSV Merging."""

    form: Literal["published", "as_run"] = option(
        "published",
        "published: the method of its authors, on every matrix. as_run: what ran for the paper's tables. In its code, "
        "and in that of the experts' authors, the SVD branch is entered for lm_head.weight alone, which is always "
        "excluded, so that every tensor is θ_base + mean τ; Table 2's TSV row is nearly its Weight Average row",
        "ours: a row should be what its label says",
    )
    scale: float = option(1.0, "λ (their α)", "its authors: 1")


@method("tsv", options=Tsv, parts=(tsv,))
def merge(ctx: Context[Tsv]) -> Merge:
    scale = ctx.options.scale
    if ctx.options.form == "as_run":
        return Merge(replaced(ctx, lambda name: averaged(ctx.task_vectors, name, scale)), ctx.base, scale=scale)
    return matrices(ctx, tsv, scale)
