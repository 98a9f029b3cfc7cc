"""Checkpoints in memory, and awkward task vectors: ties, zeros, vectors, non-square matrices, 16-bit dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from emkit.checkpoints import TensorInfo
from emkit.merging import Context
from emkit.methods import get, resolved
from emkit.task_vectors import TaskVectors

SHAPES = {"a.wide": (6, 11), "b.norm": (9,), "c.tall": (13, 4), "d.square": (8, 8)}


class Memory:
    """What the merging code uses of a :class:`emkit.checkpoints.Checkpoint`."""

    def __init__(self, tensors: dict[str, torch.Tensor], path: str = "memory"):
        self.tensors, self.path, self.reads = tensors, Path(path), []

    @property
    def names(self) -> list[str]:
        return sorted(self.tensors)

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self.tensors[name].dtype, tuple(self.tensors[name].shape))

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.tensors[name]


def task_vectors_of(base: dict, experts: dict[str, dict]) -> TaskVectors:
    """Task vectors of tensors in memory; all tensors are merged."""
    return TaskVectors(Memory(base), {name: Memory(tensors, name) for name, tensors in experts.items()}, list)


def awkward(
    kind: str, experts: int = 3, dtype: torch.dtype = torch.bfloat16, seed: int = 0, shapes=None
) -> TaskVectors:
    """``generic``, ``ties`` (few distinct magnitudes), ``sparse`` (over 80 % zeros), ``zero`` (the first expert is the
    base) or ``copies`` (all experts are the same)."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    base = {name: torch.tensor(rng.normal(size=shape), dtype=dtype) for name, shape in shapes.items()}
    if kind == "ties":  # small integers: sums of task vectors are exactly 0 often, and magnitudes coincide
        base = {name: torch.tensor(rng.integers(-4, 5, shape), dtype=dtype) for name, shape in shapes.items()}
    found: dict[str, dict] = {}
    for k in range(experts):
        tensors = {}
        for name, shape in shapes.items():
            step = rng.normal(size=shape) * 0.2
            if kind == "ties":
                step = rng.integers(-2, 3, shape)
            if kind == "sparse":
                step = step * (rng.random(shape) < 0.1)
            if kind == "zero" and k == 0:
                step = np.zeros(shape)
            tensors[name] = (base[name] + torch.tensor(step)).to(dtype)
        found[f"E{k}"] = found["E0"] if kind == "copies" and k else tensors
    return task_vectors_of(base, found)


def float64_taus(task_vectors: TaskVectors) -> list[dict[str, np.ndarray]]:
    """τ_k by tensor in float64, subtracted in float64: the input of every reference."""
    base = task_vectors.base
    return [
        {name: expert.read(name).double().numpy() - base.read(name).double().numpy() for name in task_vectors.names}
        for expert in task_vectors.checkpoints.values()
    ]


def run(method: str, task_vectors: TaskVectors, scale: float | None = None, seed: int = 0, **options) -> dict:
    """The merged tensors of a method that needs no calibration, in float64; defaults where ``options`` are silent.

    ``scale`` is the free one; ``scale_option`` that which a method's authors fix.
    """
    found = get(method)
    if "scale_option" in options:
        options["scale"] = options.pop("scale_option")
    context = Context(task_vectors=task_vectors, options=resolved(found, options), scale=scale, seed=seed)
    merge = found.run(context)
    merged = {name: merge.tensors(name) for name in merge.like.names}
    assert all(tensor.dtype == task_vectors.base.info(name).dtype for name, tensor in merged.items())
    return {name: tensor.double().numpy() for name, tensor in merged.items()}


def expected(task_vectors: TaskVectors, merged_tau: dict[str, np.ndarray], scale: float = 1.0) -> dict:
    """θ_base + λ · τ_m in float64."""
    base = task_vectors.base
    return {name: base.read(name).double().numpy() + scale * merged_tau[name] for name in task_vectors.names}


def assert_merged(found: dict, wanted: dict, dtype: torch.dtype, atol: float = 2e-6) -> None:
    """Equal but for one rounding to ``dtype`` and a few of fp32."""
    ulp = torch.finfo(dtype).eps
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=ulp, atol=atol, err_msg=name)
