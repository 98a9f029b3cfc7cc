"""Methods that fit coefficients on unlabeled samples: Expert Merging(++) and AdaMerging(++)."""

from __future__ import annotations

from emkit.alignment.importance import FIXED, NORMALISE, allocate_chunks, layer_importance
from emkit.alignment.learner import SCALE, Learner
from emkit.alignment.objectives import (
    HIDDEN_LOSSES,
    REGULARISERS,
    TOKENS,
    entropy,
    hidden_alignment,
    logit_alignment,
    regulariser,
)
from emkit.alignment.variable import OPTIMISERS, PARAMETERISATIONS, SCHEDULES
from emkit.methods.assembly import linear
from emkit.methods.registry import REQUIRED, Context, Merge, Option, method
from emkit.methods.ties import SELECTION
from emkit.schema import Key, boolean, choice, either, integer, mapping, mapping_of, nullable, number
from emkit.task_vectors import TaskVectors
from emkit.transforms import Elected, Trimmed, View

_OPTIMISER = mapping(
    {
        "name": Key(choice(*OPTIMISERS)),
        "lr": Key(number(0)),
        "weight_decay": Key(number(0)),
        "steps": Key(integer(1)),
        "schedule": Key(choice(*SCHEDULES)),
        "batch": Key(either(integer(1), number(0.01, 0.5), choice("all")), required=False),
        "clip": Key(nullable(number(0)), required=False),
        "period": Key(integer(1), required=False),
        "growth": Key(integer(1), required=False),
        "floor": Key(number(0, 1), required=False),
    }
)
_FIT = {
    "initial": Option(
        either(number(), mapping_of(number()), choice(SCALE)),
        REQUIRED,
        "ᾱ_k, where the coefficients start and what R measures from: a number, one for each expert, or Task "
        "Arithmetic's chosen λ (Section 3.2: the value 'validated by Task Arithmetic')",
    ),
    "parameterisation": Option(
        choice(*PARAMETERISATIONS), REQUIRED, "plain trains α (the paper), sigmoid its logit (the authors' code)"
    ),
    "temperature": Option(number(1e-6), REQUIRED, "T of Eq. 2; 1.0 on the authors' command line"),
    "beta": Option(mapping_of(number(0)), REQUIRED, "β_k of Eq. 3 by expert; the paper's values are unpublished"),
    "gamma": Option(number(0), REQUIRED, "γ of Eq. 3, the weight of R"),
    "regulariser": Option(choice(*REGULARISERS), REQUIRED, "the scale of R: Eq. 3's (paper) or the authors' code's"),
    "hidden_loss": Option(choice(*HIDDEN_LOSSES), REQUIRED, "Eq. 1's squared norm, or its mean as the authors' code"),
    "hidden_layer": Option(
        either(integer(1), choice("middle")), REQUIRED, "the block of Eq. 1; the middle one in Appendix B.2"
    ),
    "tokens": Option(choice(*TOKENS), REQUIRED, "where losses are taken: response tokens, or all (the authors' code)"),
    "optimiser": Option(
        _OPTIMISER,
        REQUIRED,
        "name, lr, weight_decay, steps, schedule, batch, clip; of cosine_restarts also period, growth (of the period "
        "with each restart) and floor (of the rate, in units of lr), 50, 2 and 0.1 as in the authors' code; "
        "unpublished in the paper",
    ),
    "hidden_weight": Option(number(0), 1.0, "w_h of the authors' code: the weight of Eq. 1 (1 in the paper)"),
    "logit_weight": Option(number(0), 1.0, "the weight of Eq. 2 (1 in the paper, 0 in its ablation)"),
}
_CHUNKS = {
    "kappa": Option(number(0), REQUIRED, "κ of Eq. 4"),
    "budget": Option(number(0), REQUIRED, "B of Eq. 4 in units of L (0.9 to 1.2 in Appendix B.2)"),
    "fixed": Option(choice(*FIXED), REQUIRED, "what tensors without a chunk are fixed at; the paper leaves it open"),
    "start": Option(choice(*FIXED), REQUIRED, "what the second fit starts from"),
    "normalise": Option(choice(*NORMALISE), "per_expert", "how s of Section 3.3 is normalised across layers"),
}
_ENTROPY_FIT = {
    "initial": Option(
        either(number(), mapping_of(number())),
        0.3,
        "every coefficient at the start, or one number for each expert; 0.3 by AdaMerging's authors",
    ),
    "clamp": Option(
        boolean,
        True,
        "whether coefficients are set back into [0, 1] after every step. AdaMerging's authors clamp what they merge "
        "with but not what they train, so that a coefficient that once left has no gradient any more; inside [0, 1] "
        "both are the same",
    ),
    "tokens": Option(
        choice(*TOKENS),
        "response",
        "over which tokens the entropy is averaged. AdaMerging has no definition for language models; next-token "
        "entropy on the calibration set of Expert Merging is ours, at the response tokens, because those are the "
        "predictions that a score is made of",
    ),
    "optimiser": Option(
        _OPTIMISER,
        {"name": "adam", "lr": 1e-3, "weight_decay": 0.0, "steps": 500, "schedule": "constant", "batch": 1},
        "AdaMerging's authors: Adam, 1e-3, 500 steps; one sample of every task a step",
    ),
}


