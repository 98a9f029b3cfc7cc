"""Several questions about one image in one sequence, each seeing the image and itself only.

A training example is an image with a handful of questions. Its tokens are ``prefix + chat_1 + chat_2 + …``: the
prefix (turn start and image tokens) is shared, a block mask hides the chats from each other, and positions start
anew after the prefix. Every chat therefore gets exactly the logits it would get alone, at a fraction of the cost
(``tests/test_zoo_packing.py`` compares the two).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Prefix:
    """What a row's chats share: ``tokens`` [P] and their ``positions`` [axes, P]; the chats go on from ``next``.

    There is one axis, or three where an image's tokens have time, row and column (m-RoPE).
    """

    tokens: np.ndarray
    positions: np.ndarray
    next: int


@dataclass(frozen=True)
class Chat:
    """Token ids of one question with its answer; ``answer`` of the ``tokens`` at the end are trained on."""

    tokens: np.ndarray
    answer: int
    dense: bool


@dataclass(frozen=True)
class Packed:
    """A batch of B sequences of S tokens, ready for a backbone's ``forward``.

    ``position_ids`` int64 [B, S], or [axes, B, S] where there are several; ``attention_mask`` bool [B, 1, S, S] (True:
    may look at), ``predicts`` bool [B, S] (the logits there are trained), ``targets`` int64 [N] and ``weights`` fp32
    [N] in row-major order of ``predicts``.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    predicts: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What ``forward`` reads."""
        names = ("input_ids", "position_ids", "attention_mask")
        return {name: getattr(self, name) for name in names}


def text_prefix(tokens: np.ndarray) -> Prefix:
    """A prefix whose tokens, those of images too, are counted through."""
    return Prefix(tokens, np.arange(len(tokens))[None], len(tokens))


def chat(tokenizer, after_image: str, answer: str, dense: bool) -> Chat:
    """One question, as it stands ``after_image``, and its answer with the token that ends it."""
    reply = tokenizer(answer + tokenizer.eos_token)["input_ids"]
    return Chat(np.array(tokenizer(after_image)["input_ids"] + reply), len(reply), dense)


def pack(starts: list[Prefix], rows: list[list[Chat]], pad: int, dense_weight: float) -> Packed:
    """Lay out each row's chats behind its prefix; ``dense_weight`` scales dense answers' tokens."""
    ends = [len(start.tokens) + sum(len(c.tokens) for c in chats) for start, chats in zip(starts, rows, strict=True)]
    shape = (len(rows), max(ends))
    ids, positions = np.full(shape, pad), np.zeros((len(starts[0].positions), *shape), np.int64)
    block, targets = np.full(shape, -1), np.zeros(shape, np.int64)
    weights = np.zeros(shape, np.float32)
    for row, (start, chats) in enumerate(zip(starts, rows, strict=True)):
        at = len(start.tokens)
        ids[row, :at], positions[:, row, :at], block[row, :at] = start.tokens, start.positions, 0
        for number, c in enumerate(chats, 1):
            here = slice(at, at + len(c.tokens))
            ids[row, here], block[row, here] = c.tokens, number
            positions[:, row, here] = np.arange(len(c.tokens)) + start.next
            answer = slice(here.stop - c.answer - 1, here.stop - 1)
            targets[row, answer] = c.tokens[-c.answer :]
            weights[row, answer] = dense_weight if c.dense else 1.0
            at = here.stop
    seen = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    mask = seen & np.tri(shape[1], dtype=bool)[None] | np.eye(shape[1], dtype=bool)[None]
    predicts = weights > 0
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions if len(positions) > 1 else positions[0]),
        torch.from_numpy(mask[:, None]),
        torch.from_numpy(predicts),
        torch.from_numpy(targets[predicts]),
        torch.from_numpy(weights[predicts]),
    )
