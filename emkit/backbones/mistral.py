"""Mistral, and every language model with the Llama layout of a block: 7 merged matrices, q, k, v, o, gate, up, down.

It is :mod:`emkit.backbones.causal_lm` with the rule of merged tensors written out, as the paper's other backbones have
it. (The paper's Mistral code is unpublished; the exclusion patterns of the others give these 7 × 32 = 224.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from emkit.backbones.causal_lm import (
    VISION,
    blocks,
    encode,
    forward,
    generate,
    image_features,
    load,
    parameter_name,
    vision_state,
)

__all__ = [
    "VISION",
    "blocks",
    "encode",
    "forward",
    "generate",
    "image_features",
    "load",
    "merged_names",
    "parameter_name",
    "vision_state",
]

_MERGED = re.compile(
    r"model\.layers\.(?P<block>\d+)\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)\.weight"
)


def merged_names(names: Iterable[str]) -> list[str]:
    """The tensors that merging touches, block by block: 7 × blocks names."""
    found = [(int(match["block"]), name) for name in names if (match := _MERGED.fullmatch(name))]
    return [name for _, name in sorted(found)]
