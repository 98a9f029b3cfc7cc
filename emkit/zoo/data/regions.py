"""What stands where in a picture, patch by patch: targets to train a vision tower on before it meets a language model.

A vision tower that learns only through a language model's loss takes most of a small budget to find out that pictures
matter. As the paper's models start from a pre-trained vision tower, a miniature may too, on labels that drawing gives
for free.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from emkit.zoo.data.words import COLORS, GENRES, SHAPES, THINGS

UNITS = 96
_MARKS = ("card", "sign", "bar", "slice", "point", "shaded", "white", "path", "cube", "hour", "minute")


class Region(NamedTuple):
    """A labelled box in units of a 96-unit-wide image; a label is words ("red circle") or one printed character."""

    label: str
    box: tuple[float, float, float, float]


class Picture(NamedTuple):
    """A rendered image, and what stands where in it."""

    image: Image.Image
    regions: tuple[Region, ...]


# For each head its classes; class 0 of every head means "none of these".
HEADS: dict[str, tuple[str, ...]] = {
    "color": ("", *COLORS),
    "kind": ("", *SHAPES, *THINGS, *GENRES, *_MARKS),
    "character": ("", *string.ascii_uppercase, *string.digits, "x"),
}


def patch_targets(
    regions: Iterable[Region], patches: int = 12, shape: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """The class of every patch, for each head of `HEADS`: int64 arrays [patches, patches], row by row.

    `patches` go into 96 units; a picture that is not 96 units a side has `shape` (rows, columns) of them.

    A patch has the class of the region that covers most of it, if that is at least a fifth of the patch; of two that
    cover equally much, the one drawn later.
    """
    shape = shape or (patches, patches)
    targets = {head: np.zeros(shape, dtype=np.int64) for head in HEADS}
    best = {head: np.full(shape, 0.2) for head in HEADS}
    for label, box in regions:
        covered = _covered(box, patches, shape)
        for word in label.split():
            for head, classes in HEADS.items():
                if word in classes:
                    wins = covered >= best[head]
                    targets[head][wins] = classes.index(word)
                    best[head] = np.maximum(best[head], covered)
    return targets


def _covered(box: tuple[float, float, float, float], patches: int, shape: tuple[int, int]) -> np.ndarray:
    """The share of every patch that lies in the box."""
    down, across = (
        _overlap(np.arange(count + 1) * (UNITS / patches), low, high) * patches / UNITS
        for count, low, high in ((shape[0], box[1], box[3]), (shape[1], box[0], box[2]))
    )
    return down[:, None] * across[None, :]


def _overlap(edges: np.ndarray, low: float, high: float) -> np.ndarray:
    """How much of each interval between neighbouring `edges` lies between `low` and `high`."""
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)
