"""The linear map from final hidden states to logits, and a model without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Head:
    """The map from final hidden states to logits: ``weight`` [V, d] and ``bias`` [V] or None, of any float dtype."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def on(self, device: torch.device, dtype: torch.dtype) -> Head:
        """The same head there and so, for many calls of :meth:`logits`."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return Head(self.weight.to(device, dtype), bias)

    def logits(self, final: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """z [N, rows] of ``final`` [N, d], computed in its dtype, as fp32 (float64 stays)."""
        weight = self.weight[rows].to(final.device, final.dtype)
        bias = None if self.bias is None else self.bias[rows].to(final.device, final.dtype)
        z = torch.nn.functional.linear(final, weight, bias)
        return z if z.dtype == torch.float64 else z.float()


@contextlib.contextmanager
def headless(model: torch.nn.Module) -> Iterator[Head]:
    """Inside, the model's logits are its final hidden states; yields the head that makes logits of them.

    So every backbone's ``forward`` gives final states at the positions asked, and none needs to know of it.
    """
    layer = model.get_output_embeddings()
    model.set_output_embeddings(torch.nn.Identity())
    try:
        yield Head(layer.weight.detach(), None if getattr(layer, "bias", None) is None else layer.bias.detach())
    finally:
        model.set_output_embeddings(layer)
