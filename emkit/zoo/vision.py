"""Teach the vision tower to see before it meets the language model.

The paper's models start from a pre-trained vision tower; a miniature's is pre-trained here, on what drawing gives for
free: for each 8 × 8 patch its colour, the kind of thing it belongs to, and the printed character it shows. Part of each
batch are sheets of random characters (``emkit.zoo.data.sheets``), because signs and covers alone show too few. The
linear heads that read this off are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn.functional import cross_entropy

from emkit.zoo.data.regions import HEADS, UNITS, patch_targets
from emkit.zoo.data.sheets import sheet
from emkit.zoo.images import Patches, Squares
from emkit.zoo.train import WHOLE, Share, descend

EYES = "vision.safetensors"  # the trained tower, in the work folder
NOTHING = 0.2  # weight of a patch that shows none of a head's classes: most patches are such


@dataclass
class PatchSet:
    """Images and, for each head, the class of each of their patches: int8 [patches] for each image, in the order in
    which the tower has them. The first ``drawn`` images are the sub-tasks' own, the others sheets of characters."""

    images: Squares | Patches
    targets: dict[str, list[np.ndarray]]
    drawn: int

    def rows(self, batch: int, sheets: float, entropy: list[int]) -> np.ndarray:
        """``batch`` images, the share ``sheets`` of them sheets, by a generator keyed by ``entropy``."""
        rng = np.random.default_rng(entropy)
        wanted = round(batch * sheets)
        own = rng.choice(self.drawn, batch - wanted)
        return np.concatenate([own, self.drawn + rng.choice(len(self.images) - self.drawn, wanted)])


def patch_set(recipe: dict, drawn: list, size: int | str, made: Callable[[list], Squares | Patches]) -> PatchSet:
    """The images of the examples ``drawn`` and of sheets of ``size`` (see ``emkit.zoo.data.example``), with classes.

    ``made`` turns pictures into what the family's tower takes.
    """
    sheets = [sheet(recipe["data_seed"], index, size) for index in range(recipe["vision"]["sheets"])]
    seen, side = [*drawn, *sheets], recipe["model"]["patch_size"]
    images = made([picture.image for picture in seen])
    targets: dict[str, list[np.ndarray]] = {head: [] for head in HEADS}
    for picture in seen:
        shape = picture.image.height // side, picture.image.width // side
        for head, classes in patch_targets(picture.regions, UNITS // side, shape).items():
            targets[head].append(images.laid_out(classes).astype(np.int8))
    return PatchSet(images, targets, len(drawn))


class PatchReader(nn.Module):
    """A vision tower with a linear head for each of ``HEADS`` on every patch.

    ``look(tower, *inputs)`` gives what the tower makes of each patch: [patches of all images, width].
    """

    def __init__(self, tower: nn.Module, look: Callable[..., torch.Tensor]):
        super().__init__()
        width = tower.config.embed_dim if hasattr(tower.config, "embed_dim") else tower.config.hidden_size
        self.tower = tower
        self.look = look
        self.heads = nn.ModuleDict({head: nn.Linear(width, len(classes)) for head, classes in HEADS.items()})

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.look(self.tower, *inputs)
        return {head: linear(seen) for head, linear in self.heads.items()}


def pretrain(
    tower: nn.Module,
    look: Callable[..., torch.Tensor],
    data: PatchSet,
    settings: dict,
    seed: int,
    state: Path,
    progress: Callable[[int, float], None],
    share: Share = WHOLE,
) -> list[dict]:
    """Train ``tower`` in place on patch labels; returns the log (see ``emkit.zoo.train.descend``).

    ``look`` is that of :class:`PatchReader`.
    """
    torch.manual_seed(seed + 500)
    reader = PatchReader(tower, look)

    def loss_at(step: int) -> torch.Tensor:
        rows = share.of(data.rows(settings["batch"], settings["sheet_share"], [seed, step, 2]))
        read = reader(*data.images.inputs(rows))
        shown = {head: np.concatenate([data.targets[head][row] for row in rows]) for head in HEADS}
        return sum(_loss(read[head], torch.from_numpy(shown[head]).long()) for head in HEADS)

    return descend(reader, loss_at, settings, state, progress, share)


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over patches [P, C] against [P], patches of class 0 counting less."""
    weight = torch.ones(logits.shape[-1])
    weight[0] = NOTHING
    return cross_entropy(logits, targets, weight=weight)


def see_first(
    tower: nn.Module,
    look: Callable[..., torch.Tensor],
    data: PatchSet | None,
    settings: dict,
    seed: int,
    work: Path,
    bar,
    share: Share,
) -> None:
    """:func:`pretrain` unless ``data`` is None (it was done); then every process reads the tower from ``work``."""
    if data is not None:
        with bar("vision", settings["steps"], share) as progress:
            pretrain(tower, look, data, settings, seed, work / "vision.pt", progress, share)
        if share.rank == 0:
            save_file(tower.state_dict(), work / "vision.part")
            (work / "vision.part").replace(work / EYES)
    if share.world > 1:
        distributed.barrier()
    tower.load_state_dict(load_file(work / EYES))
