"""What a backbone's ``forward`` returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Output:
    """``logits`` [B, S, V] (or [N, V] at selected positions) and ``hidden`` [B, S, d], both in the model's dtype."""

    logits: torch.Tensor | None
    hidden: torch.Tensor | None
