"""Eq. 1 to 3 in front of the reader: what a live merge and an expert say at the same places, and how far apart it is.

Nothing here takes part in a fit. The states are computed anew, by a model that the fit never touches, and the two terms
by the public functions of :mod:`emkit.alignment.objectives`; that the fit's own first step logs the same numbers is
shown, not assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from emkit.alignment import objectives
from emkit.alignment.calibration import Calibration
from emkit.alignment.heads import Head, headless
from emkit.alignment.order import Piece, pieces
from emkit.alignment.sequences import batches, collate
from emkit.live import Live

TOKENS = 2048  # padded tokens in one pass


@dataclass(frozen=True)
class Seen:
    """One task's N positions, each of which predicts a token of an answer that the task's expert gave.

    ``merged_hidden`` and ``expert_hidden`` [N, d] are the states after the middle block, ``merged_final`` and
    ``expert_final`` [N, d] those that the heads make logits of; fp32. ``weight`` [N] sums to 1 (a mean over samples of
    the mean over each one's positions). ``tokens`` are the predicted ones, as text; ``answer`` [N] numbers the answers.
    """

    merged_hidden: torch.Tensor
    expert_hidden: torch.Tensor
    merged_final: torch.Tensor
    expert_final: torch.Tensor
    head: Head
    expert_head: Head
    weight: torch.Tensor
    tokens: list[str]
    answer: np.ndarray
    questions: list[str]
    vocabulary: Any

    @property
    def merged_logits(self) -> torch.Tensor:
        """z [N, V] of the merge."""
        return self.head.logits(self.merged_final)

    @property
    def expert_logits(self) -> torch.Tensor:
        """z^(k) [N, V] of the expert."""
        return self.expert_head.logits(self.expert_final)


def seen(live: Live, calibration: Calibration, batch: int | float | str = "all", seed: int = 0) -> dict[str, Seen]:
    """What a live merge says where a fit's first step (of this ``batch`` and ``seed``) looks, for each task.

    With ``batch`` "all" that is every sample.
    """
    by_task: dict[str, list[Piece]] = {name: [] for name in calibration.tasks}
    for piece in pieces(calibration, "tasks", batch, 0, seed):
        by_task[piece.task.name].append(piece)
    return {name: _seen(live, calibration.hidden_layer, found) for name, found in by_task.items()}


def terms(
    part: Seen, temperature: float = 1.0, hidden_loss: str = "mean_squared", hidden_weight: float = 1.0
) -> dict[str, float]:
    """Eq. 1 (times ``hidden_weight``) and Eq. 2 of one task, each a weighted mean over its positions."""
    hidden = objectives.hidden_alignment(part.merged_hidden, part.expert_hidden, hidden_loss)
    logit = objectives.logit_alignment(part.merged_final, part.head, part.expert_final, part.expert_head, temperature)
    return {"hidden": hidden_weight * float(part.weight @ hidden), "logit": float(part.weight @ logit)}


@torch.no_grad()
def _seen(live: Live, layer: int, found: Sequence[Piece]) -> Seen:
    task, device = found[0].task, live.model.device
    sequences = [task.sequences[piece.index] for piece in found]
    states: list = [None] * len(found)
    with headless(live.model) as head:
        for rows in batches([len(sequence.ids) for sequence in sequences], TOKENS):
            batch, taken = collate([sequences[row] for row in rows])
            batch, taken = {name: value.to(device) for name, value in batch.items()}, taken.to(device)
            features = torch.cat([task.features[found[row].index] for row in rows]).to(device)
            output = live.backbone.forward(live.model, batch, features, hidden_layer=layer, positions=taken)
            assert output.hidden is not None
            sizes = [len(found[row].weights) for row in rows]
            parts = zip(output.hidden[taken].cpu().split(sizes), output.logits.cpu().split(sizes), strict=True)
            for row, part in zip(rows, parts, strict=True):
                states[row] = part
    tokenizer = getattr(live.processor, "tokenizer", live.processor)
    spoken = [_spoken(sequence) for sequence in sequences]
    asked = [row["question"] for piece in found for row in task.rows[piece.index]]
    before = np.cumsum([0, *(len(task.rows[piece.index]) for piece in found)])
    return Seen(
        merged_hidden=torch.cat([hidden for hidden, _ in states]),
        expert_hidden=torch.cat([task.hidden[piece.index] for piece in found]),
        merged_final=torch.cat([final for _, final in states]),
        expert_final=torch.cat([task.final[piece.index] for piece in found]),
        head=Head(head.weight.cpu(), None if head.bias is None else head.bias.cpu()),
        expert_head=task.head,
        weight=torch.from_numpy(np.concatenate([piece.weights for piece in found])).float(),
        tokens=[tokenizer.decode([token]) for ids, _ in spoken for token in ids],
        answer=np.concatenate([at + row for at, (_, row) in zip(before, spoken)]),
        questions=asked,
        vocabulary=tokenizer,
    )


def _spoken(sequence) -> tuple[np.ndarray, np.ndarray]:
    """The token that each position of a sequence predicts, and in which of its rows (from 0) that is."""
    places = np.flatnonzero(sequence.count > 0)
    ahead = np.minimum(places + 1, len(sequence.ids) - 1)
    return sequence.ids[ahead], np.maximum(sequence.block[places] - 1, 0)
