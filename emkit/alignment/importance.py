"""Layer importance and the chunk counts of Expert Merging++ (Section 3.3, Eq. 4). A "layer" is a weight tensor."""

from __future__ import annotations

import math

import numpy as np

from emkit.coefficients import Coefficients, chunk_bounds
from emkit.errors import UserError
from emkit.task_vectors import TaskVectors

NORMALISE = ("per_expert", "joint")


def layer_importance(
    coefficients: Coefficients, task_vectors: TaskVectors, normalise: str = "per_expert"
) -> dict[str, float]:
    """I_ℓ = Norm(Σ_k |α_k^ℓ| s_k^ℓ n_ℓ) of every merged tensor, summing to 1 (Section 3.3).

    α are the coefficients of Expert Merging (one per tensor and expert), s_k^ℓ = mean |τ_k^ℓ| "normalised across
    layers", n_ℓ the number of elements. The paper leaves open what that normalisation runs over:

    ``per_expert`` (default)
        Σ_ℓ s_k^ℓ = 1 for each expert k. It is what s_k^ℓ, defined for one expert, being "normalised across layers"
        says, and an expert that was trained longer does not decide alone which layers matter.
    ``joint``
        one sum over all experts and layers; since I_ℓ is normalised again, this equals no normalisation at all.
    """
    if normalise not in NORMALISE:
        raise ValueError(f"normalise is '{normalise}', not one of {NORMALISE}")
    names = task_vectors.names
    s = np.stack([_mean_magnitude(task_vectors, name) for name in names], axis=1)  # [K, L]
    total = s.sum(axis=1, keepdims=True) if normalise == "per_expert" else np.full((len(s), 1), s.sum())
    if not (total > 0).all():
        raise UserError("an expert equals the base in every merged tensor: its layers have no importance; drop it")
    magnitude = np.stack([np.abs(_single(coefficients, name)) for name in names], axis=1)  # [K, L]
    n = np.array([task_vectors.numel(name) for name in names], dtype=np.float64)
    raw = (magnitude * (s / total)).sum(axis=0) * n
    if raw.sum() == 0:
        raise UserError("all learned coefficients are 0, so no layer has any importance: check the first stage's fit")
    return dict(zip(names, (raw / raw.sum()).tolist(), strict=True))


def _mean_magnitude(task_vectors: TaskVectors, name: str) -> np.ndarray:
    """mean |τ_k| of one tensor for each expert: float64 [K]."""
    return task_vectors.tau(name).abs().flatten(1).double().mean(dim=1).numpy()


def _single(coefficients: Coefficients, name: str) -> np.ndarray:
    value = coefficients.values[name]
    if value.shape[1] != 1:
        raise ValueError(f"'{name}' has {value.shape[1]} chunks; importance is defined from Expert Merging's own α")
    return value[:, 0]


def allocate_chunks(importance: dict[str, float], budget: float, kappa: float) -> dict[str, int]:
    """m_ℓ = ⌊B · I_ℓ^κ / Σ_j I_j^κ⌋ with B = ``budget`` × L coefficients per task (Eq. 4).

    The paper gives B as "close to 1 (0.9–1.2)", that is as a multiple of the number of layers L. What the floor
    leaves over stays unspent, as the equation has it. κ = 0 gives every layer the same count (0⁰ = 1).
    """
    if budget < 0 or kappa < 0:
        raise UserError(f"budget and kappa must not be negative (budget {budget}, kappa {kappa})")
    power = {name: value**kappa for name, value in importance.items()}
    total = math.fsum(power.values())
    if total == 0:
        raise UserError("every layer has importance 0: there is nothing to allocate chunks by")
    b = budget * len(importance)
    # a share that is whole in exact arithmetic must not lose a chunk to the last bit of a float
    return {name: math.floor(b * value / total * (1 + 1e-12)) for name, value in power.items()}


def chunked_start(
    stage1: Coefficients, initial: Coefficients, chunks: dict[str, int], fixed: str, start: str, numel: dict[str, int]
) -> Coefficients:
    """Where the second stage starts: m_ℓ equal coefficients per tensor and expert, fixed ones where m_ℓ = 0.

    Both open choices take ``stage1`` or ``initial``: ``fixed``, the value of tensors without chunks, and ``start``,
    the value that chunks begin at. The authors' code fixes at the initial value. The default here is ``stage1`` for
    both: the floor of Eq. 4 leaves many tensors without a chunk, and putting those back at the initial value throws
    away what Section 4.1 ("we first perform Expert Merging, and then apply Expert Merging++ using the learned
    coefficients") has just learned for them.
    """
    choice = {"stage1": stage1, "initial": initial}
    values = {}
    for name, m in chunks.items():
        value = choice[fixed if m == 0 else start].values[name]
        chunk_bounds(numel[name], max(m, 1))
        values[name] = np.repeat(value, max(m, 1), axis=1)
    return Coefficients(stage1.experts, values, frozenset(name for name, m in chunks.items() if m == 0))
