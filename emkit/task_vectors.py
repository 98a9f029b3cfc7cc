"""Task vectors τ_k = θ_k − θ_base of the merged tensors, read one tensor at a time (Section 3.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch

from emkit.blocks import Block, in_blocks
from emkit.checkpoints import Checkpoint, check_finite, check_same_headers
from emkit.coefficients import merge_blocks, merge_experts
from emkit.errors import UserError


class TaskVectors:
    """A base and K experts that fit it.

    ``merged`` is a backbone's rule for which tensors merging touches; every other tensor stays at the base's value.
    Headers are compared on construction, before anything long starts (``UserError``). ``identity`` lists the
    transforms that the task vectors went through: none here (see :class:`Transformed`).
    """

    identity: tuple[dict, ...] = ()

    def __init__(
        self, base: Checkpoint, experts: Mapping[str, Checkpoint], merged: Callable[[Iterable[str]], list[str]]
    ):
        if not experts:
            raise UserError("there are no experts to merge: name at least one under models.experts")
        self.base = base
        self.checkpoints = dict(experts)
        self.names = merged(base.names)
        if not self.names:
            raise UserError(f"{base.path}: none of its tensors is one that merging touches; is the backbone right?")
        for label, expert in experts.items():
            check_same_headers(base, expert, f"expert '{label}'", self.names)
        for name in self.names:
            if not base.info(name).dtype.is_floating_point:
                raise UserError(f"{base.path}: '{name}' is {base.info(name).dtype}, which cannot be merged")
        self._finite: set[str] = set()

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names; k indexes this tuple."""
        return tuple(self.checkpoints)

    def numel(self, name: str) -> int:
        """Number of elements of a tensor (n_ℓ of Section 3.3)."""
        return int(torch.Size(self.base.info(name).shape).numel())

    def read(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """θ_base and the K experts' θ_k of one tensor, as stored; ``UserError`` for NaN or infinity in them."""
        checkpoints = (self.base, *self.checkpoints.values())
        tensors = [checkpoint.read(name) for checkpoint in checkpoints]
        if name not in self._finite:  # once: a tensor is read in several passes, and block by block
            for checkpoint, tensor in zip(checkpoints, tensors, strict=True):
                check_finite(name, tensor, str(checkpoint.path))
            self._finite.add(name)
        return tensors[0], tensors[1:]

    def tau(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """τ_k of one tensor for every expert: [K, *shape], subtracted in ``dtype``.

        (The authors subtract in fp16. Between 16-bit weights of similar size the fp32 difference is exact.)
        """
        base, experts = self.read(name)
        wide = base.to(dtype)
        return torch.stack([expert.to(dtype) - wide for expert in experts])

    def taus(self, name: str) -> Iterator[torch.Tensor]:
        """τ_k of one tensor for each expert in turn (fp32)."""
        base, experts = self.read(name)
        wide = base.float()
        return (expert.to(torch.float32, copy=True).sub_(wide) for expert in experts)

    def blocks(self, name: str) -> Block:
        """τ_k of one flattened tensor, block by block: ``(start, stop)`` → fp32 [K, stop − start]."""
        base, experts = self.read(name)
        flat, experts = base.reshape(-1), [expert.reshape(-1) for expert in experts]

        def block(start: int, stop: int) -> torch.Tensor:
            tau = torch.empty(len(experts), stop - start, dtype=torch.float32, device=flat.device)
            wide = flat[start:stop].float()
            for row, expert in zip(tau, experts, strict=True):
                row.copy_(expert[start:stop]).sub_(wide)
            return tau

        return block

    def merged(self, name: str, coefficients: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        """θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} of one tensor, in the base's dtype or ``dtype`` (Eq. 5)."""
        base, experts = self.read(name)
        return merge_experts(base if dtype is None else base.to(dtype), experts, coefficients)


class Transformed(TaskVectors, ABC):
    """Task vectors seen through a transform: τ̂_k stands in place of τ_k wherever task vectors are taken.

    A block of entries is computed at a time, so that no view ever holds a whole task vector, nor more of a tensor than
    it is asked for. All arithmetic is on the fp32 τ_k.
    """

    def __init__(self, inner: TaskVectors, identity: dict):
        self.inner, self.identity = inner, (*inner.identity, identity)
        self.base, self.checkpoints, self.names = inner.base, inner.checkpoints, inner.names

    @abstractmethod
    def transform(self, name: str, block: Block) -> Block:
        """The blocks of τ̂_k of one tensor, given those of τ_k, whose memory may be overwritten."""

    def blocks(self, name: str) -> Block:
        """τ̂_k of one flattened tensor, block by block: ``(start, stop)`` → fp32 [K, stop − start].

        What it takes of the whole tensor, as a threshold, is computed here; each block when it is asked for.
        """
        return self.transform(name, self.inner.blocks(name))

    def read(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """θ_base and the K experts' θ_k of one tensor, as stored: no transform has touched them."""
        return self.inner.read(name)

    def taus(self, name: str) -> Iterator[torch.Tensor]:
        """τ̂_k of one tensor for each expert in turn (fp32)."""
        return iter(self.tau(name))

    def tau(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """τ̂_k of one tensor for every expert: [K, *shape], computed in fp32 and then of ``dtype``."""
        block, shape = self.blocks(name), self.base.info(name).shape
        device = block(0, 0).device
        tau = torch.empty(len(self.experts), self.numel(name), dtype=dtype, device=device)

        def fill(start: int, stop: int) -> None:
            tau[:, start:stop] = block(start, stop)

        in_blocks(self.numel(name), len(self.experts), device, fill)
        return tau.reshape(len(self.experts), *shape)

    def merged(self, name: str, coefficients: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        """θ_base + Σ_k Σ_s α_{k,s} τ̂_{k,s} of one tensor, in the base's dtype or ``dtype`` (Eq. 5)."""
        base = self.base.read(name)
        return merge_blocks(base if dtype is None else base.to(dtype), self.blocks(name), coefficients)