@method("scale", "calibration", options=_FIT, parts=(hidden_alignment, logit_alignment, regulariser))
def expert_merging(ctx: Context) -> Merge:
    """Expert Merging: one learned coefficient per merged tensor and expert (Section 3.2).

    θ_base + Σ_k α_k τ_k with α minimising Σ_k β_k (L_hid^(k) + L_logit^(k)) + γ R(α) on the calibration samples.
    Tensors of every number of dimensions are treated alike.
    """
    learned = _learner(ctx).expert_merging(ctx.options)
    return linear(ctx, learned.coefficients, ctx.scale, learned)


@method(
    "scale",
    "calibration",
    options={**_FIT, **_CHUNKS},
    inherits="expert_merging",
    parts=(layer_importance, allocate_chunks),
)
def expert_merging_pp(ctx: Context) -> Merge:
    """Expert Merging++: Expert Merging, then one learned coefficient per chunk, chunks by importance (Section 3.3)."""
    first = ctx.recipe.method_settings("expert_merging")
    learned = _learner(ctx).expert_merging_pp(first, ctx.options)
    return linear(ctx, learned.coefficients, ctx.scale, learned)


@method("calibration", options=_ENTROPY_FIT, parts=(entropy,))
def adamerging(ctx: Context) -> Merge:
    """AdaMerging, layer-wise: θ_base + Σ_k λ_k τ_k with one λ per merged tensor and expert (Yang et al., 2024).

    λ minimises the mean prediction entropy of the merged model on unlabeled samples of every task, summed over the
    tasks, by the same fit as Expert Merging's. There is no teacher and no regulariser. Tensors of every number of
    dimensions are treated alike.
    """
    return _adamerging(ctx, ctx.task_vectors)


@method(
    "calibration",
    options={**_ENTROPY_FIT, **SELECTION},
    inherits="adamerging",
    parts=(entropy, Trimmed, Elected),
)
def adamerging_pp(ctx: Context) -> Merge:
    """AdaMerging++: AdaMerging over what TIES selects, θ_base + Σ_k λ_k τ̂_k (Yang et al., 2024).

    τ̂_k holds the trimmed entries of τ_k that have the elected sign; they are not averaged. Tensors of every number of
    dimensions are treated alike.
    """
    trimmed = Trimmed(ctx.task_vectors, ctx.options["density"], ctx.options["scope"])
    return _adamerging(ctx, Elected(trimmed, ctx.options["scope"]))


def _adamerging(ctx: Context, task_vectors: TaskVectors | View) -> Merge:
    learned = _learner(ctx, task_vectors).adamerging(ctx.options)
    return linear(ctx, learned.coefficients, None, learned, task_vectors)


def _learner(ctx: Context, task_vectors: TaskVectors | View | None = None) -> Learner:
    scale = ctx.row.get("scale", ctx.scale)
    vectors = ctx.task_vectors if task_vectors is None else task_vectors
    return Learner(ctx.backbone, vectors, ctx.recipe, ctx.seed, ctx.cache, scale, ctx.progress, ctx.engine)
