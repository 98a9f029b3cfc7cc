"""Task Arithmetic: θ_base + λ Σ_k τ_k with one λ for all (Ilharco et al., 2023; Section 3.1).

Tensors of every number of dimensions are treated alike.
"""

from __future__ import annotations

import torch

from emkit.coefficients import merge_experts
from emkit.config import option
from emkit.merging import Context, Merge, scaled
from emkit.methods import method

SCALE = option(
    0.3,
    "λ, what task vectors are scaled by",
    "paper, Appendix B.2: 0.3, validated by Task Arithmetic, for its Mistral and its Qwen2-VL",
    by_backbone={"internvl": (0.1, "paper, Appendix B.2: 0.1, validated by Task Arithmetic, for InternVL2.5")},
)


def task_arithmetic(base: torch.Tensor, taus: torch.Tensor, scale: float) -> torch.Tensor:
    """θ_base + λ Σ_k τ_k: [*shape] and K task vectors [K, *shape] → fp32 [*shape]."""
    return base.float() + scale * taus.sum(dim=0)


@method("task_arithmetic", scale=SCALE, parts=(task_arithmetic, merge_experts))
def merge(ctx: Context) -> Merge:
    return scaled(ctx)
