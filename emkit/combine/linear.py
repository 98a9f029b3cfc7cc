"""Linear merging, θ_base + Σ_k α_k τ_k, with one coefficient per tensor or per chunk of it (Eq. 5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from emkit.blocks import Block, in_blocks
from emkit.coefficients import chunk_bounds, chunks_within


def merge_tensor(base: torch.Tensor, tau: Iterable[torch.Tensor], coefficients: np.ndarray) -> torch.Tensor:
    """θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} for task vectors that are given as such (Eq. 5).

    ``base`` [*shape] of any floating dtype, ``tau`` K tensors of that shape, ``coefficients`` [K, m] for m contiguous
    chunks of the flattened tensor. Sums in fp32 (in float64 for a float64 base), rounded once to the base's dtype; a
    coefficient of exactly 0 contributes nothing, so all-zero coefficients return the base bit for bit.
    """
    flat = [term.reshape(-1) for term in tau]
    return merge_blocks(base, lambda start, stop: [term[start:stop] for term in flat], coefficients)


def merge_blocks(base: torch.Tensor, block: Block, coefficients: np.ndarray) -> torch.Tensor:
    """:func:`merge_tensor` for task vectors that exist block by block only.

    ``block(start, stop)`` gives the entries [start, stop) of the K flattened τ_k.
    """
    weights = np.concatenate([np.ones((1, coefficients.shape[1])), coefficients])
    flat = base.reshape(-1)
    return _weighted_sum(base, lambda start, stop: [flat[start:stop], *block(start, stop)], weights)


def merge_experts(base: torch.Tensor, experts: Sequence[torch.Tensor], coefficients: np.ndarray) -> torch.Tensor:
    """The same merge from the experts themselves: (1 − Σ_k α_k) θ_base + Σ_k α_k θ_k.

    Algebraically Eq. 5, and exact where exactness matters. ``θ_base + (θ_k − θ_base)`` in floating point is not θ_k
    when the two are far apart in magnitude (1 + (2⁻³⁰ − 1) is 0 in fp32); here one expert with α = 1 has the weights
    (0, 1), terms with weight 0 are left out, and the sum is θ_k itself, down to the sign of a zero. α = 0 gives the
    base in the same way. The price is a few roundings of fp32 (2⁻²⁴ relative to the weights), far below the one
    rounding to a 16-bit dtype.

    ``base`` [*shape], ``experts`` K tensors of that shape, ``coefficients`` [K, m] float64; returns the base's dtype.
    """
    rest = np.array([[1.0 - float(np.sum(column)) for column in coefficients.T]])
    flat = [term.reshape(-1) for term in (base, *experts)]
    weights = np.concatenate([rest, coefficients])
    return _weighted_sum(base, lambda start, stop: [term[start:stop] for term in flat], weights)


def mean_experts(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weight Average: the mean of the experts, the base not among them; fp32, rounded once to the base's dtype.

    Summed first and divided once, so that equal experts average to themselves bit for bit.
    """
    wide = _wide(base.dtype)
    first, *rest = [expert.reshape(-1) for expert in experts]
    out = torch.empty(base.shape, dtype=base.dtype, device=base.device)

    def mean(start: int, stop: int) -> None:
        total = first[start:stop].to(wide, copy=True)
        for expert in rest:
            total.add_(expert[start:stop].to(wide))
        out.view(-1)[start:stop] = total.div_(len(experts))

    in_blocks(base.numel(), 2, base.device, mean)
    return out


def _weighted_sum(like: torch.Tensor, block: Block, weights: np.ndarray) -> torch.Tensor:
    """Σ_j weights[j, s] · term_j on each chunk s, terms of weight 0 left out; shape, dtype and device of ``like``.

    ``block(start, stop)`` gives these entries of the flattened terms.
    """
    wide = _wide(like.dtype)
    bounds = chunk_bounds(like.numel(), weights.shape[1])
    columns = weights.T.tolist()
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device)

    def merge(start: int, stop: int) -> None:
        terms, merged = block(start, stop), out.view(-1)[start:stop]
        for s, part in chunks_within(bounds, start, stop):
            total = None
            for term, weight in zip(terms, columns[s], strict=True):
                if weight == 0.0:
                    continue
                product = term[part].to(wide, copy=True)
                if weight != 1.0:
                    product.mul_(weight)
                total = product if total is None else total.add_(product)
            merged[part] = 0 if total is None else total

    in_blocks(like.numel(), len(weights), like.device, merge)
    return out


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
