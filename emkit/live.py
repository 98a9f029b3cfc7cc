"""A merged model in memory that can be changed and asked again: for a notebook's dials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image

from emkit.alignment.arithmetic import Arithmetic
from emkit.alignment.memory import available
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import place, wide_dtype
from emkit.coefficients import Coefficients, chunk_bounds
from emkit.errors import UserError
from emkit.own.models import Models

KEPT = 16  # sets of encoded chats


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
        merged = {parameter.data_ptr() for parameter in self._parameters.values()}
        tower = self.backbone.vision_state(self.model).values()
        self._sees_alike = merged.isdisjoint(tensor.data_ptr() for tensor in tower)  # whatever is merged
        self._encoded: dict[tuple, tuple] = {}

    @torch.no_grad()
    def set(self, merge: Tensors | Coefficients | Mapping[str, float] | float) -> Live:
        """Give the model these merged weights: a merge, coefficients, or one coefficient for each expert (or for all);
        an expert that is left out has 0.

        Of coefficients θ_base + Σ_k α_k τ_k is summed in fp32 and stays so; a merge has the base's dtype.
        """
        vectors = self.vectors
        if isinstance(merge, int | float):
            merge = dict.fromkeys(vectors.experts, float(merge))
        if isinstance(merge, Mapping):
            self._check(merge)
            each = {name: float(merge.get(name, 0.0)) for name in vectors.experts}
            merge = Coefficients.constant(vectors.names, each)
        elif isinstance(merge, Coefficients):
            self._check(merge.experts)
        for name, parameter in self._parameters.items():
            if isinstance(merge, Coefficients):
                value = self._of_each(merge, name)  # [K, m]
                bounds = chunk_bounds(parameter.numel(), value.shape[1])
                rows, alpha = self._placement.rows(name), torch.from_numpy(value).to(parameter.device)
                self._arithmetic.merge(rows, alpha, bounds, parameter.data.view(-1))
            else:
                parameter.copy_(merge[name])
        return self

    def _check(self, experts: Iterable[str]) -> None:
        """``UserError`` for an expert that there is not."""
        for name in experts:
            if name not in self.vectors.experts:
                raise UserError(f"unknown expert '{name}': there are {', '.join(self.vectors.experts)}")

    def _of_each(self, merge: Coefficients, name: str) -> np.ndarray:
        """One tensor's coefficients in the order of the live experts, 0 for those that ``merge`` leaves out."""
        value = merge.values[name]
        rows = dict(zip(merge.experts, value, strict=True))
        return np.stack([rows.get(expert, np.zeros(value.shape[1])) for expert in self.vectors.experts])

    def ask(self, *questions: str, images: Sequence[Image | None] | None = None, max_new_tokens: int = 64) -> list[str]:
        """Greedy answers to single-turn questions, each about an image or none."""
        seen = images or [None] * len(questions)
        return self.backbone.generate(self.model, self.processor, seen, questions, max_new_tokens)

    @torch.no_grad()
    def losses(
        self, questions: Sequence[str], answers: Sequence[str], images: Sequence[Image | None] | None = None
    ) -> list[torch.Tensor]:
        """−ln p of every token of each answer, its end token included, given the question and the tokens before it.

        Nats, fp32 [tokens] for each answer; the chat is encoded as a fit encodes a response. All go through the model
        in one batch. Encoded chats, and image features where no tensor of the tower is merged, are kept for the next
        merge that is asked the same.
        """
        batch, features = self._chats(tuple(questions), tuple(answers), list(images or [None] * len(questions)))
        spoken = batch["response_mask"]
        ahead = F.pad(spoken[:, 1:], (0, 1))  # the places that predict a token of the answer
        logits = self.backbone.forward(self.model, batch, features, positions=ahead).logits.float()
        surprise = F.cross_entropy(logits, batch["input_ids"][spoken], reduction="none").cpu()
        return list(surprise.split(spoken.sum(1).tolist()))

    def _chats(self, questions: tuple[str, ...], answers: tuple[str, ...], images: list[Image | None]) -> tuple:
        """Encoded chats and image features (None: they may differ next time); the last few are kept."""
        key = (questions, answers, tuple(map(id, images)))
        if key not in self._encoded:
            batch = self.backbone.encode(self.processor, images, questions, answers)
            batch = {name: value.to(self.model.device) for name, value in batch.items()}
            seen = [batch.get(name) for name in self.backbone.VISION]
            features = self.backbone.image_features(self.model, *seen) if self._sees_alike else None
            while len(self._encoded) >= KEPT:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = batch, features, images  # the images, so that no other gets their ids
        return self._encoded[key][:2]
