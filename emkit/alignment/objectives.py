"""What fits minimise: hidden-state and logit alignment with the coefficient regulariser (Eq. 1–3), and entropy."""

from __future__ import annotations

import torch

HIDDEN_LOSSES = ("mean_squared", "squared_norm")
REGULARISERS = ("paper", "authors")
TOKENS = ("response", "all")


def hidden_alignment(student: torch.Tensor, teacher: torch.Tensor, kind: str = "mean_squared") -> torch.Tensor:
    """Hidden-state alignment of each position (Eq. 1, one layer of S): [N, d] and [N, d] → [N].

    ``squared_norm``
        ‖h − h^(k)‖², as Eq. 1 has it. It grows with the width d, the KL of Eq. 2 does not, so the same γ and β mean
        something else on every backbone.
    ``mean_squared`` (default)
        the same divided by d, as the authors' code has it: its size does not change with the width. It still need not
        be of the KL's order, which is what ``hidden_weight`` in a recipe is for.
    """
    squares = (student - teacher).square()
    if kind == "squared_norm":
        return squares.sum(dim=-1)
    if kind == "mean_squared":
        return squares.mean(dim=-1)
    raise ValueError(f"hidden_loss is '{kind}', not one of {HIDDEN_LOSSES}")


def logit_alignment(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T² · KL(softmax(z^(k)/T) ‖ softmax(z/T)) of each position (Eq. 2): [N, V] and [N, V] → [N].

    The authors minimise the soft cross-entropy, which has the same gradient but not 0 as its minimum. T = 1 by
    default (the value of their command line): with T > 1 the two models are compared on the tail of the vocabulary
    too, which greedy answers never use.
    """
    student, teacher = (torch.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=-1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """H = −Σ_v p_v log p_v of the next-token distribution p = softmax(z) at each position: [N, V] → [N], in nats.

    AdaMerging's objective (Yang et al., 2024), whose classes are a language model's vocabulary here.
    """
    logs = torch.log_softmax(logits, dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def regulariser(
    alpha: torch.Tensor, initial: torch.Tensor, experts: int, count: float, kind: str = "paper"
) -> torch.Tensor:
    """R(α), the mean distance of the coefficients from their initial values (Eq. 3): [n] and [n] → scalar.

    ``count`` is L for layer-wise and B for chunk-wise coefficients: what each of the K ``experts`` has.

    ``paper`` (default)
        1/(K · count) Σ |α − ᾱ|, once per objective, which sums the tasks (Eq. 3 and its chunk-wise form in
        Section 3.3). γ is then the weight of an average movement of 1 against the sum of all tasks' losses.
    ``authors``
        the weight that the authors' code gives it. There each micro-step takes one task's loss plus
        γ · Σ |α − ᾱ| / (n / K) with n coefficients in all, and steps average over tasks; against a *sum* over the K
        tasks that is K · Σ |α − ᾱ| / (n / K), about K² times the paper's R for the same γ.
    """
    distance = (alpha - initial).abs().sum()
    if kind == "paper":
        return distance / (experts * count)
    if kind == "authors":
        return experts * distance / (len(alpha) / experts)
    raise ValueError(f"regulariser is '{kind}', not one of {REGULARISERS}")
