"""A training set's images in memory, as the two kinds of vision tower take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as the processors normalise them (mean and deviation 0.5): fp32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1.0


@dataclass
class Squares:
    """N images of one size: ``pixels`` uint8 [N, 3, H, W]. What a tower makes of them is [N, …]."""

    pixels: torch.Tensor

    @classmethod
    def of(cls, images: Sequence[Image]) -> Squares:
        """RGB images, all of one size."""
        pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
        return cls(torch.from_numpy(np.ascontiguousarray(pixels)))

    def __len__(self) -> int:
        return len(self.pixels)

    def inputs(self, rows: np.ndarray) -> tuple[torch.Tensor]:
        """What the vision tower takes for these images."""
        return (normalised(self.pixels[rows]),)

    def pick(self, results: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """The results of these images."""
        return results[rows]

    def laid_out(self, classes: np.ndarray) -> np.ndarray:
        """[rows, columns] of an image's patches in the order in which a tower has them: [patches]."""
        return classes.reshape(-1)


@dataclass
class Patches:
    """N images of any size, cut into patches in the order in which Qwen2-VL's processor has them, ``merge`` × ``merge``
    of one token together.

    ``pixels``: uint8 [patches of all, 3, side, side], image by image; ``grids`` int64 [N, 3]: one, rows and columns of
    patches. What a tower makes of them is [tokens of all, D], image by image.
    """

    pixels: torch.Tensor
    grids: torch.Tensor
    merge: int
    temporal: int

    @classmethod
    def of(cls, images: Sequence[Image], side: int, merge: int, temporal: int) -> Patches:
        """RGB images whose sides are multiples of ``merge`` patches of ``side`` pixels; an image lasts ``temporal``
        frames, all alike."""
        cut = [torch.from_numpy(np.array(image)) for image in images]
        grids = [(1, len(image) // side, image.shape[1] // side) for image in cut]
        pixels = [
            image.reshape(h // merge, merge, side, w // merge, merge, side, 3)
            .permute(0, 3, 1, 4, 6, 2, 5)
            .reshape(-1, 3, side, side)
            for image, (_, h, w) in zip(cut, grids, strict=True)
        ]
        return cls(torch.cat(pixels), torch.tensor(grids), merge, temporal)

    def __post_init__(self) -> None:
        self.ends = np.concatenate([[0], self.grids.prod(1).cumsum(0).numpy()])  # of each image's patches, after a zero

    def __len__(self) -> int:
        return len(self.grids)

    def inputs(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """What the vision tower takes for these images: patches fp32 [patches of all, 3 · temporal · side²], grids."""
        patches = normalised(self._of(self.pixels, rows))
        return patches.unsqueeze(2).expand(-1, -1, self.temporal, -1, -1).flatten(1), self.grids[rows]

    def pick(self, results: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """The results of these images, one after the other."""
        return self._of(results, rows, self.merge**2)

    def _of(self, things: torch.Tensor, rows: np.ndarray, patches: int = 1) -> torch.Tensor:
        """Of things that stand image by image, one for so many ``patches``, those of these images."""
        ends = self.ends // patches
        return torch.cat([things[ends[row] : ends[row + 1]] for row in rows])

    def laid_out(self, classes: np.ndarray) -> np.ndarray:
        """[rows, columns] of an image's patches in the order in which a tower has them: [patches]."""
        h, w = classes.shape
        m = self.merge
        return classes.reshape(h // m, m, w // m, m).transpose(0, 2, 1, 3).reshape(-1)
