"""InternVL2.5 and its miniature: a vision tower, a projector and a Qwen2 language model.

Three layouts of the same tensors exist, and the paper's exclusion patterns are written for the first:

=============== ========================= ========================= =======================================
layout          vision tower              projector                 language model
=============== ========================= ========================= =======================================
original        ``vision_model.``         ``mlp1.{0,1,3}.``         ``language_model.model.layers.``
hub (on disk)   ``vision_tower.``         ``multi_modal_projector.`` ``language_model.model.layers.``
module (memory) ``model.vision_tower.``   ``model.multi_modal_projector.`` ``model.language_model.layers.``
=============== ========================= ========================= =======================================

*hub* is what ``save_pretrained`` writes, *module* what ``named_parameters`` shows. In every layout the merged
tensors are the 7 matrices of each language-model block and the projector's three weights, its LayerNorm included
(``mlp1.0`` slips past the authors' pattern "norm"): 7 × blocks + 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from emkit.backbones.base import BLOCK, Picturing
from emkit.backbones.images import ImageBackbone


class InternVL(ImageBackbone):
    """7 × blocks + 3 merged tensors; ``pixel_values`` fp32 [images, 3, H, W]."""

    kinds = ("internvl", "internvl_chat")
    PICTURES: Mapping[str, Picturing] = MappingProxyType(
        {  # the thumbnail is not counted
            "max_tiles": lambda processor, tiles: {"crop_to_patches": True, "max_patches": tiles}
        }
    )
    MERGED = re.compile(
        rf"(?:language_model\.model|model\.language_model)\.{BLOCK}"
        r"|mlp1\.[013]\.weight|(?:model\.)?multi_modal_projector\.(?:layer_norm|linear_[12])\.weight"
    )

    def parameter_name(self, name: str) -> str:
        """As every backbone's, of the hub layout."""
        if name.startswith("language_model.model."):
            return "model.language_model." + name.removeprefix("language_model.model.")
        return "model." + name if name.startswith(("vision_tower.", "multi_modal_projector.")) else name

    def tower(self, model: Any) -> torch.nn.Module:
        return model.model.vision_tower

    def trainable_image_features(self, model: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """The vision tower's output after pixel shuffle, before the projector: [B, image tokens, 4 × vision width]."""
        (pixel_values,) = inputs
        features = self.tower(model)(pixel_values=pixel_values.to(model.dtype)).last_hidden_state[:, 1:]  # [B, n, d]
        side = int(features.shape[1] ** 0.5)
        features = features.reshape(features.shape[0], side, side, -1)
        features = model.model.pixel_shuffle(features, scale_factor=model.config.downsample_ratio)
        return features.reshape(features.shape[0], -1, features.shape[-1])

    def projected(self, model: Any, features: torch.Tensor) -> torch.Tensor:
        """Through the projector, which is merged: [B, image tokens, text width]."""
        return model.model.multi_modal_projector(features)

    def pooled(self, model: Any, features: list[torch.Tensor]) -> torch.Tensor:
        return self.projected(model, torch.cat(features))
