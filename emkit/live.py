"""A merged model in memory that can be changed and asked again: for a notebook's dials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from PIL.Image import Image

from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.own.models import Models


class Tensors(Protocol):
    """Whatever gives the merged tensor of a name, as :class:`emkit.api.Merged` does."""

    def __getitem__(self, name: str) -> torch.Tensor: ...


class Live:
    """The base's model in memory, whose merged weights can be set again in milliseconds, and asked."""

    def __init__(self, models: Models, device: str = "cpu"):
        self.vectors, self.backbone = models.vectors, models.backbone
        self.model, self.processor = self.backbone.load(models.folders["base"], device=device)
        parameters = dict(self.model.named_parameters())
        self._parameters = {name: parameters[self.backbone.parameter_name(name)] for name in self.vectors.names}

    @torch.no_grad()
    def set(self, merge: Tensors | Coefficients | Mapping[str, float] | float) -> Live:
        """Give the model these merged weights: a merge, coefficients, or one coefficient for each expert (or for all).

        Of coefficients θ_base + Σ_k α_k τ_k is summed in fp32 and stays so; a merge has the base's dtype.
        """
        vectors = self.vectors
        if isinstance(merge, int | float):
            merge = dict.fromkeys(vectors.experts, float(merge))
        if isinstance(merge, Mapping):
            unknown = [name for name in merge if name not in vectors.experts]
            if unknown:
                raise UserError(f"unknown expert '{unknown[0]}': there are {', '.join(vectors.experts)}")
            each = {name: float(merge.get(name, 0.0)) for name in vectors.experts}
            merge = Coefficients.constant(vectors.names, each)
        for name, parameter in self._parameters.items():
            if isinstance(merge, Coefficients):
                weight = vectors.merged(name, merge.values[name], parameter.dtype)
            else:
                weight = merge[name]
            parameter.copy_(weight)
        return self

    def ask(self, *questions: str, images: Sequence[Image | None] | None = None, max_new_tokens: int = 64) -> list[str]:
        """Greedy answers to single-turn questions, each about an image or none."""
        seen = images or [None] * len(questions)
        return self.backbone.generate(self.model, self.processor, seen, questions, max_new_tokens)
