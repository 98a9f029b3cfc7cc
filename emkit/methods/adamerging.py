"""AdaMerging, layer-wise: θ_base + Σ_k λ_k τ_k with one λ per merged tensor and expert (Yang et al., 2024).

λ minimises Σ_k H^(k), the mean prediction entropy of the merged model on unlabeled samples of every task, by the same
fit as Expert Merging's. There is no teacher and no regulariser. Tensors of every number of dimensions are treated
alike.
"""

from __future__ import annotations

from typing import Literal

from emkit.alignment.fit import Penalty
from emkit.alignment.learner import Learned, Learner
from emkit.alignment.losses import Entropy
from emkit.alignment.objectives import entropy
from emkit.alignment.variable import Optimiser
from emkit.config import Settings, option
from emkit.merging import Context, Merge, linear
from emkit.methods import method


class AdaMerging(Settings):
    """Options of AdaMerging."""

    initial: float | dict[str, float] = option(
        0.3, "every coefficient at the start, or one number for each expert", "0.3 by AdaMerging's authors"
    )
    clamp: bool = option(
        True,
        "whether coefficients are set back into [0, 1] after every step. AdaMerging's authors clamp what they merge "
        "with but not what they train, so that a coefficient that once left has no gradient any more; inside [0, 1] "
        "both are the same",
        "original: coefficients in [0, 1]",
    )
    tokens: Literal["response", "all"] = option(
        "response",
        "over which tokens the entropy is averaged. AdaMerging has no definition for language models; next-token "
        "entropy on the calibration set of Expert Merging is ours",
        "ours: the predictions at response tokens are those that a score is made of",
    )
    optimiser: Optimiser = option(
        Optimiser(name="adam", lr=1e-3, weight_decay=0.0, steps=500, schedule="constant", batch=1),
        "as of Expert Merging",
        "AdaMerging's authors: Adam, 1e-3, 500 steps; one sample of every task a step",
    )


def fitted(learner: Learner, options: AdaMerging) -> Learned:
    """One λ per merged tensor and expert.

    The calibration set is Expert Merging's (the same key, so it is made once); its teachers are not looked at.
    """
    calibration = learner.calibration("middle", options.tokens)
    start = learner.constant(options.initial)
    none = Penalty(gamma=0.0, initial=learner.initial(options.initial), count=len(start.values))
    trained = "clamped" if options.clamp else "plain"
    coefficients, stage = learner.fit(options, options.optimiser, Entropy(), none, calibration, start, trained)
    return Learned(coefficients, [stage], calibration.described)


@method("adamerging", "calibration", options=AdaMerging, parts=(entropy,))
def merge(ctx: Context[AdaMerging]) -> Merge:
    learned = fitted(ctx.learner(), ctx.options)
    return linear(ctx, learned.coefficients, None, learned)
