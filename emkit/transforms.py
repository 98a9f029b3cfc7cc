"""Transforms of task vectors before they are combined: DARE's random drop, TIES' trim and sign election.

Each is a view of task vectors that computes a block of entries at a time, so that no view ever holds a whole task
vector, nor more of a tensor than it is asked for. All arithmetic is on the fp32 τ_k; tensors of every number of
dimensions are treated alike, entry by entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from threading import Lock

import numpy as np
import torch

from emkit.blocks import Block, in_blocks
from emkit.combine.linear import merge_blocks
from emkit.task_vectors import TaskVectors


class View:
    """Task vectors seen through a transform: what :class:`TaskVectors` offers, with τ̂_k in place of τ_k."""

    def __init__(self, inner: TaskVectors | View, identity: dict):
        self.inner, self.identity = inner, [*inner.identity, identity]
        self.base, self.checkpoints, self.names, self.experts = (
            inner.base,
            inner.checkpoints,
            inner.names,
            inner.experts,
        )
        self.numel = inner.numel

    def transform(self, name: str, block: Block) -> Block:
        """The blocks of τ̂_k of one tensor, given those of τ_k, whose memory may be overwritten."""
        raise NotImplementedError

    def blocks(self, name: str) -> Block:
        """τ̂_k of one flattened tensor, block by block: ``(start, stop)`` → fp32 [K, stop − start].

        What it takes of the whole tensor, as a threshold, is found here; each block is computed when it is asked for.
        """
        return self.transform(name, self.inner.blocks(name))

    def taus(self, name: str) -> Iterator[torch.Tensor]:
        """τ̂_k of one tensor for each expert in turn (fp32)."""
        return iter(self.tau(name))

    def tau(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """τ̂_k of one tensor for every expert: [K, *shape], computed in fp32 and then of ``dtype``."""
        block, shape = self.blocks(name), self.base.info(name).shape
        device = block(0, 0).device
        tau = torch.empty(len(self.experts), self.numel(name), dtype=dtype, device=device)

        def fill(start: int, stop: int) -> None:
            tau[:, start:stop] = block(start, stop)

        in_blocks(self.numel(name), len(self.experts), device, fill)
        return tau.reshape(len(self.experts), *shape)

    def merged(self, name: str, coefficients: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        """θ_base + Σ_k Σ_s α_{k,s} τ̂_{k,s} of one tensor, in the base's dtype or ``dtype`` (Eq. 5)."""
        base = self.base.read(name)
        return merge_blocks(base if dtype is None else base.to(dtype), self.blocks(name), coefficients)


class Dropped(View):
    """DARE's transform of every τ_k: :func:`drop_and_rescale`."""

    def __init__(self, inner: TaskVectors | View, drop: float, seed: int):
        super().__init__(inner, {"drop": drop, "seed": seed})
        self.drop, self.seed = drop, seed

    def transform(self, name: str, block: Block) -> Block:
        def dropped(start: int, stop: int) -> torch.Tensor:
            tau = block(start, stop)
            for expert, row in zip(self.experts, tau, strict=True):
                row.copy_(drop_and_rescale(row, self.drop, self.seed, expert, name, start))
            return tau

        return dropped


def drop_and_rescale(tau: torch.Tensor, drop: float, seed: int, expert: str, name: str, start: int = 0) -> torch.Tensor:
    """DARE (Yu et al., 2024): τ̂ = m ⊙ τ / (1 − p) with every entry of m 0 with probability p, else 1; E[τ̂] = τ (fp32).

    Entry i is dropped where the i-th 32-bit number of a counter-based generator (Philox) is below p · 2³². Its key is
    a hash of (``seed``, ``expert``, ``name``), so the draw depends neither on the order in which tensors are read nor
    on threads, shards or blocks (``tau`` may be the entries from ``start`` on). p = 0 returns τ itself.

    (mergekit 0.1.5 defines another thing: it rescales by ‖τ‖₁ / ‖m ⊙ τ‖₁, tensor by tensor, and draws from torch's
    global generator, so that its result depends on the order of the tensors.)
    """
    if drop == 0:
        return tau
    bits = random_bits(tau.numel(), seed, expert, name, start=start)
    kept = torch.from_numpy(bits >= np.uint32(min(round(drop * 2.0**32), 2**32 - 1))).to(tau.device)
    mask = kept.view(torch.int8).neg().to(torch.int32).reshape(tau.shape)  # all bits or none
    return (tau / (1 - drop)).view(torch.int32).bitwise_and_(mask).view(torch.float32)


def random_bits(count: int, seed: int, *names: str, start: int = 0) -> np.ndarray:
    """The ``count`` random uint32 from the ``start``-th on of a stream that depends on ``seed`` and ``names`` alone."""
    text = "\0".join([str(seed), *names])
    key = np.frombuffer(hashlib.sha256(text.encode("utf-8")).digest()[:16], dtype="<u8")
    steps, skipped = divmod(start, 8)  # a step of the counter makes eight of them
    raw = np.random.Philox(key=key).advance(steps).random_raw((skipped + count + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]


class Trimmed(View):
    """TIES' first step: of every τ_k only the entries with |τ| ≥ the threshold stay, the others become 0.

    The threshold is the (n − ⌊density · n⌋)-th smallest magnitude, as in the original's code (``≥ kth value``): the
    entry at the threshold and all that tie with it stay, so at least ⌊density · n⌋ + 1 are kept, and where a larger
    part than 1 − ``density`` of the entries is exactly 0 nothing is trimmed. ``scope`` ``model``: one
    threshold a task vector, n its length; ``tensor``: one a tensor. (The Expert Merging authors' code takes the
    ⌊(1 − ``density``) · n⌋-th smallest, so it keeps one entry more where ``density`` · n is no whole number. mergekit
    0.1.5 keeps exactly ⌊density · n⌋ of each tensor, at least one entry fewer, and breaks ties by the order of its
    sort; it subtracts in the base's dtype.)
    """

    def __init__(self, inner: TaskVectors | View, density: float, scope: str = "model"):
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


def magnitude_thresholds(
    task_vectors: TaskVectors | View, density: float, names: Sequence[str] | None = None
) -> np.ndarray:
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
    low, _ = _select(_histogram(task_vectors, names, lambda *row: _count_low(*row, high)), left)
    return ((high << 16) | low).astype(np.uint32).view(np.float32)


def _histogram(task_vectors: TaskVectors | View, names: Sequence[str], count: Callable) -> np.ndarray:
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


class Elected(View):
    """TIES' second step: sign γ = sgn(Σ_k τ̂_k) of every entry, and of each τ̂_k only the entries of that sign.

    Where the sum is exactly 0 the entry takes the majority of all signs, sgn(Σ γ), over the whole vector for ``scope``
    ``model`` and over the tensor for ``tensor``; if that is 0 too the entry stays at the base. The sum is taken in
    float64, so that the order of the experts does not decide a sign. (mergekit takes + where the sum is 0.)

    What is left, trimmed and of one sign but not averaged, is what AdaMerging++ gives its coefficients.
    """

    def __init__(self, inner: TaskVectors | View, scope: str = "model"):
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
