"""A model whose weights are θ_base + Σ_k α_k τ_k in place, and the gradient of a loss with respect to α."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch

from emkit.coefficients import Coefficients, chunk_bounds
from emkit.task_vectors import TaskVectors
from emkit.transforms import View


class MergedModel:
    """Writes merged weights into ``model`` and turns its weight gradients into coefficient gradients.

    By the chain rule ∂loss/∂α_{k,s} = ⟨∂loss/∂θ restricted to chunk s, τ_{k,s}⟩. Computing it from ordinary weight
    gradients needs no copy of the merged weights in the autograd graph, unlike ``functional_call`` on them.
    ``parameter_name`` maps a checkpoint's tensor name to the model's. Arithmetic is in the model's dtype (fp32 in a
    fit), the inner products in float64.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        task_vectors: TaskVectors | View,
        coefficients: Coefficients,
        parameter_name: Callable[[str], str] = str,
    ):
        self.model = model
        self.task_vectors = task_vectors
        parameters = dict(model.named_parameters())
        self.parameters = {name: parameters[parameter_name(name)] for name in task_vectors.names}
        model.requires_grad_(False)
        for name, trainable in coefficients.trainable.items():
            self.parameters[name].requires_grad_(trainable)
        self.write(coefficients)

    @torch.no_grad()
    def write(self, coefficients: Coefficients) -> None:
        """Set every merged weight to its value under ``coefficients``."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.task_vectors.merged(name, coefficients.values[name], parameter.dtype))

    @torch.no_grad()
    def gradient(self, coefficients: Coefficients) -> np.ndarray:
        """∂loss/∂α in the order of ``coefficients.flat()`` (float64), from the weights' ``.grad``, which it clears.

        A weight that the loss does not reach has gradient 0.
        """
        parts = [np.zeros(0)]
        for name, value in coefficients.values.items():
            if name in coefficients.fixed:
                continue
            parameter = self.parameters[name]
            if parameter.grad is None:
                parts.append(np.zeros(value.size))
                continue
            tau = self.task_vectors.tau(name, parameter.dtype).flatten(1).double()
            grad = parameter.grad.reshape(-1).double()
            bounds = chunk_bounds(len(grad), value.shape[1])
            sums = [tau[:, start:stop] @ grad[start:stop] for start, stop in itertools.pairwise(bounds)]
            parts.append(torch.stack(sums, dim=1).cpu().numpy().reshape(-1))
            parameter.grad = None
        return np.concatenate(parts)
