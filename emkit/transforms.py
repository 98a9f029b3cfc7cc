"""Transforms of task vectors before they are combined: DARE's random drop, TIES' trim and sign election.

Each is a view of task vectors that computes one tensor of one expert at a time, so that no view ever holds a whole
task vector. All arithmetic is on the fp32 τ_k; tensors of every number of dimensions are treated alike, entry by
entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from emkit.combine.linear import merge_tensor
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
        self._held: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None

    def transform(self, name: str) -> Iterator[torch.Tensor]:
        """τ̂_k of one tensor for each expert in turn (fp32)."""
        raise NotImplementedError

    def taus(self, name: str) -> Iterator[torch.Tensor]:
        """:meth:`transform`, from memory where the view is held."""
        return iter(self._held[name][1]) if self._held is not None else self.transform(name)

    def tau(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """τ̂_k of one tensor for every expert: [K, *shape], computed in fp32 and then of ``dtype``."""
        return torch.stack(list(self.taus(name))).to(dtype)

    def merged(self, name: str, coefficients: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        """θ_base + Σ_k Σ_s α_{k,s} τ̂_{k,s} of one tensor, in the base's dtype or ``dtype`` (Eq. 5)."""
        base = self.base.read(name) if self._held is None else self._held[name][0]
        return merge_tensor(base if dtype is None else base.to(dtype), self.taus(name), coefficients)

    def hold(self, device: str | torch.device = "cpu") -> None:
        """Keep θ_base and all τ̂_k in memory, on ``device``: what a fit reads at every step."""
        if self._held is None:
            self._held = {name: (self.base.read(name).to(device), self.tau(name).to(device)) for name in self.names}


class Dropped(View):
    """DARE's transform of every τ_k: :func:`drop_and_rescale`."""

    def __init__(self, inner: TaskVectors | View, drop: float, seed: int):
        super().__init__(inner, {"drop": drop, "seed": seed})
        self.drop, self.seed = drop, seed

    def transform(self, name: str) -> Iterator[torch.Tensor]:
        for expert, tau in zip(self.experts, self.inner.taus(name), strict=True):
            yield drop_and_rescale(tau, self.drop, self.seed, expert, name)


def drop_and_rescale(tau: torch.Tensor, drop: float, seed: int, expert: str, name: str) -> torch.Tensor:
    """DARE (Yu et al., 2024): τ̂ = m ⊙ τ / (1 − p) with every entry of m 0 with probability p, else 1; E[τ̂] = τ.

    Entry i is dropped where the i-th 32-bit number of a counter-based generator (Philox) is below p · 2³². Its key is
    a hash of (``seed``, ``expert``, ``name``), so the draw depends neither on the order in which tensors are read nor
    on threads or shards. p = 0 returns τ itself.

    (mergekit 0.1.5 defines another thing: it rescales by ‖τ‖₁ / ‖m ⊙ τ‖₁, tensor by tensor, and draws from torch's
    global generator, so that its result depends on the order of the tensors.)
    """
    if drop == 0:
        return tau
    bits = random_bits(tau.numel(), seed, expert, name)
    kept = torch.from_numpy(bits >= np.uint32(min(round(drop * 2.0**32), 2**32 - 1))).to(tau.device)
    return torch.where(kept.reshape(tau.shape), tau / (1 - drop), torch.zeros((), dtype=tau.dtype, device=tau.device))


