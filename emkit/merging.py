"""What a method is given and what it gives back, and the merges that several methods share.

Every method is a case of θ_merged = θ_base + combine(transform(τ_1 … τ_K)), made tensor by tensor when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from emkit.alignment.learner import Learned, Learner
from emkit.alignment.options import EngineOptions
from emkit.alignment.sources import Samples
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients, mean_experts, merge_blocks, merge_tensor
from emkit.config import Settings
from emkit.errors import UserError
from emkit.task_vectors import TaskVectors

Tensors = Callable[[str], torch.Tensor]  # makes the tensor of a name when it is asked for
O = TypeVar("O", bound=Settings)  # noqa: E741 - the method's own options


@dataclass(frozen=True, kw_only=True)
class Context(Generic[O]):
    """What a method may use: the checkpoints, opened and compared, and its settings, complete.

    ``scale`` is λ of a method with a free one, or where a fit starts. Methods that fit coefficients also take the
    ``backbone``, the ``calibration`` section, what a fit may use of the machine (``engine``), a folder to keep things
    in (``cache``) and the options of the method that they build on (``first``). ``model`` is the one checkpoint that a
    row without a merge names.
    """

    task_vectors: TaskVectors
    options: O
    scale: float | None = None
    seed: int = 0
    device: str = "cpu"
    backbone: Backbone | None = None
    calibration: Samples | None = None
    first: Settings | None = None
    cache: Path = Path()
    progress: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)
    model: Checkpoint | None = None

    @property
    def base(self) -> Checkpoint:
        return self.task_vectors.base

    def learner(self, task_vectors: TaskVectors | None = None) -> Learner:
        """What fits coefficients for the context's task vectors, or for these."""
        assert self.backbone is not None and self.calibration is not None, "a fit needs a backbone and samples"
        return Learner(
            backbone=self.backbone,
            task_vectors=self.task_vectors if task_vectors is None else task_vectors,
            samples=self.calibration,
            device=self.device,
            seed=self.seed,
            cache=self.cache,
            scale=self.scale,
            progress=self.progress,
            engine=self.engine,
        )

    def needed_scale(self) -> float:
        """λ; ``UserError`` without one."""
        if self.scale is None:
            raise UserError("the method needs a scale: choose it on validation items, or give one")
        return float(self.scale)


@dataclass(frozen=True)
class Merge:
    """A method's result: a function that makes the merged tensor of a name, the checkpoint whose names, shapes, dtypes
    and side files the result has, and, for linear methods, the coefficients; ``learned`` holds what a fit left behind.
    ``calibration`` tells of each task how many samples it was made from, ``identity`` what else than the method's
    options and the models decides it.
    """

    tensors: Tensors
    like: Checkpoint
    coefficients: Coefficients | None = None
    scale: float | None = None
    learned: Learned | None = None
    calibration: dict = field(default_factory=dict)
    identity: dict = field(default_factory=dict)


def replaced(ctx: Context, merge: Tensors) -> Tensors:
    """The base's tensors, with each merged one replaced by ``merge(name)``."""
    merged = set(ctx.task_vectors.names)
    return lambda name: merge(name) if name in merged else ctx.base.read(name)


def linear(
    ctx: Context,
    coefficients: Coefficients,
    scale: float | None = None,
    learned: Learned | None = None,
    task_vectors: TaskVectors | None = None,
) -> Merge:
    """θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} over the merged tensors, the base elsewhere (Eq. 5).

    ``task_vectors`` may be transformed; the context's own are the default.
    """
    source = ctx.task_vectors if task_vectors is None else task_vectors
    tensors = replaced(ctx, lambda name: source.merged(name, coefficients.values[name]))
    return Merge(tensors, ctx.base, coefficients, scale, learned, {} if learned is None else learned.calibration)


def scaled(ctx: Context, task_vectors: TaskVectors | None = None) -> Merge:
    """θ_base + λ Σ_k τ_k: the linear merge with one coefficient for all."""
    scale = ctx.needed_scale()
    coefficients = Coefficients.constant(ctx.task_vectors.names, dict.fromkeys(ctx.task_vectors.experts, scale))
    return linear(ctx, coefficients, scale, task_vectors=task_vectors)


def entrywise(
    ctx: Context, task_vectors: TaskVectors, combine: Callable[[torch.Tensor], torch.Tensor], scale: float
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


class Matrices(Protocol):
    """K matrices, one at a time, gone through as often as it takes; a tensor [K, m, n] is such, too."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[torch.Tensor]: ...


def added(taus: Iterable[torch.Tensor]) -> torch.Tensor:
    """Σ_k τ_k of K ≥ 1 tensors [*shape], taken one at a time."""
    each = iter(taus)
    total = next(each).clone()
    for tau in each:
        total.add_(tau)
    return total


class Taus:
    """The K matrices τ_k of one tensor, read one at a time onto ``device`` whenever they are gone through."""

    def __init__(self, task_vectors: TaskVectors, name: str, device: str = "cpu"):
        self.task_vectors, self.name, self.device = task_vectors, name, device

    def __len__(self) -> int:
        return len(self.task_vectors.experts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (tau.to(self.device) for tau in self.task_vectors.taus(self.name))
