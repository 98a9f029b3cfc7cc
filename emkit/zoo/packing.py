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

from emkit.backbones import internvl


@dataclass(frozen=True)
class Chat:
    """Token ids of one question with its answer; ``answer`` of the ``tokens`` at the end are trained on."""

    tokens: np.ndarray
    answer: int
    dense: bool


@dataclass(frozen=True)
class Packed:
    """A batch of B sequences of S tokens, ready for :func:`emkit.backbones.internvl.forward`.

    ``attention_mask`` bool [B, 1, S, S] (True: may look at), ``predicts`` bool [B, S] (the logits there are trained),
    ``targets`` int64 [N] and ``weights`` fp32 [N] in row-major order of ``predicts``.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    predicts: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def prefix(processor) -> np.ndarray:
    """Token ids from the turn's start to the newline after the image."""
    text = internvl.prompt(processor, "").split(processor.image_token)
    image = processor.start_image_token + processor.image_token * processor.image_seq_length + processor.end_image_token
    return np.array(processor.tokenizer(text[0] + image + "\n")["input_ids"])


def chat(processor, question: str, answer: str, dense: bool) -> Chat:
    """One question and answer as the chat template writes them after the image."""
    after_image = internvl.prompt(processor, question).split(processor.image_token + "\n")[1]
    reply = processor.tokenizer(answer + processor.tokenizer.eos_token)["input_ids"]
    return Chat(np.array(processor.tokenizer(after_image)["input_ids"] + reply), len(reply), dense)


def pack(start: np.ndarray, rows: list[list[Chat]], pad: int, dense_weight: float) -> Packed:
    """Lay out each row's chats behind the shared prefix ``start``; ``dense_weight`` scales dense answers' tokens."""
    length = len(start) + max(sum(len(c.tokens) for c in chats) for chats in rows)
    shape = (len(rows), length)
    ids, positions = np.full(shape, pad), np.zeros(shape, np.int64)
    block, targets = np.full(shape, -1), np.zeros(shape, np.int64)
    weights = np.zeros(shape, np.float32)
    for row, chats in enumerate(rows):
        ids[row, : len(start)], positions[row, : len(start)], block[row, : len(start)] = start, range(len(start)), 0
        at = len(start)
        for number, c in enumerate(chats, 1):
            here = slice(at, at + len(c.tokens))
            ids[row, here], block[row, here] = c.tokens, number
            positions[row, here] = np.arange(len(c.tokens)) + len(start)
            answer = slice(here.stop - c.answer - 1, here.stop - 1)
            targets[row, answer] = c.tokens[-c.answer :]
            weights[row, answer] = dense_weight if c.dense else 1.0
            at = here.stop
    seen = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    mask = seen & np.tri(length, dtype=bool)[None] | np.eye(length, dtype=bool)[None]
    predicts = weights > 0
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(mask[:, None]),
        torch.from_numpy(predicts),
        torch.from_numpy(targets[predicts]),
        torch.from_numpy(weights[predicts]),
    )
