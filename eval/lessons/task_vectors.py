"""What task vectors are like: their sizes, the angles between them, and merges made of changed ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from emkit.backbones.base import Backbone
from emkit.errors import UserError
from emkit.schema import nearest
from emkit.task_vectors import TaskVectors
from eval.lessons.probe import Zoo


def pair(zoo: Zoo, first: str = "", second: str = "") -> tuple[str, str]:
    """Two experts by name; where none is named, the last two. ``UserError`` for unknown ones, or one twice."""
    if len(zoo.names) < 2:
        raise UserError(f"a plane takes two experts: the profile has {zoo.names[0]} alone")
    chosen = (first or zoo.names[-2], second or zoo.names[-1])
    for name in chosen:
        if name not in zoo.names:
            raise UserError(f"there is no expert '{name}': {nearest(name, zoo.names)}")
    if chosen[0] == chosen[1]:
        raise UserError(f"a plane takes two experts: {chosen[0]} is named twice")
    return chosen


def matrix(zoo: Zoo, name: str = "") -> str:
    """The merged matrix called ``name``; for "" the one of a middle block that is nearest to a square."""
    vectors, backbone = zoo.experts.vectors, _backbone(zoo)
    shapes = {found: vectors.base.info(found).shape for found in vectors.names}
    known = {found: shape for found, shape in shapes.items() if len(shape) == 2}
    if name:
        if name not in known:
            raise UserError(f"'{name}' is no merged matrix: {nearest(name, known)}")
        return name
    middle = backbone.merged_block(list(known)[len(known) // 2])
    same = [found for found in known if backbone.merged_block(found) == middle]
    return min(same, key=lambda found: (max(known[found]) / min(known[found]), -vectors.numel(found)))


def _backbone(zoo: Zoo) -> Backbone:
    assert zoo.experts.models is not None  # which a profile's checkpoints always have
    return zoo.experts.models.backbone


def sizes(vectors: TaskVectors) -> pd.DataFrame:
    """‖θ_base‖, ‖τ_k‖ (Frobenius) and their ratio of every merged tensor and expert: a row each, tensor by tensor."""
    rows = []
    for name in vectors.names:
        base = float(vectors.base.read(name).double().norm())
        for expert, tau in zip(vectors.experts, vectors.taus(name), strict=True):
            rows.append((name, expert, base, float(tau.double().norm())))
    frame = pd.DataFrame(rows, columns=["tensor", "expert", "base", "tau"])
    return frame.assign(relative=frame["tau"] / frame["base"])


def whole(frame: pd.DataFrame) -> pd.Series:
    """‖τ_k‖ / ‖θ_base‖ of all merged tensors as one vector, by expert, from :func:`sizes`."""
    squares = frame[["base", "tau"]].pow(2).groupby(frame["expert"], sort=False).sum()
    return (squares["tau"] / squares["base"]).pow(0.5).rename("‖τ‖ / ‖θ_base‖")


def products(vectors: TaskVectors) -> pd.DataFrame:
    """⟨τ_j, τ_k⟩ of all merged tensors as one vector, summed in float64: K × K."""
    total = np.zeros((len(vectors.experts), len(vectors.experts)))
    for name in vectors.names:
        tau = vectors.tau(name).flatten(1).double()
        total += (tau @ tau.T).numpy()
    return pd.DataFrame(total, vectors.experts, vectors.experts)


def cosines(products: pd.DataFrame) -> pd.DataFrame:
    """cos(τ_j, τ_k) = ⟨τ_j, τ_k⟩ / (‖τ_j‖ ‖τ_k‖) from :func:`products`: K × K."""
    norms = np.sqrt(np.diag(products))
    return products / np.outer(norms, norms)


def contained(products: pd.DataFrame) -> pd.Series:
    """How often the sum of all task vectors contains each: ⟨Σ_j τ_j, τ_k⟩ / ‖τ_k‖² (1: exactly as if it were alone)."""
    return (products.sum() / np.diag(products)).rename("⟨Σ τ, τ_k⟩ / ‖τ_k‖²")


def chance(vectors: TaskVectors) -> float:
    """1/√d, the standard deviation of the cosine of two random vectors of the task vectors' length d."""
    return float(sum(map(vectors.numel, vectors.names)) ** -0.5)


@dataclass(frozen=True)
class Changed:
    """Merged tensors θ_base + ``change(τ)``, made when they are asked for: what a live model can be set to.

    ``change`` makes of K task vectors of one tensor, fp32 [K, *shape], what is added to the base, [*shape].
    """

    vectors: TaskVectors
    change: Callable[[torch.Tensor], torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.vectors.base.read(name).float() + self.change(self.vectors.tau(name))


def shuffled(tau: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The entries of ``tau`` in a random order: the same size and the same numbers in another direction, [*shape]."""
    order = torch.randperm(tau.numel(), generator=torch.Generator().manual_seed(seed))
    return tau.reshape(-1)[order].reshape(tau.shape)


# ----------------------------------------------------------------------------------------------------------- sentences
def say_cosines(found: pd.DataFrame, by_chance: float) -> str:
    """What the angles of one zoo say, as Markdown."""
    apart = found.to_numpy()[np.triu_indices(len(found), 1)]
    return (
        f"The cosines of two different task vectors lie between {apart.min():.2f} and {apart.max():.2f}; of two random "
        f"vectors of this length they would be within ±{2 * by_chance:.4f} nearly always. The largest stands for an "
        f"angle of {np.degrees(np.arccos(apart.max())):.0f}°."
    )
