"""Mistral, and every language model with the Llama layout of a block: 7 merged matrices, q, k, v, o, gate, up, down.

It is :mod:`emkit.backbones.causal_lm` with the rule of merged tensors written out, as the paper's other backbones have
it. (The paper's Mistral code is unpublished; the exclusion patterns of the others give these 7 × 32 = 224.)
"""

from __future__ import annotations

import re

from emkit.backbones.base import BLOCK
from emkit.backbones.causal_lm import CausalLM


class Mistral(CausalLM):
    """7 × blocks merged tensors."""

    MERGED = re.compile(rf"model\.{BLOCK}")
