"""Calibration sequences: one image with its questions and responses, folded into one pass through the model.

(Or one question about none.) Rows about one image share everything up to their questions. A sequence holds that prefix
once, then each row's own tokens; a block mask hides the rows from each other and positions start anew after the
prefix, so every row gets exactly the states and logits that it would get alone, for about half the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Folded:
    """One sequence of S tokens: ``ids`` int64 [S], ``block`` int64 [S] (0: prefix, r: row r's own), ``positions`` int64
    [S], or [3, S] for a backbone whose positions have three parts.

    ``count`` float64 [S] says how many rows' losses are taken at a position: 0 where none is.
    """

    ids: np.ndarray
    positions: np.ndarray
    block: np.ndarray
    count: np.ndarray

    def to_json(self) -> dict:
        return {field: getattr(self, field).tolist() for field in ("ids", "positions", "block", "count")}

    @classmethod
    def from_json(cls, value: dict) -> Folded:
        ids, positions, block = (np.array(value[field], dtype=np.int64) for field in ("ids", "positions", "block"))
        return cls(ids, positions, block, np.array(value["count"], dtype=np.float64))


def fold(
    rows: Sequence[np.ndarray], responses: Sequence[int], tokens: str, positions: Sequence[np.ndarray] | None = None
) -> Folded:
    """Fold rows of token ids, each of which ends with ``responses[r]`` response tokens.

    ``positions`` of a row's tokens, [n] or [3, n], are counted from 0 where none are given; rows that begin alike must
    have alike positions there.

    ``tokens`` says where losses are taken: ``response``, at the positions that predict a response token (the last
    prompt token to the last but one), or ``all``, at every token, the prefix counting once for each of its rows.
    """
    shared = min(len(row) - response for row, response in zip(rows, responses, strict=True)) - 1
    for row in rows[1:]:
        differs = np.flatnonzero(row[:shared] != rows[0][:shared])
        shared = int(differs[0]) if len(differs) else shared
    if positions is None:
        positions = [np.arange(len(row)) for row in rows]
    ids, placed, block = [rows[0][:shared]], [positions[0][..., :shared]], [np.zeros(shared, np.int64)]
    count = [np.full(shared, len(rows) if tokens == "all" else 0.0)]
    for number, (row, response) in enumerate(zip(rows, responses, strict=True), 1):
        own = np.arange(shared, len(row))
        ids.append(row[shared:])
        placed.append(positions[number - 1][..., shared:])
        block.append(np.full(len(own), number))
        predicts = (own >= len(row) - response - 1) & (own < len(row) - 1)
        count.append(np.ones(len(own)) if tokens == "all" else predicts.astype(np.float64))
    ints = [np.concatenate(part, axis=-1).astype(np.int64) for part in (ids, placed, block)]
    return Folded(ints[0], ints[1], ints[2], np.concatenate(count).astype(np.float64))


def collate(sequences: Sequence[Folded]) -> tuple[dict, torch.Tensor]:
    """A batch for a backbone's ``forward``, and ``positions`` bool [B, S]: where losses are taken.

    ``input_ids`` int64 [B, S], ``position_ids`` int64 [B, S] or [3, B, S],
    ``attention_mask`` bool [B, 1, S, S] (True: may look at); padding looks at itself only, and nobody at it.
    """
    shape = (len(sequences), max(len(s.ids) for s in sequences))
    ids, positions = np.zeros(shape, np.int64), np.zeros((*sequences[0].positions.shape[:-1], *shape), np.int64)
    block, taken = np.full(shape, -1), np.zeros(shape, bool)
    for i, s in enumerate(sequences):
        here = slice(0, len(s.ids))
        ids[i, here], block[i, here], taken[i, here] = s.ids, s.block, s.count > 0
        positions[..., i, here] = s.positions
    seen = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    seen &= np.tri(shape[1], dtype=bool)[None] & (block[:, None, :] >= 0)
    seen |= np.eye(shape[1], dtype=bool)[None]
    batch = {"input_ids": ids, "position_ids": positions, "attention_mask": seen[:, None]}
    return {name: torch.from_numpy(value) for name, value in batch.items()}, torch.from_numpy(taken)


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split sequences (by their lengths) into batches of at most ``budget`` padded tokens, similar lengths together.

    Every index appears once; a single sequence may exceed the budget.
    """
    out: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if out and (len(out[-1]) + 1) * lengths[i] <= budget:
            out[-1].append(i)
        else:
            out.append([i])
    return out
