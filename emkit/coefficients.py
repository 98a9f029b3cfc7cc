"""Coefficients: what every linear method has and what a fit learns."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
    """The chunks s that the entries [``start``, ``stop``) reach into, with their places relative to ``start``."""
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
            found = cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no file of merging coefficients ({error}): fit them again") from error
        if not all(math.isfinite(x) for value in found.values.values() for x in value.flat):
            raise UserError(f"{path} holds coefficients that are not finite: fit them again")
        return found
