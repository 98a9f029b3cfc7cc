"""Coefficients, what every linear method has and what a fit learns, and the merge that they make (Eq. 5)."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from emkit import foreign, pictures
from emkit.blocks import Terms, in_blocks
from emkit.errors import UserError
from emkit.files import write_json


def chunk_bounds(numel: int, chunks: int) -> list[int]:
    """Bounds b_0 = 0 … b_m = ``numel`` of m contiguous chunks of a flattened tensor: chunk s is [b_s, b_{s+1}).

    Sizes differ by at most one and every element is in exactly one chunk. (``torch.chunk``, which the authors use,
    may return fewer chunks than asked, which leaves coefficients without an effect.) ``UserError`` for more chunks
    than elements.
    """
    if not 1 <= chunks <= max(numel, 1):
        raise UserError(f"a tensor of {numel} elements cannot be split into {chunks} chunks: lower the budget or kappa")
    return [s * numel // chunks for s in range(chunks + 1)]


def chunks_within(bounds: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """The chunks s that the entries [``start``, ``stop``) reach into (see :func:`chunk_bounds`), with their places
    relative to ``start``."""
    s = bisect.bisect_right(bounds, start) - 1
    while s < len(bounds) - 1 and bounds[s] < stop:
        yield s, slice(max(bounds[s], start) - start, min(bounds[s + 1], stop) - start)
        s += 1


@dataclass
class Coefficients:
    """α of every merged tensor: ``values[name]`` is float64 [K, m], one row an expert, one column a chunk.

    Tensors in ``fixed`` keep their single coefficient per expert in a fit (Eq. 4 gave them m = 0 chunks).
    """

    experts: tuple[str, ...]
    values: dict[str, np.ndarray]
    fixed: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self):
        for name, value in self.values.items():
            if value.ndim != 2 or value.shape[0] != len(self.experts) or value.shape[1] < 1:
                raise ValueError(f"'{name}': coefficients of shape {value.shape} for {len(self.experts)} experts")
            if name in self.fixed and value.shape[1] != 1:
                raise ValueError(f"'{name}' is fixed but has {value.shape[1]} chunks")

    @classmethod
    def constant(cls, names: Iterable[str], initial: Mapping[str, float]) -> Coefficients:
        """One coefficient per tensor and expert, ``initial[expert]`` everywhere (Task Arithmetic's λ)."""
        column = np.array([[value] for value in initial.values()], dtype=np.float64)
        return cls(tuple(initial), {name: column.copy() for name in names})

    @property
    def trainable(self) -> dict[str, bool]:
        """Tensor name → whether a fit may change its coefficients."""
        return {name: name not in self.fixed for name in self.values}

    def flat(self) -> np.ndarray:
        """The trainable coefficients as one float64 vector: tensor by tensor, expert by expert, chunk by chunk."""
        parts = [self.values[name].reshape(-1) for name in self.values if name not in self.fixed]
        return np.concatenate(parts) if parts else np.zeros(0)

    def with_flat(self, vector: np.ndarray) -> Coefficients:
        """A copy whose trainable coefficients are taken from ``vector`` (see :meth:`flat`)."""
        values, at = {}, 0
        for name, value in self.values.items():
            if name in self.fixed:
                values[name] = value.copy()
                continue
            values[name] = np.asarray(vector[at : at + value.size], dtype=np.float64).reshape(value.shape).copy()
            at += value.size
        if at != len(vector):
            raise ValueError(f"{len(vector)} values for {at} trainable coefficients")
        return Coefficients(self.experts, values, self.fixed)

    def flat_experts(self) -> np.ndarray:
        """For each entry of :meth:`flat` the index k of its expert (int64)."""
        k = np.arange(len(self.experts))
        parts = [np.repeat(k, self.values[name].shape[1]) for name in self.values if name not in self.fixed]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def expand(self, name: str, numel: int) -> np.ndarray:
        """The coefficient of every element of the flattened tensor: float64 [K, numel]."""
        value = self.values[name]
        return np.repeat(value, np.diff(chunk_bounds(numel, value.shape[1])), axis=1)

    def grid(self) -> tuple[list[str], list[str], np.ndarray]:
        """Blocks, kinds of tensors, and each expert's coefficients as float64 [K, blocks, kinds] (:func:`by_block`); a
        tensor of several chunks counts with their mean."""
        each = [
            pictures.by_block({name: float(value[k].mean()) for name, value in self.values.items()})
            for k in range(len(self.experts))
        ]
        return each[0][0], each[0][1], np.stack([cells for _, _, cells in each])

    def plot(self):
        """A heat map of blocks and kinds of tensors for each expert, as a matplotlib figure."""
        rows, columns, values = self.grid()
        return pictures.maps(self.experts, rows, columns, values, "coefficient α")

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return pictures.png(self.plot())

    def to_json(self) -> dict:
        """A JSON value; floats are written so that they read back exactly. Tensor order is kept."""
        return {
            "experts": list(self.experts),
            "tensors": [
                {"name": name, "fixed": name in self.fixed, "values": value.tolist()}
                for name, value in self.values.items()
            ],
        }

    @classmethod
    def from_json(cls, value: dict) -> Coefficients:
        """The inverse of :meth:`to_json`."""
        tensors = value["tensors"]
        return cls(
            tuple(value["experts"]),
            {t["name"]: np.array(t["values"], dtype=np.float64) for t in tensors},
            frozenset(t["name"] for t in tensors if t["fixed"]),
        )

    def save(self, path: str | Path) -> None:
        """Write the JSON file ``path``, atomically."""
        for name, value in self.values.items():
            if not np.isfinite(value).all():
                raise UserError(f"the coefficients of '{name}' are not finite: the fit diverged; lower its lr")
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Coefficients:
        """Read what :meth:`save` wrote; ``UserError`` if the file is missing or something else."""
        try:
            found = cls.from_json(foreign.mapping(Path(path)))
        except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no file of merging coefficients ({error}): fit them again") from error
        if not all(math.isfinite(x) for value in found.values.values() for x in value.flat):
            raise UserError(f"{path} holds coefficients that are not finite: fit them again")
        return found


def merge_tensor(base: torch.Tensor, tau: Iterable[torch.Tensor], coefficients: np.ndarray) -> torch.Tensor:
    """θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} for task vectors that are given as such (Eq. 5).

    ``base`` [*shape] of any floating dtype, ``tau`` K tensors of that shape, ``coefficients`` [K, m] for m contiguous
    chunks of the flattened tensor. Sums in fp32 (in float64 for a float64 base), rounded once to the base's dtype; a
    coefficient of exactly 0 contributes nothing, so all-zero coefficients return the base bit for bit.
    """
    flat = [term.reshape(-1) for term in tau]
    return merge_blocks(base, lambda start, stop: [term[start:stop] for term in flat], coefficients)


def merge_blocks(base: torch.Tensor, block: Terms, coefficients: np.ndarray) -> torch.Tensor:
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


def _weighted_sum(like: torch.Tensor, block: Terms, weights: np.ndarray) -> torch.Tensor:
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
