"""TIES Merging: θ_base + λ τ_m with τ_m the mean of the trimmed τ_k's entries of the elected sign (Yadav et al., 2023).

Trim every τ_k to its largest entries, elect a sign for each entry by the sum over the experts, and average what has
that sign. Tensors of every number of dimensions are treated alike, and a threshold over the whole vector counts them
all. Only merged tensors make up "the whole vector" (the original merges, and counts, every parameter).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Literal

import numpy as np
import torch

from emkit.blocks import Block, in_blocks
from emkit.config import Settings, option
from emkit.merging import Context, Merge, entrywise
from emkit.methods import method
from emkit.task_vectors import TaskVectors, Transformed

Scope = Literal["model", "tensor"]
How = Literal["mean", "sum"]


# ---- the formula, on whole task vectors
def ties(taus: torch.Tensor, density: float = 0.2, merge: How = "mean") -> torch.Tensor:
    """τ_m of K task vectors: [K, *shape] → [*shape]; what ``taus`` holds is "the whole vector"."""
    return disjoint_merge(elect(trim(taus, density)), merge)


def trim(taus: torch.Tensor, density: float) -> torch.Tensor:
    """Of each τ_k the entries with |τ| ≥ its (n − ⌊density · n⌋)-th smallest magnitude, else 0: [K, *shape]."""
    magnitudes = taus.abs().flatten(1)  # [K, n]
    k = magnitudes.shape[1] - int(magnitudes.shape[1] * density)
    if k == 0:
        return taus
    threshold = magnitudes.sort(dim=1).values[:, k - 1]  # [K]
    return torch.where(magnitudes >= threshold[:, None], taus.flatten(1), 0).reshape(taus.shape)


def elect(taus: torch.Tensor) -> torch.Tensor:
    """Of each τ_k the entries of the sign γ = sgn(Σ_k τ_k), else 0; where the sum is 0, γ is the majority of all signs:
    [K, *shape]."""
    sign = taus.double().sum(dim=0).sign()  # [*shape]
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    return torch.where(taus.sign() == sign, taus, 0)


def disjoint_merge(selected: Iterable[torch.Tensor], merge: How = "mean") -> torch.Tensor:
    """τ_m = Σ_{k ∈ A} τ̂_k / |A| with A the experts whose entry is not 0 (Yadav et al., 2023); 0 for A = ∅.

    ``selected`` gives K fp32 tensors [*shape] that are trimmed and of the elected sign; the result is fp32 [*shape].
    ``mean`` divides by |A|, as the original does; ``sum`` does not, as in the code of AdaMerging's authors and in
    fusion_bench, so that its λ is smaller by about |A|.
    """
    each = iter(selected)
    total = next(each).clone()
    count = total.sign().abs_()
    for tau in each:
        total.add_(tau)
        if merge == "mean":
            count.add_(tau.sign().abs_())
    return total.div_(count.clamp_(min=1)) if merge == "mean" else total


# ---- the same, block by block
class Trimmed(Transformed):
    """TIES' first step: of every τ_k only the entries with |τ| ≥ the threshold stay, the others become 0.

    The threshold is the (n − ⌊density · n⌋)-th smallest magnitude, as in the original's code (``≥ kth value``): the
    entry at the threshold and all that tie with it stay, so at least ⌊density · n⌋ + 1 are kept, and where a larger
    part than 1 − ``density`` of the entries is exactly 0 nothing is trimmed. ``scope`` ``model``: one
    threshold a task vector, n its length; ``tensor``: one a tensor. (The Expert Merging authors' code takes the
    ⌊(1 − ``density``) · n⌋-th smallest, so it keeps one entry more where ``density`` · n is no whole number. mergekit
    0.1.5 keeps exactly ⌊density · n⌋ of each tensor, at least one entry fewer, and breaks ties by the order of its
    sort; it subtracts in the base's dtype.)
    """

    def __init__(self, inner: TaskVectors, density: float, scope: str = "model"):
        super().__init__(inner, {"density": density, "scope": scope})
        self.density = density
        self._whole = magnitude_thresholds(inner, density, inner.names) if scope == "model" else None

    def transform(self, name: str, block: Block) -> Block:
        found = magnitude_thresholds(self.inner, self.density, [name]) if self._whole is None else self._whole
        # |τ| ≥ t as |τ| > the number before t, which torch has as one operation; None: everything is ≥ 0
        below = [float(np.nextafter(t, np.float32(0))) if t > 0 else None for t in found]

        def trimmed(start: int, stop: int) -> torch.Tensor:
            tau = block(start, stop)
            for row, limit in zip(tau, below, strict=True):
                if limit is not None:
                    torch.hardshrink(row, limit, out=row)
            return tau

        return trimmed


BINS = 2**16


def magnitude_thresholds(task_vectors: TaskVectors, density: float, names: Sequence[str] | None = None) -> np.ndarray:
    """The k-th smallest magnitude of every task vector, k = n − ⌊density · n⌋ (0 for k = 0): fp32 [K].

    The task vectors are those of the tensors ``names`` (all, unless given) and n their length. Nothing is
    concatenated or sorted: the bits of a non-negative fp32 number, read as an integer, are in the numbers' order. A
    first pass over the tensors counts the high 16 bits of all magnitudes, which gives the bin that holds the k-th; a
    second one counts the low 16 bits within that bin. Memory: two histograms a task vector, whatever its length.
    """
    names = task_vectors.names if names is None else names
    total = sum(task_vectors.numel(name) for name in names)
    left = np.full(len(task_vectors.experts), total - int(total * density), dtype=np.int64)  # as the original rounds
    if not left.any():
        return np.zeros(len(left), dtype=np.float32)
    high, left = _select(_histogram(task_vectors, names, _count_high), left)
    low, _ = _select(_histogram(task_vectors, names, lambda row, k: _count_low(row, k, high)), left)
    return ((high << 16) | low).astype(np.uint32).view(np.float32)


def _histogram(task_vectors: TaskVectors, names: Sequence[str], count: Callable) -> np.ndarray:
    """What ``count(magnitudes, counts, k)`` adds up over all blocks of the tensors: int64 [K, 2¹⁶]."""
    counts = np.zeros((len(task_vectors.experts), BINS), dtype=np.int64)
    locks = [Lock() for _ in counts]
    for name in names:
        block = task_vectors.blocks(name)

        def add(start: int, stop: int, block: Block = block) -> None:
            for k, row in enumerate(block(start, stop).abs_()):
                bins, times = count(row, k)
                with locks[k]:
                    counts[k, bins] += times

        in_blocks(task_vectors.numel(name), len(counts), block(0, 0).device, add)
    return counts


def _count_high(magnitudes: torch.Tensor, k: int) -> tuple[slice, np.ndarray]:
    """Bins and how often the high 16 bits of the magnitudes fall into them."""
    times = torch.bincount(magnitudes.view(torch.int32) >> 16, minlength=BINS // 2).cpu().numpy()
    return slice(0, BINS // 2), times  # the sign bit is 0


def _count_low(magnitudes: torch.Tensor, k: int, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins and how often the low 16 bits of the magnitudes whose high ones are ``high[k]`` fall into them."""
    above = magnitudes.cpu().numpy().view(np.uint32) - np.uint32(high[k] << 16)  # what lies below wraps around
    return np.unique(above[above < BINS], return_counts=True)


def _select(counts: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin that holds the ``rank``-th entry (from 1) of each histogram, and the entry's rank within that bin."""
    sums = counts.cumsum(axis=1)
    chosen = (sums < rank[:, None]).sum(axis=1)
    rows = np.arange(len(rank))
    return chosen, rank - (sums[rows, chosen] - counts[rows, chosen])


class Elected(Transformed):
    """TIES' second step: sign γ = sgn(Σ_k τ̂_k) of every entry, and of each τ̂_k only the entries of that sign.

    Where the sum is exactly 0 the entry takes the majority of all signs, sgn(Σ γ), over the whole vector for ``scope``
    ``model`` and over the tensor for ``tensor``; if that is 0 too the entry stays at the base. The sum is taken in
    float64, so that the order of the experts does not decide a sign. (mergekit takes + where the sum is 0.)

    What is left, trimmed and of one sign but not averaged, is what AdaMerging++ gives its coefficients.
    """

    def __init__(self, inner: TaskVectors, scope: str = "model"):
        super().__init__(inner, {"elected": scope})
        self._majority = None
        if scope == "model":
            self._majority = int(np.sign(sum(self._votes(name, inner.blocks(name)) for name in self.names)))

    def _votes(self, name: str, block: Block) -> int:
        """Σ γ over one tensor."""
        if len(self.experts) == 1:
            return 0  # a sum of one is 0 only where there is nothing to elect
        votes = []  # whole numbers: their sum has no order

        def count(start: int, stop: int) -> None:
            votes.append(int(_signs(block(start, stop)).sum(dtype=torch.float64)))

        in_blocks(self.numel(name), len(self.experts), block(0, 0).device, count)
        return sum(votes)

    def transform(self, name: str, block: Block) -> Block:
        majority = int(np.sign(self._votes(name, block))) if self._majority is None else self._majority

        def elected(start: int, stop: int) -> torch.Tensor:
            tau = block(start, stop)
            signs = _signs(tau).mul_(2).add_(majority).sign_()  # the majority where the sum is 0
            # γ τ̂ is positive where the signs agree; + 0 turns a negative zero into the zero of an entry left out
            return tau.mul_(signs).clamp_(min=0).mul_(signs).add_(0.0)

        return elected


def _signs(tau: torch.Tensor) -> torch.Tensor:
    """sgn(Σ_k τ̂_k) of a block [K, n], 0 where the sum is: fp32 [n]."""
    total = tau[0].double()
    for row in tau[1:]:
        total.add_(row.double())
    return total.sign_().float()


# ---- options and registration
class Selection(Settings):
    """Which entries of the task vectors TIES selects."""

    density: float = option(
        0.2,
        "part of every task vector that the trim keeps",
        "original: the top 20 %, and the paper's code",
        ge=1e-4,
        le=1,
    )
    scope: Scope = option(
        "model",
        "threshold and majority sign over the whole task vector (model) or in each tensor by itself (tensor). The "
        "Qwen2-VL code of its experts' authors and mergekit take tensor, which keeps 20 % of every tensor however "
        "little it moved",
        "original's definition, the paper's code and the InternVL code of its experts' authors",
    )


class Ties(Selection):
    """Options of TIES Merging."""

    merge: How = option(
        "mean",
        "mean of the agreeing entries, or their sum, as AdaMerging's authors and fusion_bench. The best λ differs "
        "between them by up to K",
        "original and the paper's code",
    )


SCALE = option(
    1.0,
    "λ, what the merged task vector is scaled by",
    "TIES' authors: 1 without a validation set, because agreeing entries are averaged, not added",
)


def merged(ctx: Context, task_vectors: TaskVectors, options: Ties, trimmed: bool = True) -> Merge:
    """θ_base + λ τ_m, streamed; ``trimmed``: whether ``task_vectors`` are still to be trimmed."""
    scale = ctx.needed_scale()  # before the passes over all tensors that the threshold takes
    kept = Trimmed(task_vectors, options.density, options.scope) if trimmed else task_vectors
    return entrywise(ctx, Elected(kept, options.scope), lambda tau: disjoint_merge(tau, options.merge), scale)


@method("ties", options=Ties, scale=SCALE, parts=(ties, Trimmed, Elected, disjoint_merge))
def merge(ctx: Context[Ties]) -> Merge:
    return merged(ctx, ctx.task_vectors, ctx.options)
