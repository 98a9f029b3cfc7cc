"""TIES w/ DARE: TIES Merging of DARE(τ_k) in place of τ_k (Yu et al., 2024).

Tensors of every number of dimensions are treated alike. λ is chosen with the first seed and holds for all. (mergekit's
``dare_ties`` is another thing by default: no second trim, and the sum of the agreeing entries.)
"""

from __future__ import annotations

import torch

from emkit.config import option
from emkit.merging import Context, Merge
from emkit.methods import method
from emkit.methods.dare import Dare, Dropped, dare, drop_and_rescale
from emkit.methods.ties import SCALE, Elected, How, Ties, Trimmed, disjoint_merge, elect, merged, trim


def ties_dare(
    taus: torch.Tensor,
    drop: float = 0.2,
    density: float = 0.2,
    merge: How = "mean",
    second_trim: bool = True,
    uniform: torch.Tensor | None = None,
) -> torch.Tensor:
    """τ_m of K task vectors: [K, *shape] → [*shape]; ``uniform`` [K, *shape] as of :func:`emkit.methods.dare.dare`."""
    thinned = dare(taus, drop, uniform)
    return disjoint_merge(elect(trim(thinned, density) if second_trim else thinned), merge)


class TiesDare(Ties, Dare):
    """Options of TIES w/ DARE."""

    second_trim: bool = option(
        True,
        "whether the thinned vectors are trimmed again before the election; mergekit's dare_ties does not",
        "paper's code trims again",
    )


PARTS = (ties_dare, drop_and_rescale, Trimmed, Elected, disjoint_merge)


@method("ties_dare", "seed", options=TiesDare, scale=SCALE, parts=PARTS)
def merge(ctx: Context[TiesDare]) -> Merge:
    thinned = Dropped(ctx.task_vectors, ctx.options.drop, ctx.seed)
    return merged(ctx, thinned, ctx.options, ctx.options.second_trim)
