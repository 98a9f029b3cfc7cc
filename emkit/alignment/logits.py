"""KL and entropy of next-token distributions from final hidden states, by blocks of the vocabulary.

Logits are z = W h + b with a head W [V, d] that is not trained. Holding z for N positions and its softmax takes many
times the memory of everything else (N × V fp32 numbers). Here positions are taken some at a time, and for those a first
pass over blocks of W finds the log-sum-exps, a second one the values and at once their gradients with respect to h,
[N, d]. Where the whole vocabulary fits one block, its logits are computed once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

HELD = {"cpu": 2**21, "cuda": 2**25}  # numbers of a block of logits: 8 and 128 MiB of fp32
LEAST = 128  # positions taken at a time, if there are so many


@dataclass(frozen=True)
class Head:
    """The map from final hidden states to logits: ``weight`` [V, d] and ``bias`` [V] or None, of any float dtype."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def on(self, device: torch.device, dtype: torch.dtype) -> Head:
        """The same head there and so, for many calls of :meth:`logits`."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return Head(self.weight.to(device, dtype), bias)

    def logits(self, final: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """z [N, rows] of ``final`` [N, d], computed in its dtype, as fp32 (float64 stays)."""
        weight = self.weight[rows].to(final.device, final.dtype)
        bias = None if self.bias is None else self.bias[rows].to(final.device, final.dtype)
        return _wide(torch.nn.functional.linear(final, weight, bias))


@contextlib.contextmanager
def headless(model: torch.nn.Module) -> Iterator[Head]:
    """Inside, the model's logits are its final hidden states; yields the head that makes logits of them.

    So every backbone's ``forward`` gives final states at the positions asked, and none needs to know of it.
    """
    layer = model.get_output_embeddings()
    model.set_output_embeddings(torch.nn.Identity())
    try:
        yield Head(layer.weight.detach(), None if getattr(layer, "bias", None) is None else layer.bias.detach())
    finally:
        model.set_output_embeddings(layer)


def alignment(
    final: torch.Tensor,
    head: Head,
    teacher_final: torch.Tensor,
    teacher_head: Head,
    temperature: float = 1.0,
    block: int | None = None,
) -> torch.Tensor:
    """T² · KL(softmax(z^(k)/T) ‖ softmax(z/T)) of each position (Eq. 2): [N, d] and [N, d_k] → [N].

    :func:`emkit.alignment.objectives.logit_alignment` of the two models' logits, differentiable in ``final``.
    """
    parts = zip(*(h.split(_positions(head, final)) for h in (final, teacher_final)), strict=True)
    return torch.cat([_Alignment.apply(h, head, hk, teacher_head, temperature, block) for h, hk in parts])


def entropy(final: torch.Tensor, head: Head, block: int | None = None) -> torch.Tensor:
    """H = −Σ_v p_v log p_v of each position: [N, d] → [N]; :func:`emkit.alignment.objectives.entropy` of the logits."""
    parts = final.split(_positions(head, final))
    return torch.cat([_Entropy.apply(h, head, block) for h in parts])


def _held(device: torch.device) -> int:
    return HELD.get(device.type, HELD["cuda"])


def _positions(head: Head, final: torch.Tensor) -> int:
    """How many positions to take at a time: so many that the whole vocabulary is one block, but not too few."""
    return max(LEAST, _held(final.device) // len(head.weight))


class _Alignment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, final, head, teacher_final, teacher_head, temperature, block):
        blocks = _Blocks(final, head, block, ctx.needs_input_grad[0])
        pairs = _Kept(
            lambda rows: (
                head.logits(final, rows) / temperature,
                teacher_head.logits(teacher_final, rows) / temperature,
            ),
            blocks,
        )
        student_sum = teacher_sum = None
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


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, final, head, block):
        blocks = _Blocks(final, head, block, ctx.needs_input_grad[0])
        logits = _Kept(lambda rows: head.logits(final, rows), blocks)
        total = None
        for _, z in logits:
            total = _log_add(total, z)
        values = torch.zeros_like(total)
        for _, z in logits:
            logq = z - total[:, None]
            values -= (logq.exp() * logq).sum(dim=1)
        for rows, z in logits if blocks.wanted else ():
            logq = z - total[:, None]
            blocks.add_gradient(rows, lambda logq=logq: -logq.exp() * (logq + values[:, None]))
        ctx.save_for_backward(blocks.gradient)
        ctx.dtype = final.dtype
        return values

    @staticmethod
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        return ((gradient * grad[:, None]).to(ctx.dtype), None, None)


class _Blocks:
    """The blocks of a vocabulary, and the gradient with respect to ``final`` summed over them (None: not wanted)."""

    def __init__(self, final: torch.Tensor, head: Head, block: int | None, wanted: bool):
        size = len(head.weight)
        step = block or max(1, _held(final.device) // max(len(final), 1))
        self.ranges = [slice(low, min(low + step, size)) for low in range(0, size, step)]
        self.head, self.final, self.wanted = head, final, wanted
        self.gradient = torch.zeros_like(final, dtype=_wide(final[:0]).dtype) if self.wanted else None

    def add_gradient(self, rows: slice, of_logits) -> None:
        """Add ∂value/∂z of a block, [N, rows], through the head."""
        if self.wanted:
            weight = self.head.weight[rows].to(self.final.device, self.final.dtype)
            self.gradient += of_logits().to(self.final.dtype) @ weight


class _Kept:
    """What ``make`` gives for each block, made anew in every pass; kept where there is one block only."""

    def __init__(self, make, blocks: _Blocks):
        self.ranges = blocks.ranges
        self.make = make
        self.kept = make(self.ranges[0]) if len(self.ranges) == 1 else None

    def __iter__(self) -> Iterator:
        return ((rows, self.make(rows) if self.kept is None else self.kept) for rows in self.ranges)


def _log_add(total: torch.Tensor | None, z: torch.Tensor) -> torch.Tensor:
    found = torch.logsumexp(z, dim=1)
    return found if total is None else torch.logaddexp(total, found)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()
