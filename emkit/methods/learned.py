"""Methods that fit coefficients on unlabeled samples: Expert Merging(++) and AdaMerging(++)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from emkit.alignment.importance import allocate_chunks, layer_importance
from emkit.alignment.learner import Learner
from emkit.alignment.objectives import entropy, hidden_alignment, logit_alignment, regulariser
from emkit.config import Settings, option
from emkit.merging import Context, Merge, linear
from emkit.methods import method
from emkit.methods.task_arithmetic import SCALE
from emkit.methods.ties import Elected, Selection, Trimmed
from emkit.task_vectors import TaskVectors

NotNegative = Annotated[float, Field(ge=0)]
ByExpert = dict[str, float]


class Optimiser(Settings):
    """How a fit descends."""

    name: Literal["adamw", "adam"] = option(..., "they differ in where weight decay enters")
    lr: float = option(..., "the learning rate", ge=0)
    weight_decay: float = option(..., "the decay of what is trained", ge=0)
    steps: int = option(..., "how many steps", ge=1)
    schedule: Literal["constant", "cosine", "cosine_restarts"] = option(..., "of the rate; cosine falls to 0")
    batch: Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=0.01, le=0.5)] | Literal["all"] = option(
        ...,
        "samples of each task in a step (all: every one); below 1, the part of one: a sample that is a pack of many "
        "short questions is dealt into that many parts, which take turns",
    )
    clip: NotNegative | None = option(None, "bound of the norm of the whole coefficient gradient; null: none")
    period: int = option(50, "steps before the first restart", "authors' code", ge=1)
    growth: int = option(2, "how much longer the period is after each restart", "authors' code", ge=1)
    floor: float = option(0.1, "what cosine_restarts falls to, in units of lr", "authors' code", ge=0, le=1)


class ExpertMerging(Settings):
    """Options of Expert Merging."""

    initial: float | ByExpert | Literal["scale of task_arithmetic"] = option(
        "scale of task_arithmetic",
        "ᾱ_k, where the coefficients start and what R measures from: a number, one for each expert, or Task "
        "Arithmetic's λ",
        "paper, Section 3.2: the coefficient validated by Task Arithmetic; in a merge of one's own models, `scale`",
    )
    parameterisation: Literal["plain", "sigmoid"] = option(
        "plain", "plain trains α, sigmoid its logit (the authors' code)", "paper, Section 3.2: α itself"
    )
    temperature: float = option(1.0, "T of Eq. 2", "authors' code: 1.0 on the command line", ge=1e-6)
    beta: dict[str, NotNegative] = option(
        {},
        "β_k of Eq. 3 by expert; 1 for those without one",
        "authors' code: 1 for every expert; the paper's values are unpublished",
        every_expert=False,
    )
    gamma: float = option(
        0.8,
        "γ of Eq. 3, the weight of R",
        "paper, Appendix B.2: 0.8 for its Mistral and its Qwen2-VL",
        by_backbone={"internvl": (5.0, "paper, Appendix B.2: 5 for InternVL2.5")},
        ge=0,
    )
    regulariser: Literal["paper", "authors"] = option(
        "authors",
        "the scale of R: Eq. 3's (paper) or the authors' code's",
        "authors' code, whose units Appendix B.2's γ is in",
    )
    hidden_loss: Literal["mean_squared", "squared_norm"] = option(
        "mean_squared",
        "Eq. 1's squared norm, or its mean",
        "authors' code (Eq. 1's squared norm outweighs the KL by the width)",
    )
    hidden_layer: Annotated[int, Field(ge=1)] | Literal["middle"] = option(
        "middle", "the block of Eq. 1", "paper, Appendix B.2: the middle block"
    )
    tokens: Literal["response", "all"] = option(
        "response",
        "where losses are taken: response tokens, or all (the authors' code)",
        "ours: the responses are what the experts are experts in",
    )
    optimiser: Optimiser = option(
        Optimiser(name="adamw", lr=0.01, weight_decay=0.0, steps=50, schedule="cosine", batch=1),
        "name, lr, weight_decay, steps, schedule, batch, clip; of cosine_restarts also period, growth and floor",
        "ours: AdamW on α, one sample of every expert a step; the paper publishes none",
    )
    hidden_weight: float = option(1.0, "w_h of the authors' code: the weight of Eq. 1", "paper: 1", ge=0)
    logit_weight: float = option(1.0, "the weight of Eq. 2", "paper: 1, and 0 in its ablation", ge=0)


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


class AdaMerging(Settings):
    """Options of AdaMerging."""

    initial: float | ByExpert = option(
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


class AdaMergingPP(Selection, AdaMerging):
    """Options of AdaMerging++."""


@method(
    "expert_merging",
    "calibration",
    options=ExpertMerging,
    scale=SCALE,
    parts=(hidden_alignment, logit_alignment, regulariser),
)
def expert_merging(ctx: Context[ExpertMerging]) -> Merge:
    """Expert Merging: one learned coefficient per merged tensor and expert (Section 3.2).

    θ_base + Σ_k α_k τ_k with α minimising Σ_k β_k (L_hid^(k) + L_logit^(k)) + γ R(α) on the calibration samples.
    Tensors of every number of dimensions are treated alike.
    """
    learned = _learner(ctx).expert_merging(ctx.options)
    return linear(ctx, learned.coefficients, ctx.scale, learned)


@method(
    "expert_merging_pp",
    "calibration",
    options=ExpertMergingPP,
    scale=SCALE,
    inherits="expert_merging",
    parts=(layer_importance, allocate_chunks),
)
def expert_merging_pp(ctx: Context[ExpertMergingPP]) -> Merge:
    """Expert Merging++: Expert Merging, then one learned coefficient per chunk, chunks by importance (Section 3.3)."""
    learned = _learner(ctx).expert_merging_pp(ctx.first, ctx.options)
    return linear(ctx, learned.coefficients, ctx.scale, learned)


@method("adamerging", "calibration", options=AdaMerging, parts=(entropy,))
def adamerging(ctx: Context[AdaMerging]) -> Merge:
    """AdaMerging, layer-wise: θ_base + Σ_k λ_k τ_k with one λ per merged tensor and expert (Yang et al., 2024).

    λ minimises the mean prediction entropy of the merged model on unlabeled samples of every task, summed over the
    tasks, by the same fit as Expert Merging's. There is no teacher and no regulariser. Tensors of every number of
    dimensions are treated alike.
    """
    learned = _learner(ctx).adamerging(ctx.options)
    return linear(ctx, learned.coefficients, None, learned)


@method(
    "adamerging_pp",
    "calibration",
    options=AdaMergingPP,
    inherits="adamerging",
    parts=(entropy, Trimmed, Elected),
)
def adamerging_pp(ctx: Context[AdaMergingPP]) -> Merge:
    """AdaMerging++: AdaMerging over what TIES selects, θ_base + Σ_k λ_k τ̂_k (Yang et al., 2024).

    τ̂_k holds the trimmed entries of τ_k that have the elected sign; they are not averaged. Tensors of every number of
    dimensions are treated alike.
    """
    trimmed = Trimmed(ctx.task_vectors, ctx.options.density, ctx.options.scope)
    selected = Elected(trimmed, ctx.options.scope)
    learned = _learner(ctx, selected).adamerging(ctx.options)
    return linear(ctx, learned.coefficients, None, learned, selected)


def _learner(ctx: Context, task_vectors: TaskVectors | None = None) -> Learner:
    vectors = ctx.task_vectors if task_vectors is None else task_vectors
    given = (ctx.seed, ctx.cache, ctx.scale, ctx.progress, ctx.engine)
    return Learner(ctx.backbone, vectors, ctx.calibration, ctx.device, *given)
