"""Qwen2-VL: a vision tower that takes images of any size, and a Qwen2 language model with three-part positions.

Three layouts of the same tensors exist:

=============== ============================ ================================= ==============================
layout          vision tower                 language model                    head
=============== ============================ ================================= ==============================
hub (on disk)   ``visual.``                  ``model.layers.``                 ``lm_head.``
older hub       ``model.visual.``            ``model.language_model.layers.``  ``lm_head.``
module (memory) ``model.visual.``            ``model.language_model.layers.``  ``lm_head.``
=============== ============================ ================================= ==============================

*hub* is what ``save_pretrained`` writes and the published checkpoints have; transformers 4.52 and a few later versions
wrote the module's names. In every layout the merged tensors are the 7 matrices of each language-model block: 7 ×
blocks. The vision tower, its merger included, stays at the base's values.

An image of h × w patches takes h·w/4 tokens. Their positions have three parts, time, row and column, and the text
after an image goes on from the largest of them (m-RoPE).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from emkit.backbones.base import BLOCK, Batch, Images, Picturing, Texts
from emkit.backbones.images import ImageBackbone


class Qwen2VL(ImageBackbone):
    """7 × blocks merged tensors. Of the images, row of row: ``pixel_values`` fp32 [patches of all images, patch size]
    and ``image_grid_thw`` int64 [images, 3]."""

    kinds = ("qwen2_vl",)
    VISION = ("pixel_values", "image_grid_thw")
    PICTURES: Mapping[str, Picturing] = MappingProxyType(
        {  # bounds of what an image is scaled to
            "min_pixels": lambda processor, pixels: {"size": dict(processor.size) | {"shortest_edge": pixels}},
            "max_pixels": lambda processor, pixels: {"size": dict(processor.size) | {"longest_edge": pixels}},
        }
    )
    MERGED = re.compile(rf"model\.(?:language_model\.)?{BLOCK}")

    def parameter_name(self, name: str) -> str:
        """As every backbone's, of either hub layout."""
        if name.startswith("visual."):
            return "model." + name
        if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
            return "model.language_model." + name.removeprefix("model.")
        return name

    def tower(self, model: Any) -> torch.nn.Module:
        return model.model.visual

    def trainable_image_features(self, model: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """What tower and merger make of images: [image tokens of all images, text width], image by image."""
        pixel_values, grids = inputs
        return self.tower(model)(pixel_values.to(model.dtype), grid_thw=grids.to(model.device)).pooler_output

    def encode(self, processor: Any, images: Images, questions: Texts, responses: Texts | None = None) -> Batch:
        """As every backbone's, and ``mm_token_type_ids`` int64 [B, S] (1: of an image) and ``position_ids`` int64
        [3, B, S]."""
        batch = super().encode(processor, images, questions, responses)
        grids = batch.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.int64))
        types, mask = batch["mm_token_type_ids"], batch["attention_mask"]
        return {**batch, "position_ids": positions_3d(types, mask, grids, processor.image_processor.merge_size)}

    def asked(self, model: Any, batch: Batch, features: list[torch.Tensor] | None) -> dict[str, Any]:
        """Without positions: transformers counts on from its own."""
        rest = {name: value for name, value in batch.items() if name != "position_ids"}
        return super().asked(model, rest, features)


def positions_3d(types: torch.Tensor, mask: torch.Tensor, grids: torch.Tensor, merge: int) -> torch.Tensor:
    """m-RoPE positions [3, B, S]: text counts on in all three parts, an image's tokens have its own time, row, column.

    ``types`` and ``mask`` int64 [B, S] (1: image; 0: padding), ``grids`` int64 [images, 3]: time, rows and columns of
    patches, ``merge`` × ``merge`` of which are one token. After an image the text goes on from its start plus the
    larger of its sides in tokens. Padded places have position 0.
    """
    out = torch.zeros(3, *types.shape, dtype=torch.int64)
    remaining = iter(grids.tolist())
    for row in range(len(types)):
        kinds = types[row][mask[row].bool()].tolist()
        parts, at, next_position = [], 0, 0
        while at < len(kinds):
            if kinds[at] == 1:
                t, h, w = next(remaining)
                h, w = h // merge, w // merge
                axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
                parts.append(torch.stack(axes).reshape(3, -1) + next_position)
                at, next_position = at + t * h * w, next_position + max(h, w)
            else:
                parts.append(torch.full((3, 1), next_position))
                at, next_position = at + 1, next_position + 1
        out[:, row, mask[row].bool()] = torch.cat(parts, dim=1)
    return out
