"""Forward and backward of a step, micro-batch by micro-batch: hidden alignment, logit alignment, entropy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from emkit.alignment import logits
from emkit.alignment.lean import at_positions, lean
from emkit.alignment.logits import Head, headless
from emkit.alignment.objectives import hidden_alignment
from emkit.alignment.order import Piece
from emkit.alignment.sequences import batches, collate
from emkit.backbones.base import Backbone

TERMS = {"alignment": ("hidden", "logit"), "entropy": ("entropy",)}  # an objective's losses of each task


@contextlib.contextmanager
def recomputed(model: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Activation checkpointing of every block inside: transformers' own, which asks for a block in training mode."""
    blocks = [module for module in model.modules() if wanted and isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        block.gradient_checkpointing, block.training = True, True
        block._gradient_checkpointing_func = _checkpointed(block)
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing, block.training = False, False


def _checkpointed(block: torch.nn.Module) -> Callable:
    """Runs the block in evaluation mode now and when it is recomputed, so that dropout of its own stays off too."""

    def quiet(call, *args):
        block.training = False
        try:
            return call(*args)
        finally:
            block.training = True

    return lambda call, *args: checkpoint(quiet, call, *args, use_reentrant=False)


def backward(
    backbone: Backbone,
    model: torch.nn.Module,
    pieces: Sequence[Piece],
    layer: int,
    options,
    beta: Mapping[str, float],
    tokens: int,
    before_last: Callable[[], None] = lambda: None,
    checkpointing: bool = False,
) -> dict:
    """A step's losses of every task, {task: {term: value}}, weighted as the pieces are; gradients go to the weights.

    ``layer``: the block of Eq. 1. ``options`` is a :class:`emkit.alignment.fit.FitOptions`. ``beta`` of each task
    enters the gradients, not the values. ``tokens``: padded tokens in one micro-batch. ``before_last`` is called
    before the last micro-batch's backward.
    """
    losses: dict = {}
    micro = batches([piece.length for piece in pieces], tokens)
    with headless(model) as head, lean(model), recomputed(model, checkpointing):
        for number, rows in enumerate(micro):
            parts = _by_task([pieces[row] for row in rows])
            terms = _terms(backbone, model, head, parts, layer, options)
            sizes = [len(part.weights) for part in parts]
            like = next(iter(terms.values()))
            scale = like.new_tensor([beta.get(part.task.name, 1.0) for part in parts])
            scale = scale.repeat_interleave(torch.tensor(sizes, device=like.device), output_size=sum(sizes))
            if number == len(micro) - 1:
                before_last()
            (scale * sum(terms.values())).sum().backward()
            for term, values in terms.items():
                sums = torch.stack([part.sum() for part in values.detach().double().split(sizes)]).tolist()
                for part, value in zip(parts, sums, strict=True):
                    found = losses.setdefault(part.task.name, dict.fromkeys(TERMS[options.objective], 0.0))
                    found[term] += value
    return losses


def _terms(backbone, model, head: Head, parts: Sequence[Piece], layer: int, options) -> dict[str, torch.Tensor]:
    """Each term at every position of a micro-batch, weighted: [N]."""
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    batch, taken = collate([part.task.sequences[part.index] for part in parts])
    batch, taken = {name: value.to(device) for name, value in batch.items()}, taken.to(device)
    features = torch.cat([part.task.features[part.index] for part in parts]).to(device, dtype)
    aligned = options.objective == "alignment"
    layer = layer if aligned and options.hidden_weight else None
    with at_positions(model, taken):
        output = backbone.forward(model, batch, features=features, hidden_layer=layer, positions=taken)
    final = output.logits
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.from_numpy(np.concatenate([part.weights for part in parts])).to(device, wide)
    if not aligned:
        return {"entropy": weight * logits.entropy(final, head)}
    terms = {}
    if options.hidden_weight:
        target = torch.cat([part.task.hidden[part.index] for part in parts]).to(device, wide)
        found = hidden_alignment(output.hidden[taken].to(wide), target, options.hidden_loss)
        terms["hidden"] = options.hidden_weight * weight * found
    if options.logit_weight:
        terms["logit"] = options.logit_weight * weight * _logit_terms(final, head, parts, options.temperature)
    return terms or {"hidden": 0 * weight * final.to(wide).sum(dim=1)}


def _logit_terms(final: torch.Tensor, head: Head, parts: Sequence[Piece], temperature: float) -> torch.Tensor:
    """Eq. 2 at every position, [N]; each run of one task's pieces against that task's teacher."""
    found, at = [], 0
    for task, run in _runs(parts):
        teacher = torch.cat([task.final[part.index] for part in run]).to(final.device, final.dtype)
        # the head is sent where it is needed, and gone again before the next one is
        found.append(_aligned(final[at : at + len(teacher)], head, teacher, task.head, temperature))
        at += len(teacher)
    return torch.cat(found)


def _aligned(final: torch.Tensor, head: Head, teacher: torch.Tensor, kept: Head, temperature: float) -> torch.Tensor:
    return logits.alignment(final, head, teacher, kept.on(final.device, final.dtype), temperature)


def _by_task(parts: Sequence[Piece]) -> list[Piece]:
    """The pieces of a micro-batch with each task's together, so that its head is needed once."""
    order: dict[str, list[Piece]] = {}
    for part in parts:
        order.setdefault(part.task.name, []).append(part)
    return [part for together in order.values() for part in together]


def _runs(parts: Sequence[Piece]) -> Iterator[tuple[object, list[Piece]]]:
    """Consecutive pieces of one task."""
    run: list[Piece] = []
    for part in parts:
        if run and part.task is not run[0].task:
            yield run[0].task, run
            run = []
        run.append(part)
    yield run[0].task, run
