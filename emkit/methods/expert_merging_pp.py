"""Expert Merging++: Expert Merging, then one learned coefficient per chunk, chunks by importance (Section 3.3).

I_ℓ = Norm(Σ_k |α_k^ℓ| s_k^ℓ n_ℓ) from the first fit's α, m_ℓ = ⌊B · I_ℓ^κ / Σ_j I_j^κ⌋ chunks of tensor ℓ (Eq. 4), and
θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} (Eq. 5) with a second fit of Eq. 3, whose R divides by B.
"""

from __future__ import annotations

from typing import Literal

from emkit.alignment import importance
from emkit.alignment.importance import allocate_chunks, chunked_start, layer_importance
from emkit.alignment.learner import Learned, Learner
from emkit.config import option
from emkit.merging import Context, Merge, linear
from emkit.methods import method
from emkit.methods.expert_merging import ExpertMerging, aligned, first_stage
from emkit.methods.task_arithmetic import SCALE


class ExpertMergingPP(ExpertMerging):
    """Options of Expert Merging++."""

    kappa: float = option(1.2, "κ of Eq. 4", "paper, Appendix B.2: 1.2", ge=0)
    budget: float = option(
        1.0, "B of Eq. 4 in units of L", "paper, Appendix B.2: 0.9 to 1.2 times the number of merged tensors", ge=0
    )
    fixed: Literal["stage1", "initial"] = option(
        "stage1",
        "what tensors without a chunk are fixed at; the paper does not say",
        "ours: keeps what the first fit learned (the authors' code: initial)",
    )
    start: Literal["stage1", "initial"] = option(
        "stage1",
        "what the second fit starts from",
        "paper, Section 4.1: the second fit starts from the learned coefficients",
    )
    normalise: Literal["per_expert", "joint"] = option(
        "per_expert",
        "how s of Section 3.3 is normalised across layers",
        "ours: Section 3.3 defines s for one expert",
    )


def second_stage(learner: Learner, options: ExpertMergingPP, stage1: Learned) -> Learned:
    """One coefficient per chunk of every merged tensor and expert."""
    vectors = learner.task_vectors
    of_layers = importance.layer_importance(stage1.coefficients, vectors, options.normalise)
    chunks = importance.allocate_chunks(of_layers, options.budget, options.kappa)
    sizes = {name: vectors.numel(name) for name in vectors.names}
    initial = learner.constant(options.initial)
    start = importance.chunked_start(stage1.coefficients, initial, chunks, options.fixed, options.start, sizes)
    calibration = learner.calibration(options.hidden_layer, options.tokens)
    coefficients, stage = aligned(learner, options, calibration, start, options.budget * len(vectors.names))
    stage |= {"importance": of_layers, "chunks": chunks}
    return Learned(coefficients, [*stage1.stages, stage], calibration.described)


@method(
    "expert_merging_pp",
    "calibration",
    options=ExpertMergingPP,
    scale=SCALE,
    inherits="expert_merging",
    parts=(layer_importance, allocate_chunks, chunked_start),
)
def merge(ctx: Context[ExpertMergingPP]) -> Merge:
    learner = ctx.learner()
    assert isinstance(ctx.first, ExpertMerging)
    learned = second_stage(learner, ctx.options, first_stage(learner, ctx.first))
    return linear(ctx, learned.coefficients, ctx.scale, learned)
