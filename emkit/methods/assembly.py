"""What the methods share: a model whose merged tensors are replaced one by one, and the linear merge of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from emkit.alignment.learner import Learned
from emkit.coefficients import Coefficients
from emkit.combine.linear import mean_experts, merge_blocks, merge_tensor
from emkit.methods.registry import Context, Merge, Tensors
from emkit.task_vectors import TaskVectors
from emkit.transforms import View


def replaced(ctx: Context, merge: Callable[[str], torch.Tensor]) -> Tensors:
    """The base's tensors, with each merged one replaced by ``merge(name)``."""
    merged = set(ctx.task_vectors.names)
    return lambda name: merge(name) if name in merged else ctx.base.read(name)


def linear(
    ctx: Context,
    coefficients: Coefficients,
    scale: float | None = None,
    learned: Learned | None = None,
    task_vectors: TaskVectors | View | None = None,
) -> Merge:
    """θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} over the merged tensors, the base elsewhere (Eq. 5).

    ``task_vectors`` may be a transformed view; the context's own are the default.
    """
    source = ctx.task_vectors if task_vectors is None else task_vectors
    tensors = replaced(ctx, lambda name: source.merged(name, coefficients.values[name]))
    return Merge(tensors, ctx.base, coefficients, scale, learned)


def entrywise(
    ctx: Context, task_vectors: TaskVectors | View, combine: Callable[[torch.Tensor], torch.Tensor], scale: float
) -> Merge:
    """θ_base + λ · ``combine`` of the K task vectors over the merged tensors, block by block, ``scale`` being λ.

    ``combine`` makes one block [n] of the K task vectors' block [K, n].
    """

    def merge(name: str) -> torch.Tensor:
        block = task_vectors.blocks(name)
        combined = lambda start, stop: [combine(block(start, stop))]  # noqa: E731
        return merge_blocks(ctx.base.read(name), combined, np.array([[scale]]))

    return Merge(replaced(ctx, merge), ctx.base, scale=scale)


def matrices(ctx: Context, combine: Callable[[Taus], torch.Tensor], scale: float) -> Merge:
    """θ_base + λ · ``combine`` of the K matrices τ_k; of other tensors θ_base + λ · mean τ_k, as the authors' code."""

    def merge(name: str) -> torch.Tensor:
        if len(ctx.base.info(name).shape) != 2:
            return averaged(ctx.task_vectors, name, scale)
        combined = combine(Taus(ctx.task_vectors, name, ctx.device)).cpu()
        return merge_tensor(ctx.base.read(name), [combined], np.array([[scale]]))

    return Merge(replaced(ctx, merge), ctx.base, scale=scale)


def averaged(task_vectors: TaskVectors, name: str, scale: float) -> torch.Tensor:
    """θ_base + λ · mean τ_k of one tensor; for λ = 1 bit for bit what Weight Average makes of it."""
    if scale == 1:
        return mean_experts(*task_vectors.read(name))
    return task_vectors.merged(name, np.full((len(task_vectors.experts), 1), scale / len(task_vectors.experts)))


class Taus:
    """The K matrices τ_k of one tensor, read one at a time onto ``device`` whenever they are gone through."""

    def __init__(self, task_vectors: TaskVectors | View, name: str, device: str = "cpu"):
        self.task_vectors, self.name, self.device = task_vectors, name, device

    def __len__(self) -> int:
        return len(self.task_vectors.experts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (tau.to(self.device) for tau in self.task_vectors.taus(self.name))
