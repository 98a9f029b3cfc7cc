"""A base and its experts for the Python API, by folder, hub id or state dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emkit import backbones, words
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.live import Live
from emkit.own import models
from emkit.state_dicts import StateDict
from emkit.task_vectors import TaskVectors

Model = str | Path | Mapping[str, torch.Tensor]  # a folder, a hub id, or a state dict


class Experts:
    """A base and its experts, opened and compared once: what any number of merges start from.

    ``experts`` maps a name to a model (a LoRA adapter's folder may be one), or lists models, which are then called by
    their folders' names. ``tensors``: those that the backbone's rule merges, or ``all``. ``backbone``: how they are
    called; state dicts are taken for language models unless it says otherwise. ``UserError`` for models that do not
    fit.
    """

    def __init__(
        self,
        base: Model,
        experts: Mapping[str, Model] | Sequence[Model],
        *,
        backbone: str = models.AUTO,
        tensors: str = "backbone",
        allow: Sequence[str] = (),
    ):
        given = {"base": base, **_named(experts)}
        dicts = {label: model for label, model in given.items() if isinstance(model, Mapping)}
        if dicts and len(dicts) < len(given):
            raise UserError("some models are state dicts and some are folders: give all in the same way")
        self.models: models.Models | None = None
        self.asked: dict[str, Any] = {"backbone": backbone, "tensors": tensors, "allow": list(allow)}
        if dicts:
            self.backbone = "causal_lm" if backbone == models.AUTO else backbone
            self.vectors = _vectors({label: StateDict(t, label) for label, t in dicts.items()}, self.backbone, tensors)
        else:
            names = {label: str(model) for label, model in given.items()}
            described = models.describe(names, models.folders_of(names), **self.asked)
            self.models = models.open_models(described, words.say)
            self.backbone, self.vectors = described.backbone, self.models.vectors
        self.labels = self.vectors.experts

    def tau(self, name: str) -> torch.Tensor:
        """τ_k of one merged tensor for every expert: fp32 [K, *shape]."""
        return self.vectors.tau(name)

    def live(self, device: str = "cpu") -> Live:
        """The base's model in memory, to be given merged weights and asked."""
        if self.models is None:
            raise UserError("a state dict cannot be asked: give the models' folders or hub ids")
        return Live(self.models, device)

    def __repr__(self) -> str:
        return f"Experts({', '.join(self.labels)}; {len(self.vectors.names)} merged tensors)"


def _named(experts: Mapping[str, Model] | Sequence[Model]) -> dict[str, Model]:
    if isinstance(experts, Mapping):
        return dict(experts)
    named: dict[str, Model] = {}
    for number, model in enumerate(experts, 1):
        label = f"expert{number}" if isinstance(model, Mapping) else Path(str(model).partition("@")[0]).name
        if label in named:
            raise UserError(f"two experts are called '{label}': give a mapping from names to models")
        named[label] = model
    return named


def _vectors(opened: Mapping[str, Checkpoint], backbone: str, tensors: str) -> TaskVectors:
    """Task vectors of state dicts; ``UserError`` where the backbone's rule merges none of their tensors."""
    base, *experts = opened.values()

    def merged(names: Iterable[str]) -> list[str]:
        if tensors == "all":
            return [name for name in names if base.info(name).dtype.is_floating_point]
        if chosen := backbones.get(backbone).merged_names(names):
            return chosen
        raise UserError(
            f"the backbone {backbone} merges none of the state dict's tensors (it takes the matrices of numbered "
            "blocks): name its `backbone`, or give tensors='all'"
        )

    return TaskVectors(base, dict(zip(list(opened)[1:], experts, strict=True)), merged)
