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
from torch import nn
from torch.nn.functional import cross_entropy

from emkit.zoo.data.regions import HEADS, Picture, patch_targets
from emkit.zoo.image_training import normalised, stacked_pixels
from emkit.zoo.train import WHOLE, Share, descend

NOTHING = 0.2  # weight of a patch that shows none of a head's classes: most patches are such


@dataclass
class PatchSet:
    """``pixels`` uint8 [N, 3, H, W] and ``targets`` int64 [N, patches²] for each head; the first ``drawn`` of the N
    images are the sub-tasks' own, the others sheets of characters."""

    pixels: torch.Tensor
    targets: dict[str, torch.Tensor]
    drawn: int

    def rows(self, batch: int, sheets: float, entropy: list[int]) -> np.ndarray:
        """``batch`` images, the share ``sheets`` of them sheets, by a generator keyed by ``entropy``."""
        rng = np.random.default_rng(entropy)
        wanted = round(batch * sheets)
        own = rng.choice(self.drawn, batch - wanted)
        return np.concatenate([own, self.drawn + rng.choice(len(self.pixels) - self.drawn, wanted)])


def patch_set(drawn: list, sheets: list[Picture], patches: int) -> PatchSet:
    """The images of the examples ``drawn`` and of ``sheets`` with the classes of their patches."""
    seen = [*drawn, *sheets]
    targets = [patch_targets(picture.regions, patches) for picture in seen]
    stacked = {h: torch.from_numpy(np.stack([t[h] for t in targets]).reshape(len(seen), -1)) for h in HEADS}
    return PatchSet(stacked_pixels([picture.image for picture in seen]), stacked, len(drawn))


class PatchReader(nn.Module):
    """The tower with a linear head for each of ``HEADS`` on every patch."""

    def __init__(self, tower: nn.Module, width: int):
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleDict({head: nn.Linear(width, len(classes)) for head, classes in HEADS.items()})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]
        return {head: linear(seen) for head, linear in self.heads.items()}


def pretrain(
    model,
    data: PatchSet,
    settings: dict,
    seed: int,
    state: Path,
    progress: Callable[[int, float], None],
    share: Share = WHOLE,
) -> list[dict]:
    """Train ``model``'s vision tower in place on patch labels; returns the log (see ``emkit.zoo.train.descend``)."""
    torch.manual_seed(seed + 500)
    reader = PatchReader(model.model.vision_tower, model.config.vision_config.hidden_size)

    def loss_at(step: int) -> torch.Tensor:
        rows = share.of(data.rows(settings["batch"], settings["sheet_share"], [seed, step, 2]))
        read = reader(normalised(data.pixels[rows]))
        return sum(_loss(read[head], data.targets[head][rows]) for head in HEADS)

    reader.train()
    log = descend(reader, loss_at, settings, state, progress, share)
    reader.eval()
    return log


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over patches [B, P, C] against [B, P], patches of class 0 counting less."""
    weight = torch.ones(logits.shape[-1])
    weight[0] = NOTHING
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), weight=weight)
