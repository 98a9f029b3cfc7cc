"""Image features of a benchmark's items, computed once for all rows whose models see alike.

Merging leaves the vision tower alone, so every merge of a zoo gives an image the same features up to the projector;
on a small machine they are half the price of an answer. A protocol asks for them with ``keep_image_features`` (they
take space: tiles × tokens × width for every item). They belong to a tower, a file of items and a state of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from emkit.checkpoints import sha256_tensors
from emkit.files import atomic_write, lock, read_kept, sha256_json

TILES = 64  # in one pass of the tower


def kept(
    folder: Path, identity: dict, backbone: ModuleType, model, processor, images: Sequence[Image]
) -> Callable[[int, int], torch.Tensor]:
    """``features(start, stop)`` of ``images``, as :func:`emkit.backbones.internvl.generate` takes them.

    Read from ``folder`` when a file there has the key of this tower and ``identity`` (a JSON value: items, versions),
    else computed and written; a file that cannot be read is written again. fp32 or the model's dtype, on its device.
    """
    tower = sha256_tensors(sorted(backbone.vision_state(model).items()))
    key = sha256_json({**identity, "tower": tower, "dtype": str(model.dtype)})
    path = folder / f"{key[:32]}.safetensors"
    with lock(path.with_suffix(".lock")):
        found = read_kept(path, load_file)
        if found is None:
            found = _compute(backbone, model, processor, images)
            with atomic_write(path) as part:
                save_file(found, part)
    starts = found["starts"].tolist()
    return lambda start, stop: found["features"][starts[start] : starts[stop]].to(model.device)


def _compute(backbone: ModuleType, model, processor, images: Sequence[Image]) -> dict[str, torch.Tensor]:
    """``features`` [tiles of all images, tokens, D] and ``starts`` [images + 1]: where each image's tiles begin."""
    tiles = [backbone.encode(processor, [image], [""])["pixel_values"] for image in images]
    counts = torch.tensor([0, *(len(of_image) for of_image in tiles)])
    parts = [backbone.image_features(model, part.to(model.device)).cpu() for part in torch.cat(tiles).split(TILES)]
    return {"features": torch.cat(parts).contiguous(), "starts": counts.cumsum(0)}