def random_bits(count: int, seed: int, *names: str) -> np.ndarray:
    """``count`` random uint32 that depend on ``seed`` and ``names`` alone."""
    text = "\0".join([str(seed), *names])
    key = np.frombuffer(hashlib.sha256(text.encode("utf-8")).digest()[:16], dtype="<u8")
    raw = np.random.Philox(key=key).random_raw((count + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[:count]


class Trimmed(View):
    """TIES' first step: of every τ_k only the entries with |τ| ≥ the threshold stay, the others become 0.

    The threshold is the ⌊(1 − density) · n⌋-th smallest magnitude, as in the original's code (``≥ kth value``): the
    entry at the threshold and all that tie with it stay, so at least one more than ``density`` · n is kept, and where
    a larger part than 1 − ``density`` of the entries is exactly 0 nothing is trimmed. ``scope`` ``model``: one
    threshold a task vector, n its length; ``tensor``: one a tensor. (mergekit 0.1.5 keeps exactly ⌊density · n⌋ of
    each tensor, at least one entry fewer, and breaks ties by the order of its sort; it subtracts in the base's dtype.)
    """

    def __init__(self, inner: TaskVectors | View, density: float, scope: str = "model"):
        super().__init__(inner, {"density": density, "scope": scope})
        self.density = density
        self._whole = magnitude_thresholds(inner, density) if scope == "model" else None

    def transform(self, name: str) -> Iterator[torch.Tensor]:
        for k, tau in enumerate(self.inner.taus(name)):
            threshold = tensor_threshold(tau, self.density) if self._whole is None else float(self._whole[k])
            yield torch.where(tau.abs() >= threshold, tau, torch.zeros((), dtype=tau.dtype, device=tau.device))


def _rank(entries: int, density: float) -> int:
    """k of the k-th smallest magnitude, as the original's code rounds it; 0: everything stays."""
    return int(entries * (1 - density))


def tensor_threshold(tau: torch.Tensor, density: float) -> float:
    """The k-th smallest magnitude of one tensor, k = ⌊(1 − density) · n⌋ (0 for k = 0)."""
    k = _rank(tau.numel(), density)
    return float(tau.abs().reshape(-1).kthvalue(k).values) if k else 0.0


BINS = 2**16


def magnitude_thresholds(task_vectors: TaskVectors | View, density: float) -> np.ndarray:
    """The k-th smallest magnitude of every whole task vector: fp32 [K]; exact, without concatenating or sorting it.

    The bits of a non-negative fp32 number, read as an integer, are in the numbers' order. A first pass over the
    tensors counts the high 16 bits of all magnitudes, which gives the bin that holds the k-th; a second one counts
    the low 16 bits within that bin. Memory: two histograms a task vector, whatever its length.
    """
    total = sum(task_vectors.numel(name) for name in task_vectors.names)
    left = np.full(len(task_vectors.experts), _rank(total, density), dtype=np.int64)
    if not left.any():
        return np.zeros(len(left), dtype=np.float32)
    high, left = _select(_histogram(task_vectors, lambda bits, k: bits >> 16), left)
    low, _ = _select(_histogram(task_vectors, lambda bits, k: (bits & 0xFFFF)[bits >> 16 == int(high[k])]), left)
    return ((high << 16) | low).astype(np.uint32).view(np.float32)


def _histogram(task_vectors: TaskVectors | View, digits) -> np.ndarray:
    """How often each 16-bit digit of the magnitudes' bits occurs: int64 [K, 2¹⁶]."""
    counts = np.zeros((len(task_vectors.experts), BINS), dtype=np.int64)
    for name in task_vectors.names:
        for k, tau in enumerate(task_vectors.taus(name)):
            bits = tau.float().abs().reshape(-1).view(torch.int32)
            counts[k] += torch.bincount(digits(bits, k), minlength=BINS).cpu().numpy()
    return counts


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
            self._majority = int(np.sign(sum(int(self._signs(name).sum()) for name in self.names)))

    def _signs(self, name: str) -> torch.Tensor:
        """sgn(Σ_k τ̂_k), still 0 where the sum is: int64 [*shape]."""
        total = 0
        for tau in self.inner.taus(name):
            total = total + tau.double()
        return torch.sign(total).long()

    def transform(self, name: str) -> Iterator[torch.Tensor]:
        signs = self._signs(name)
        majority = self._majority if self._majority is not None else int(torch.sign(signs.sum()))
        signs[signs == 0] = majority
        for tau in self.inner.taus(name):
            agrees = (torch.sign(tau).long() == signs) & (signs != 0)
            yield torch.where(agrees, tau, torch.zeros((), dtype=tau.dtype, device=tau.device))
