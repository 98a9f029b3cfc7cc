"""Weight Average: 1/K Σ_k θ_k, the mean of the experts over the merged tensors; the base is not in the mean.

The base's values stay elsewhere. (The authors' code scales the mean task vector by 0.1 unless told otherwise, which is
no average.) Tensors of every number of dimensions are treated alike.
"""

from __future__ import annotations

import torch

from emkit.coefficients import mean_experts
from emkit.merging import Context, Merge, replaced
from emkit.methods import method


def weight_average(experts: torch.Tensor) -> torch.Tensor:
    """1/K Σ_k θ_k of K experts' tensors: [K, *shape] → fp32 [*shape]."""
    return experts.float().mean(dim=0)


@method("weight_average", parts=(weight_average, mean_experts))
def merge(ctx: Context) -> Merge:
    return Merge(replaced(ctx, lambda name: mean_experts(*ctx.task_vectors.read(name))), ctx.base)
