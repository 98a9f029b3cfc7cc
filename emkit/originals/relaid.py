"""A checkpoint read in another layout than the one that it is stored in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emkit.checkpoints import Checkpoint
from emkit.shards import TensorInfo


@dataclass(frozen=True)
class Part:
    """A stored tensor, or the ``index``-th of ``of`` equal pieces of its first dimension."""

    name: str
    index: int = 0
    of: int = 1


def inverted(parts: Mapping[str, Sequence[Part]]) -> dict[str, list[Part]]:
    """What each stored tensor is made of, where each of ``parts`` is one tensor or a piece of one."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name, (part,) in parts.items():
        found.setdefault(part.name, []).append((part.index, name))
    return {stored: [Part(name) for _, name in sorted(pieces)] for stored, pieces in found.items()}


class Relaid(Checkpoint):
    """A checkpoint in another layout: each tensor is made of parts of stored ones, joined along the first dimension.

    ``configured`` is the folder with the configuration that goes with that layout. The hash is of the tensors as they
    are read.
    """

    def __init__(self, stored: Checkpoint, parts: Mapping[str, Sequence[Part]], configured: Path):
        super().__init__(stored.path, {name: stored._files[of[0].name] for name, of in parts.items()})
        self.stored, self._parts, self._configured = stored, parts, configured

    @property
    def configured(self) -> Path:
        return self._configured

    def info(self, name: str) -> TensorInfo:
        infos = [(self.stored.info(part.name), part.of) for part in self._parts[name]]
        first = infos[0][0]
        if not first.shape:
            return first
        rows = sum(info.shape[0] // of for info, of in infos)
        return TensorInfo(first.dtype, (rows, *first.shape[1:]))

    def read(self, name: str) -> torch.Tensor:
        pieces = [self.stored.read(part.name).chunk(part.of)[part.index] for part in self._parts[name]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def identity(self) -> list[list]:
        return self.stored.identity()
