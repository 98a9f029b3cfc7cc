"""Expert Merging: one learned coefficient per merged tensor and expert (Section 3.2).

θ_base + Σ_k α_k τ_k, with α minimising on a few unlabeled samples of every expert's task, which it has answered itself,

    Σ_k β_k (L_hid^(k) + L_logit^(k)) + γ R(α)    (Eq. 3)

L_hid is Eq. 1 at one block, L_logit Eq. 2, both between the merged model and expert k; R is the mean |α − ᾱ|. Tensors
of every number of dimensions are treated alike.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from emkit.alignment.calibration import Calibration
from emkit.alignment.fit import Penalty
from emkit.alignment.learner import Learned, Learner
from emkit.alignment.losses import Alignment
from emkit.alignment.objectives import hidden_alignment, logit_alignment, objective, regulariser
from emkit.alignment.variable import Optimiser
from emkit.alignment.weighting import Rule
from emkit.coefficients import Coefficients
from emkit.config import Settings, option
from emkit.errors import UserError
from emkit.merging import Context, Merge, linear
from emkit.methods import method
from emkit.methods.task_arithmetic import SCALE


class ExpertMerging(Settings):
    """Options of Expert Merging."""

    initial: float | dict[str, float] | Literal["scale of task_arithmetic"] = option(
        "scale of task_arithmetic",
        "ᾱ_k, where the coefficients start and what R measures from: a number, one for each expert, or Task "
        "Arithmetic's λ",
        "paper, Section 3.2: the coefficient validated by Task Arithmetic; in a merge of one's own models, `scale`",
    )
    parameterisation: Literal["plain", "sigmoid"] = option(
        "plain", "plain trains α, sigmoid its logit (the authors' code)", "paper, Section 3.2: α itself"
    )
    temperature: float = option(1.0, "T of Eq. 2", "authors' code: 1.0 on the command line", ge=1e-6)
    beta: dict[str, Annotated[float, Field(ge=0)]] | Rule = option(
        {},
        "β_k of Eq. 3 by expert, 1 for those without one; or a rule: auto, n_k / L_k(base), each kind of question in "
        "units of the base's loss on it, or balanced, down the largest L_k / L_k(base)",
        "authors' code: 1 for every expert; the paper's values are unpublished",
        own=("auto", "ours: with 1 a fit serves the task with the most nats, and nobody has tuned β for your models"),
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

    @property
    def given_beta(self) -> dict[str, float]:
        """β_k by expert, where it is numbers; empty where a rule chooses it."""
        return {} if isinstance(self.beta, str) else self.beta

    @property
    def rule(self) -> Rule | None:
        """The rule that chooses β, where one does."""
        return self.beta if isinstance(self.beta, str) else None


def aligned(
    learner: Learner, options: ExpertMerging, calibration: Calibration, start: Coefficients, count: float
) -> tuple[Coefficients, dict]:
    """The coefficients, from ``start``, that minimise Eq. 3, and the entry of their stage; ``count`` is its L or B."""
    losses = Alignment(
        beta=options.given_beta,
        rule=options.rule,
        temperature=options.temperature,
        hidden_loss=options.hidden_loss,
        hidden_weight=options.hidden_weight,
        logit_weight=options.logit_weight,
    )
    initial = learner.initial(options.initial)
    penalty = Penalty(gamma=options.gamma, kind=options.regulariser, initial=initial, count=count)
    trained = options.parameterisation
    held_out = learner.held_out(calibration, options.hidden_layer, options.tokens) if options.rule else None
    return learner.fit(options, options.optimiser, losses, penalty, calibration, start, trained, held_out)


def first_stage(learner: Learner, options: ExpertMerging) -> Learned:
    """One coefficient per merged tensor and expert. ``UserError`` for a β that the authors' order knows nothing of."""
    if options.rule == "balanced" and learner.engine.like is not None:
        raise UserError("beta balanced compares tasks at every step, and a step of --like authors has not all of them")
    calibration = learner.calibration(options.hidden_layer, options.tokens)
    start = learner.constant(options.initial)
    coefficients, stage = aligned(learner, options, calibration, start, len(start.values))
    return Learned(coefficients, [stage], calibration.described)


@method(
    "expert_merging",
    "calibration",
    options=ExpertMerging,
    scale=SCALE,
    parts=(hidden_alignment, logit_alignment, regulariser, objective),
)
def merge(ctx: Context[ExpertMerging]) -> Merge:
    learned = first_stage(ctx.learner(), ctx.options)
    return linear(ctx, learned.coefficients, ctx.scale, learned)
