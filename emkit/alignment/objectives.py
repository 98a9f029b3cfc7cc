"""What fits minimise: hidden and logit alignment, the coefficient regulariser and their sum (Eq. 1–3), and entropy.

These functions are what a fit computes with. The two over the vocabulary take final hidden states and heads instead of
logits z = W h + b, W [V, d], because z of N positions and its softmax take many times the memory of everything else
(N × V fp32 numbers). Positions are taken some at a time, and for those a first pass over blocks of W gives the
log-sum-exps, a second one the values and at once their gradients in h, [N, d]. Where the vocabulary fits one block, its
logits are computed once. W is not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from emkit.alignment.heads import Head

HIDDEN_LOSSES = ("mean_squared", "squared_norm")
REGULARISERS = ("paper", "authors")
HELD = {"cpu": 2**21, "cuda": 2**25}  # numbers of a block of logits: 8 and 128 MiB of fp32
LEAST = 128  # positions taken at a time, if there are so many


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


def logit_alignment(
    final: torch.Tensor,
    head: Head,
    teacher_final: torch.Tensor,
    teacher_head: Head,
    temperature: float = 1.0,
    block: int | None = None,
) -> torch.Tensor:
    """T² · KL(softmax(z^(k)/T) ‖ softmax(z/T)) of each position (Eq. 2): [N, d] and [N, d_k] → [N].

    z = head(final) is the merged model's, z^(k) = teacher_head(teacher_final) the expert's; differentiable in
    ``final``. ``block``: entries of the vocabulary in one block (None: by memory). The authors minimise the soft
    cross-entropy, which has the same gradient but not 0 as its minimum. T = 1 by default (the value of their command
    line): with T > 1 the two models are compared on the tail of the vocabulary too, which greedy answers never use.
    """
    parts = zip(*(h.split(_positions(head, final)) for h in (final, teacher_final)), strict=True)
    return torch.cat([_LogitAlignment.apply(h, head, hk, teacher_head, temperature, block) for h, hk in parts])


class _LogitAlignment(torch.autograd.Function):
    """Eq. 2 by blocks v of the vocabulary: T² Σ_v p_v (log p_v − log q_v), whose derivative in z_v is T (q_v − p_v)."""

    @staticmethod
    def forward(ctx, final, head, teacher_final, teacher_head, temperature, block):
        blocks = _Blocks(final, head, block, ctx.needs_input_grad[0])

        def logits(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:  # [N, v] each
            return head.logits(final, rows) / temperature, teacher_head.logits(teacher_final, rows) / temperature

        pairs = _Kept(logits, blocks)
        student_sum = teacher_sum = None  # log Σ_v exp z_v [N]
        for _, (z, teacher_z) in pairs:
            student_sum = _log_add(student_sum, z)
            teacher_sum = _log_add(teacher_sum, teacher_z)
        values = torch.zeros_like(student_sum)
        for rows, (z, teacher_z) in pairs:
            logq, logp = z - student_sum[:, None], teacher_z - teacher_sum[:, None]
            p = logp.exp()
            values += (p * (logp - logq)).sum(dim=1)
            blocks.add_gradient(rows, lambda logq=logq, p=p: (logq.exp() - p) * temperature)
        ctx.save_for_backward(blocks.gradient)
        ctx.dtype = final.dtype
        return values * temperature**2

    @staticmethod
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        return ((gradient * grad[:, None]).to(ctx.dtype), None, None, None, None, None)


def entropy(final: torch.Tensor, head: Head, block: int | None = None) -> torch.Tensor:
    """H = −Σ_v p_v log p_v of the next-token distribution p = softmax(head(final)): [N, d] → [N], in nats.

    AdaMerging's objective (Yang et al., 2024), whose classes are a language model's vocabulary here; differentiable in
    ``final``. ``block``: entries of the vocabulary in one block (None: by memory).
    """
    return torch.cat([_Entropy.apply(h, head, block) for h in final.split(_positions(head, final))])


class _Entropy(torch.autograd.Function):
    """H = −Σ_v p_v log p_v by blocks v of the vocabulary; its derivative in z_v is −p_v (log p_v + H)."""

    @staticmethod
    def forward(ctx, final, head, block):
        blocks = _Blocks(final, head, block, ctx.needs_input_grad[0])
        logits = _Kept(lambda rows: head.logits(final, rows), blocks)
        total = None  # log Σ_v exp z_v [N]
        for _, z in logits:
            total = _log_add(total, z)
        values = torch.zeros_like(total)
        for _, z in logits:
            logp = z - total[:, None]
            values -= (logp.exp() * logp).sum(dim=1)
        for rows, z in logits if blocks.wanted else ():
            logp = z - total[:, None]
            blocks.add_gradient(rows, lambda logp=logp: -logp.exp() * (logp + values[:, None]))
        ctx.save_for_backward(blocks.gradient)
        ctx.dtype = final.dtype
        return values

    @staticmethod
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        return ((gradient * grad[:, None]).to(ctx.dtype), None, None)


def regulariser(
    alpha: torch.Tensor,
    initial: torch.Tensor,
    experts: int,
    count: float,
    kind: str = "paper",
    tasks: float | None = None,
    side: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """R(α), the mean distance of the coefficients from their initial values (Eq. 3), and its subgradient in α.

    [n] and [n] → scalar and [n]; ``count`` is L for layer-wise and B for chunk-wise coefficients: what each of the K
    ``experts`` has. ``side`` [n] stands for sign(α − ᾱ) where the caller knows it better than from rounded numbers.

    ``paper`` (default)
        1/(K · count) Σ |α − ᾱ|, once per objective, which sums the tasks (Eq. 3 and its chunk-wise form in
        Section 3.3). γ is then the weight of an average movement of 1 against the sum of all tasks' losses.
    ``authors``
        the weight that the authors' code gives it, where every task's loss brings Σ |α − ᾱ| / (n / K) with it, n
        coefficients in all; ``tasks`` is how many tasks' losses the objective adds up (K unless given). That is K
        · Σ |α − ᾱ| / (n / K) against a sum over the K tasks, about K² times the paper's R for the same γ.
    """
    if kind == "paper":
        weight = 1 / (experts * count)
    elif kind == "authors":
        weight = (experts if tasks is None else tasks) / (len(alpha) / experts)
    else:
        raise ValueError(f"regulariser is '{kind}', not one of {REGULARISERS}")
    distance = alpha - initial
    return weight * distance.abs().sum(), weight * (torch.sign(distance) if side is None else side)


def objective(losses: Mapping[str, Mapping[str, Any]], beta: Mapping[str, float], gamma: float = 0.0, r: Any = 0.0):
    """Σ_k β_k (L_hid^(k) + L_logit^(k)) + γ R(α) (Eq. 3); AdaMerging's Σ_k H^(k) with its one term a task.

    ``losses``: each task's terms, numbers or scalar tensors; ``beta``: β_k by task, 1 where it has none.
    """
    return sum(beta.get(task, 1.0) * sum(terms.values()) for task, terms in losses.items()) + gamma * r


# ---- blocks of the vocabulary
def _held(device: torch.device) -> int:
    return HELD.get(device.type, HELD["cuda"])


def _positions(head: Head, final: torch.Tensor) -> int:
    """How many positions to take at a time: so many that the whole vocabulary is one block, but not too few."""
    return max(LEAST, _held(final.device) // len(head.weight))


class _Blocks:
    """The blocks of a vocabulary, and the gradient with respect to ``final`` summed over them (None: not wanted)."""

    def __init__(self, final: torch.Tensor, head: Head, block: int | None, wanted: bool):
        size = len(head.weight)
        step = block or max(1, _held(final.device) // max(len(final), 1))
        self.ranges = [slice(low, min(low + step, size)) for low in range(0, size, step)]
        self.head, self.final, self.wanted = head, final, wanted
        wide = torch.float64 if final.dtype == torch.float64 else torch.float32
        self.gradient = torch.zeros_like(final, dtype=wide) if self.wanted else None

    def add_gradient(self, rows: slice, of_logits: Callable[[], torch.Tensor]) -> None:
        """Add ∂value/∂z of a block, [N, rows], through the head."""
        if self.wanted:
            weight = self.head.weight[rows].to(self.final.device, self.final.dtype)
            self.gradient += of_logits().to(self.final.dtype) @ weight


class _Kept:
    """What ``make`` gives for each block, made anew in every pass; kept where there is one block only."""

    def __init__(self, make: Callable[[slice], Any], blocks: _Blocks):
        self.ranges = blocks.ranges
        self.make = make
        self.kept = make(self.ranges[0]) if len(self.ranges) == 1 else None

    def __iter__(self) -> Iterator:
        return ((rows, self.make(rows) if self.kept is None else self.kept) for rows in self.ranges)


def _log_add(total: torch.Tensor | None, z: torch.Tensor) -> torch.Tensor:
    found = torch.logsumexp(z, dim=1)
    return found if total is None else torch.logaddexp(total, found)
