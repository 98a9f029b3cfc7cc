"""The two objectives of a micro-batch, Expert Merging's and AdaMerging's, and a step's forward and backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from emkit.alignment import objectives
from emkit.alignment.heads import Head, headless
from emkit.alignment.order import Piece
from emkit.alignment.samples import TaskSamples
from emkit.alignment.sequences import batches, collate
from emkit.alignment.weighting import Rule
from emkit.backbones.base import Backbone


@dataclass(frozen=True)
class MicroBatch:
    """What the objectives see of a micro-batch, at the N positions where losses are taken.

    The merged model's states: ``hidden`` [N, d] (None where it is not wanted) and ``final`` [N, d], of which ``head``
    makes logits; ``weight`` [N] of each position in the mean over samples; and the ``pieces`` with the teachers'
    states, each task's together.
    """

    hidden: torch.Tensor | None
    final: torch.Tensor
    head: Head
    weight: torch.Tensor
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Expert Merging's objective, Σ_k β_k (L_hid^(k) + L_logit^(k)): Eq. 1 and 2, each with a weight of its own (1 in
    the paper; 0 for its ablations). ``rule``: by which a fit chooses β in place of ``beta``
    (:mod:`emkit.alignment.weighting`)."""

    terms: ClassVar = ("hidden", "logit")
    beta: Mapping[str, float] = field(default_factory=dict)
    rule: Rule | None = None
    temperature: float = 1.0
    hidden_loss: str = "mean_squared"
    hidden_weight: float = 1.0
    logit_weight: float = 1.0

    @property
    def looks_inside(self) -> bool:
        """Whether the model's hidden states are wanted."""
        return self.hidden_weight != 0

    def losses(self, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """Each term at every position, weighted: [N]."""
        found, weight = {}, batch.weight
        if batch.hidden is not None:
            target = torch.cat([piece.task.hidden[piece.index] for piece in batch.pieces]).to(weight)
            hidden = objectives.hidden_alignment(batch.hidden.to(weight.dtype), target, self.hidden_loss)
            found["hidden"] = self.hidden_weight * weight * hidden
        if self.logit_weight:
            found["logit"] = self.logit_weight * weight * self._logit(batch)
        return found or {"hidden": 0 * weight * batch.final.to(weight.dtype).sum(dim=1)}

    def _logit(self, batch: MicroBatch) -> torch.Tensor:
        """Eq. 2 at every position, [N]; each run of one task's pieces against that task's teacher."""
        found, at, final = [], 0, batch.final
        for task, run in _runs(batch.pieces):
            teacher = torch.cat([task.final[piece.index] for piece in run]).to(final.device, final.dtype)
            # the teacher's head is sent where it is needed, and gone again before the next one is
            found.append(self._logit_of(final[at : at + len(teacher)], batch.head, teacher, task.head))
            at += len(teacher)
        return torch.cat(found)

    def _logit_of(self, final: torch.Tensor, head: Head, teacher: torch.Tensor, kept: Head) -> torch.Tensor:
        kept = kept.on(final.device, final.dtype)
        return objectives.logit_alignment(final, head, teacher, kept, self.temperature)


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """AdaMerging's objective, Σ_k H^(k): the entropy of the merged model's own predictions, without a teacher."""

    terms: ClassVar = ("entropy",)
    beta: Mapping[str, float] = field(default_factory=dict)
    rule: ClassVar = None
    looks_inside: ClassVar = False

    def losses(self, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """The term at every position, weighted: [N]."""
        return {"entropy": batch.weight * objectives.entropy(batch.final, batch.head)}


def backward(
    backbone: Backbone,
    model: torch.nn.Module,
    pieces: Sequence[Piece],
    layer: int,
    objective: Alignment | Entropy,
    *,
    tokens: int,
    checkpointing: bool = False,
    before_last: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """A step's losses of every task, {task: {term: value}}, weighted as the pieces are; gradients go to the weights.

    ``layer``: the block of Eq. 1. The objective's β enters the gradients, not the values. ``tokens``: padded tokens in
    one micro-batch. ``before_last`` is called before the last micro-batch's backward.
    """
    from emkit.alignment.lean import lean, recomputed  # here: it imports transformers, which plans have no use for

    losses: dict = {}
    micro = batches([piece.length for piece in pieces], tokens)
    with headless(model) as head, lean(model), recomputed(model, checkpointing):
        for number, rows in enumerate(micro):
            parts, values = _values(backbone, model, head, [pieces[row] for row in rows], layer, objective)
            total = objectives.objective(_by_task_sums(values, parts), objective.beta)
            if number == len(micro) - 1:
                before_last()
            total.backward()
            _record(values, parts, losses, objective.terms)
    return losses


@torch.no_grad()
def measured(
    backbone: Backbone,
    model: torch.nn.Module,
    pieces: Sequence[Piece],
    layer: int,
    objective: Alignment | Entropy,
    *,
    tokens: int,
) -> dict[str, dict[str, float]]:
    """What :func:`backward` returns, without a backward pass."""
    from emkit.alignment.lean import lean

    losses: dict = {}
    with headless(model) as head, lean(model):
        for rows in batches([piece.length for piece in pieces], tokens):
            parts, values = _values(backbone, model, head, [pieces[row] for row in rows], layer, objective)
            _record(values, parts, losses, objective.terms)
    return losses


def _values(
    backbone: Backbone,
    model: torch.nn.Module,
    head: Head,
    pieces: Sequence[Piece],
    layer: int,
    objective: Alignment | Entropy,
) -> tuple[list[Piece], dict[str, torch.Tensor]]:
    """A micro-batch's pieces, each task's together, and the objective's terms at their positions, [N] each."""
    parts = _by_task(pieces)
    return parts, objective.losses(_forward(backbone, model, head, parts, layer if objective.looks_inside else None))


def _forward(backbone, model, head: Head, parts: Sequence[Piece], layer: int | None) -> MicroBatch:
    from emkit.alignment.lean import at_positions

    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    batch, taken = collate([part.task.sequences[part.index] for part in parts])
    batch, taken = {name: value.to(device) for name, value in batch.items()}, taken.to(device)
    features = torch.cat([part.task.features[part.index] for part in parts]).to(device, dtype)
    with at_positions(model, taken):
        output = backbone.forward(model, batch, features=features, hidden_layer=layer, positions=taken)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.from_numpy(np.concatenate([part.weights for part in parts])).to(device, wide)
    return MicroBatch(None if layer is None else output.hidden[taken], output.logits, head, weight, parts)


def _by_task_sums(values: Mapping[str, torch.Tensor], parts: Sequence[Piece]) -> dict[str, dict[str, torch.Tensor]]:
    """The terms [N] of a micro-batch summed over each task's positions: a scalar each, through which gradients go."""
    tasks = [(task.name, sum(len(piece.weights) for piece in run)) for task, run in _runs(parts)]
    split = {term: each.split([size for _, size in tasks]) for term, each in values.items()}
    return {name: {term: split[term][i].sum() for term in split} for i, (name, _) in enumerate(tasks)}


def _record(values: Mapping[str, torch.Tensor], parts: Sequence[Piece], losses: dict, terms: Sequence[str]) -> None:
    """Add a micro-batch's terms to the step's ``losses``, summed in float64."""
    sizes = [len(part.weights) for part in parts]
    for term, each in values.items():
        sums = torch.stack([part.sum() for part in each.detach().double().split(sizes)]).tolist()
        for part, value in zip(parts, sums, strict=True):
            losses.setdefault(part.task.name, dict.fromkeys(terms, 0.0))[term] += value


def _by_task(parts: Sequence[Piece]) -> list[Piece]:
    """The pieces of a micro-batch with each task's together, so that its head is needed once."""
    order: dict[str, list[Piece]] = {}
    for part in parts:
        order.setdefault(part.task.name, []).append(part)
    return [part for together in order.values() for part in together]


def _runs(parts: Sequence[Piece]) -> Iterator[tuple[TaskSamples, list[Piece]]]:
    """Consecutive pieces of one task."""
    run: list[Piece] = []
    for part in parts:
        if run and part.task is not run[0].task:
            yield run[0].task, run
            run = []
        run.append(part)
    yield run[0].task, run
