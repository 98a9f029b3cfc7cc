"""Linear merges with one coefficient for all: Task Arithmetic, plain and with DARE."""

from __future__ import annotations

from emkit.coefficients import Coefficients
from emkit.combine.linear import merge_experts, merge_tensor
from emkit.methods.assembly import linear
from emkit.methods.registry import VALIDATION, Context, Merge, Option, method
from emkit.schema import number
from emkit.transforms import Dropped, drop_and_rescale

DROP = Option(
    number(0, 0.9999),
    0.2,
    "probability p that an entry is dropped. 0.2 is what the paper's and the multimodal experts' code pass; DARE's own "
    "authors go up to 0.9 and beyond, which suits language models that were fine-tuned lightly",
)


@method("scale", scale=VALIDATION, parts=(merge_experts,))
def task_arithmetic(ctx: Context) -> Merge:
    """Task Arithmetic: θ_base + λ Σ_k τ_k with one λ for all (Ilharco et al., 2023; Section 3.1).

    Tensors of every number of dimensions are treated alike.
    """
    scale = ctx.needed_scale()
    return linear(ctx, _constant(ctx, scale), scale)


@method("scale", "seed", scale=VALIDATION, options={"drop": DROP}, parts=(drop_and_rescale, merge_tensor))
def ta_dare(ctx: Context) -> Merge:
    """TA w/ DARE: θ_base + λ Σ_k DARE(τ_k), one λ for all (Yu et al., 2024).

    Tensors of every number of dimensions are treated alike: entries of a vector are dropped too. λ is chosen with the
    first seed and holds for all. (mergekit's ``dare_linear`` has weights where λ is here, which it does not normalise
    by default.)
    """
    scale = ctx.needed_scale()
    dropped = Dropped(ctx.task_vectors, ctx.options["drop"], ctx.seed)
    return linear(ctx, _constant(ctx, scale), scale, task_vectors=dropped)


def _constant(ctx: Context, scale: float) -> Coefficients:
    return Coefficients.constant(ctx.task_vectors.names, dict.fromkeys(ctx.task_vectors.experts, scale))
