"""What a fit may use of a machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emkit.errors import UserError

if TYPE_CHECKING:  # the command line is put together without torch, which takes seconds to import
    import torch

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class EngineOptions:
    """``memory``: bytes that a fit may take on its device (None: what a GPU has, on the CPU all it wants); the
    placement of the task vectors follows from it unless ``place`` names one. ``dtype`` of the merged weights
    (coefficients are float64 always). ``micro_tokens``: padded tokens in one forward and backward. ``checkpointing``
    recomputes activations instead of keeping them. ``like``: reproduce somebody's conventions
    (:mod:`emkit.alignment.like`).

    Neither ``memory`` nor ``place`` changes a bit of the outcome; the others do, within rounding.
    """

    memory: int | None = None
    place: str | None = None
    dtype: str = "float32"
    micro_tokens: int = 2048  # enough to keep a core busy, little enough for its cache
    checkpointing: bool = False
    like: str | None = None

    def __post_init__(self):
        if self.micro_tokens < 1:
            raise UserError(f"--micro-tokens is {self.micro_tokens}: at least one token has to go through the model")

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype)

    @property
    def recorded(self) -> dict:
        """What a report tells of them: all that the outcome depends on."""
        return {key: getattr(self, key) for key in ("like", "dtype", "micro_tokens", "checkpointing")}

    @property
    def identity(self) -> dict:
        """What the outcome depends on (within rounding), for cache keys; empty for the defaults."""
        mine, usual = vars(self), vars(EngineOptions())
        return {key: mine[key] for key in ("dtype", "micro_tokens", "checkpointing") if mine[key] != usual[key]}


def parse_bytes(text: str) -> int:
    """Bytes of ``24GiB``, ``500MB`` or a plain number; ``UserError`` for anything else."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B|B|)\s*", text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"'{text}' is no amount of memory: write it like 24GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])
