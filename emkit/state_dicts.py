"""Tensors in memory as checkpoints: state dicts, and what was read of a folder and is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import torch

from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.hashes import sha256_tensors
from emkit.shards import TensorInfo


class StateDict(Checkpoint):
    """A state dict, name → tensor on any device, as a checkpoint; ``label`` stands where a folder's path would.

    Nothing is copied: a tensor that is changed later is changed here too. ``UserError`` for what is no state dict.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], label: str):
        wrong = next((name for name, value in tensors.items() if not isinstance(value, torch.Tensor)), None)
        if wrong is not None or not tensors:
            what = "it is empty" if wrong is None else f"'{wrong}' is a {type(tensors[wrong]).__name__}, not a tensor"
            raise UserError(f"{label} is no state dict: {what}; give `model.state_dict()`, or a model's folder")
        super().__init__(Path(label), dict.fromkeys(tensors, Path(label)))
        self._tensors = dict(tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self.read(name)
        return TensorInfo(tensor.dtype, tuple(tensor.shape))

    def read(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise UserError(f"{self.path} has no tensor '{name}'")
        return self._tensors[name].detach().cpu()

    def without(self, names: Iterable[str]) -> StateDict:
        dropped = set(names)
        return StateDict({name: t for name, t in self._tensors.items() if name not in dropped}, str(self.path))

    def identity(self) -> list[list]:
        return [[str(self.path), self.sha256()]]

    @cached_property
    def _sha256(self) -> str:
        return sha256_tensors((name, self.read(name)) for name in self.names)


class Kept(Checkpoint):
    """A checkpoint of which every tensor is read once and then kept in memory, for merges that are asked for again."""

    def __init__(self, stored: Checkpoint):
        super().__init__(stored.path, dict.fromkeys(stored.names, stored.path))
        self.stored = stored
        self._held: dict[str, torch.Tensor] = {}

    def info(self, name: str) -> TensorInfo:
        return self.stored.info(name)

    def read(self, name: str) -> torch.Tensor:
        if name not in self._held:
            self._held[name] = self.stored.read(name)
        return self._held[name]

    def identity(self) -> list[list]:
        return self.stored.identity()

    def sha256(self) -> str:
        return self.stored.sha256()
