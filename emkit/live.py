"""A merged model in memory that can be changed and asked again: for a notebook's dials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from PIL.Image import Image

from emkit.alignment.arithmetic import Arithmetic
from emkit.alignment.memory import available
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import place, wide_dtype
from emkit.coefficients import Coefficients, chunk_bounds
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
        free = available()  # task vectors stay in memory where half of what is free holds them
        self._placement = place(self.vectors, self.model, EngineOptions(memory=None if free is None else free // 2))
        self._arithmetic = Arithmetic(device, wide_dtype(self.model))

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
                value = merge.values[name]  # [K, m]
                bounds = chunk_bounds(parameter.numel(), value.shape[1])
                rows, alpha = self._placement.rows(name), torch.from_numpy(value).to(parameter.device)
                self._arithmetic.merge(rows, alpha, bounds, parameter.data.view(-1))
            else:
                parameter.copy_(merge[name])
        return self

    def ask(self, *questions: str, images: Sequence[Image | None] | None = None, max_new_tokens: int = 64) -> list[str]:
        """Greedy answers to single-turn questions, each about an image or none."""
        seen = images or [None] * len(questions)
        return self.backbone.generate(self.model, self.processor, seen, questions, max_new_tokens)
