"""AdaMerging++: AdaMerging over what TIES selects, θ_base + Σ_k λ_k τ̂_k (Yang et al., 2024).

τ̂_k holds the trimmed entries of τ_k that have the elected sign; they are not averaged. Tensors of every number of
dimensions are treated alike.
"""

from __future__ import annotations

from emkit.alignment.objectives import entropy
from emkit.merging import Context, Merge, linear
from emkit.methods import method
from emkit.methods.adamerging import AdaMerging, fitted
from emkit.methods.ties import Elected, Selection, Trimmed


class AdaMergingPP(Selection, AdaMerging):
    """Options of AdaMerging++."""


@method(
    "adamerging_pp",
    "calibration",
    options=AdaMergingPP,
    inherits="adamerging",
    parts=(entropy, Trimmed, Elected),
)
def merge(ctx: Context[AdaMergingPP]) -> Merge:
    trimmed = Trimmed(ctx.task_vectors, ctx.options.density, ctx.options.scope)
    selected = Elected(trimmed, ctx.options.scope)
    learned = fitted(ctx.learner(selected), ctx.options)
    return linear(ctx, learned.coefficients, None, learned, selected)
