"""TIES' last step, the disjoint merge: each entry from the experts that agree on its sign."""

from __future__ import annotations

from collections.abc import Iterable

import torch

MERGES = ("mean", "sum")


def disjoint_merge(selected: Iterable[torch.Tensor], merge: str = "mean") -> torch.Tensor:
    """τ_m = Σ_{k ∈ A} τ̂_k / |A| with A the experts whose entry is not 0 (Yadav et al., 2023); 0 for A = ∅.

    ``selected`` gives K fp32 tensors [*shape] that are trimmed and of the elected sign; the result is fp32 [*shape].
    ``mean`` divides by |A|, as the original does; ``sum`` does not, as in the code of AdaMerging's authors and in
    fusion_bench, so that its λ is smaller by about |A|.
    """
    total = count = None
    for tau in selected:
        total = tau.clone() if total is None else total.add_(tau)
        if merge == "mean":
            here = tau.sign().abs_()
            count = here if count is None else count.add_(here)
    return total if count is None else total.div_(count.clamp_(min=1))
