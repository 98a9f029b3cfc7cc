"""TIES Merging, plain and on task vectors that DARE thinned out."""

from __future__ import annotations

from emkit.combine.disjoint import MERGES, disjoint_merge
from emkit.methods.arithmetic import DROP
from emkit.methods.assembly import entrywise
from emkit.methods.registry import VALIDATION, Context, Merge, Option, method
from emkit.schema import boolean, choice, number
from emkit.task_vectors import TaskVectors
from emkit.transforms import Dropped, Elected, Trimmed, View, drop_and_rescale

SCOPES = ("model", "tensor")
SELECTION = {
    "density": Option(
        number(1e-4, 1),
        0.2,
        "part of every task vector that the trim keeps: the original's top 20 %, and the paper's code's",
    ),
    "scope": Option(
        choice(*SCOPES),
        "model",
        "threshold and majority sign over the whole task vector (model) or in each tensor by itself (tensor). model is "
        "the default: the original's definition, the paper's code and the InternVL code of its experts' authors; "
        "their Qwen2-VL code and mergekit take tensor, which keeps 20 % of every tensor however little it moved",
    ),
}
OPTIONS = {
    **SELECTION,
    "merge": Option(
        choice(*MERGES),
        "mean",
        "mean of the agreeing entries, as the original and the paper's code; sum as AdaMerging's authors and "
        "fusion_bench. The best λ differs between them by up to K",
    ),
}
SECOND_TRIM = Option(
    boolean,
    True,
    "whether the thinned vectors are trimmed again before the election. true: the paper's code trims again; mergekit's "
    "dare_ties does not",
)


@method("scale", scale=VALIDATION, options=OPTIONS, parts=(Trimmed, Elected, disjoint_merge))
def ties(ctx: Context) -> Merge:
    """TIES Merging: θ_base + λ τ_m with τ_m the disjoint merge of the trimmed τ_k's entries of the elected sign.

    Trim, elect, merge (Yadav et al., 2023). Tensors of every number of dimensions are treated alike, and a threshold
    over the whole vector counts them all. Only merged tensors make up "the whole vector" (the original merges, and
    counts, every parameter).
    """
    return _ties(ctx, ctx.task_vectors)


@method(
    "scale",
    "seed",
    scale=VALIDATION,
    options={"drop": DROP, **OPTIONS, "second_trim": SECOND_TRIM},
    parts=(drop_and_rescale, Trimmed, Elected, disjoint_merge),
)
def ties_dare(ctx: Context) -> Merge:
    """TIES w/ DARE: TIES Merging of DARE(τ_k) in place of τ_k (Yu et al., 2024).

    Tensors of every number of dimensions are treated alike. λ is chosen with the first seed and holds for all.
    (mergekit's ``dare_ties`` is another thing by default: no second trim, and the sum of the agreeing entries.)
    """
    thinned = Dropped(ctx.task_vectors, ctx.options["drop"], ctx.seed)
    return _ties(ctx, thinned, ctx.options["second_trim"])


def _ties(ctx: Context, task_vectors: TaskVectors | View, trim: bool = True) -> Merge:
    scale = ctx.needed_scale()  # before the passes over all tensors that the threshold takes
    trimmed = Trimmed(task_vectors, ctx.options["density"], ctx.options["scope"]) if trim else task_vectors
    elected = Elected(trimmed, ctx.options["scope"])
    return entrywise(ctx, elected, lambda tau: disjoint_merge(tau, ctx.options["merge"]), scale)
