"""A model whose weights are θ_base + Σ_k α_k τ_k in place, and the gradient of a loss with respect to α."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from emkit.alignment.arithmetic import Arithmetic, Rows
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import Placement, place, wide_dtype
from emkit.coefficients import Coefficients, chunk_bounds
from emkit.task_vectors import TaskVectors

Update = Callable[[slice, torch.Tensor], torch.Tensor]


class MergedModel:
    """Writes merged weights into ``model`` and turns its weight gradients into coefficient gradients.

    By the chain rule ∂loss/∂α_{k,s} = ⟨∂loss/∂W restricted to chunk s, τ_{k,s}⟩. A hook takes the gradient of each
    weight as soon as a backward has it, contracts it and frees it: autograd never sees a task vector, and at no time
    is there more than one weight gradient. ``parameter_name`` maps a checkpoint's tensor name to the model's.

    With ``update``, set by :meth:`update_on_arrival` before the last backward of a step, the hook goes on: it hands
    the tensor's finished coefficient gradient to ``update`` and writes the weight anew from the coefficients that it
    gets back, while the tensor's task vectors are at hand. That is safe inside a backward, since a weight's gradient
    is accumulated after its last use. Task vectors are then read once a micro-batch, in the last one of a step for
    gradient and rewriting together.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        task_vectors: TaskVectors | Placement,
        coefficients: Coefficients,
        parameter_name: Callable[[str], str] = str,
    ):
        self.model = model
        if not isinstance(task_vectors, Placement):
            task_vectors = place(task_vectors, model, EngineOptions())
        self.placement = task_vectors
        parameters = dict(model.named_parameters())
        self.parameters = {name: parameters[parameter_name(name)] for name in self.placement.names}
        self.arithmetic = Arithmetic(next(model.parameters()).device, wide_dtype(model))
        self.places = dict(_places(coefficients))
        self.shapes = {name: value.shape for name, value in coefficients.values.items()}
        self.bounds = {
            name: bounds(tuple(self.placement.task_vectors.base.info(name).shape), value.shape[1])
            for name, value in coefficients.values.items()
        }
        self._sums: dict[str, torch.Tensor] = {}
        self._update: Update | None = None
        self._done: set[str] = set()
        model.requires_grad_(False)
        for name in self.places:
            self.parameters[name].requires_grad_(True)
        self._handles = [
            self.parameters[name].register_post_accumulate_grad_hook(lambda p, name=name: self._arrived(name, p))
            for name in self.places
        ]
        self.write(coefficients)

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def write(self, coefficients: Coefficients) -> None:
        """Set every merged weight to its value under ``coefficients``."""
        for name in self.parameters:
            alpha = torch.from_numpy(coefficients.values[name]).to(self.arithmetic.device)
            self._write(name, self.placement.rows(name), alpha)

    def gradient(self) -> torch.Tensor:
        """∂loss/∂α in the order of ``Coefficients.flat()`` (float64, on the device) since it was last asked for.

        A weight that the loss does not reach has gradient 0.
        """
        parts = [self._sum(name).reshape(-1) for name in self.places]
        self._sums = {}
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def update_on_arrival(self, update: Update) -> None:
        """From now to :meth:`finish_updates`, tensors are updated as soon as their gradient is there.

        ``update(place, gradient)`` takes the tensor's slice of ``Coefficients.flat()`` and ∂loss/∂α of it, and returns
        the slice's new α (both float64 on the device).
        """
        self._update = update

    def finish_updates(self) -> None:
        """Update the tensors that the last backward did not reach."""
        for name in self.places:
            if name not in self._done:
                self._renew(name, self.placement.rows(name))
        self._update, self._sums, self._done = None, {}, set()

    @torch.no_grad()
    def rewrite(self, alpha: torch.Tensor) -> None:
        """Set every trained weight to its value under the flat coefficients ``alpha`` (float64, on the device)."""
        for name, where in self.places.items():
            self._write(name, self.placement.rows(name), alpha[where].reshape(self.shapes[name]))

    @torch.no_grad()
    def _arrived(self, name: str, parameter: torch.nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad.reshape(-1), None
        rows = self.placement.rows(name)
        found = self.arithmetic.contract(rows, gradient, self.bounds[name])
        del gradient
        self._sums[name] = self._sums[name] + found if name in self._sums else found
        if self._update is not None:
            self._renew(name, rows)

    @torch.no_grad()
    def _renew(self, name: str, rows: Rows) -> None:
        assert self._update is not None
        alpha = self._update(self.places[name], self._sum(name).reshape(-1))
        self._write(name, rows, alpha.reshape(self.shapes[name]))
        self._done.add(name)

    def _sum(self, name: str) -> torch.Tensor:
        if name in self._sums:
            return self._sums[name]
        return torch.zeros(self.shapes[name], dtype=torch.float64, device=self.arithmetic.device)

    def _write(self, name: str, rows: Rows, alpha: torch.Tensor) -> None:
        self.arithmetic.merge(rows, alpha, self.bounds[name], self.parameters[name].data.reshape(-1))


def bounds(shape: tuple[int, ...], chunks: int) -> Sequence[int]:
    """Bounds of the chunks of a tensor (:func:`chunk_bounds`): a range where each row of a matrix is one, for which
    :class:`Arithmetic` needs no loop."""
    if len(shape) == 2 and 1 < chunks == shape[0]:
        return range(0, shape[0] * shape[1] + 1, shape[1])
    return chunk_bounds(math.prod(shape), chunks)


def _places(coefficients: Coefficients) -> Iterator[tuple[str, slice]]:
    """Where each trained tensor's coefficients lie in ``Coefficients.flat()``."""
    at = 0
    for name, value in coefficients.values.items():
        if name not in coefficients.fixed:
            yield name, slice(at, at + value.size)
            at += value.size
