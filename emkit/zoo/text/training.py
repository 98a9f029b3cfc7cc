"""Training on text: documents for a base, dialogues for experts, and the loss on what is to be learned of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from emkit.zoo.text.item import Item
from emkit.zoo.train import WHOLE, Share, batch_rows, descend

PARTS = 4  # a batch is cut by length into so many parts, which need little padding


@dataclass(frozen=True)
class Text:
    """Token ids of one text; the last ``learned`` of them are trained on."""

    tokens: np.ndarray
    learned: int


@dataclass
class TextSet:
    """Every item as a document and as a dialogue; ``groups`` int [N]: which of the sub-tasks ``names`` it is of.

    ``documents`` is None where dialogues alone are learned, as experts do.
    """

    dialogues: list[Text]
    documents: list[Text] | None
    groups: np.ndarray
    names: list[str]


def dialogues(tokenizer, items: list[Item]) -> list[Text]:
    """Each prompt as the chat template writes it, then the response and its end; these are learned."""
    message = [{"role": "user", "content": "PROMPT"}]
    turn = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    starts = tokenizer([turn.replace("PROMPT", item.prompt) for item in items])["input_ids"]
    replies = tokenizer([item.response + tokenizer.eos_token for item in items])["input_ids"]
    return [Text(np.array([*s, *r]), len(r)) for s, r in zip(starts, replies, strict=True)]


def documents(tokenizer, items: list[Item]) -> list[Text]:
    """Each document between begin and end; all but the begin is learned."""
    texts = [tokenizer.bos_token + item.document + tokenizer.eos_token for item in items]
    return [Text(np.array(tokens), len(tokens) - 1) for tokens in tokenizer(texts)["input_ids"]]


def text_set(tokenizer, items: list[Item], read: bool) -> TextSet:
    """Tokenise ``items`` as dialogues, and as documents too where they are to be ``read``."""
    names = sorted({item.subtask for item in items})
    return TextSet(
        dialogues(tokenizer, items),
        documents(tokenizer, items) if read else None,
        np.array([names.index(item.subtask) for item in items]),
        names,
    )


def batch_texts(data: TextSet, rows: np.ndarray, settings: dict, seed: int, step: int) -> list[Text]:
    """The texts of one step: dialogues, or documents of which a share (``dialogues``, by sub-task) are dialogues."""
    if data.documents is None:
        return [data.dialogues[row] for row in rows]
    wanted = settings.get("dialogues", {})
    drawn = np.random.default_rng([seed, step, 1]).random(len(rows))
    shares = [wanted.get(data.names[data.groups[row]], 0.0) for row in rows]
    return [(data.dialogues if x < s else data.documents)[row] for row, x, s in zip(rows, drawn, shares, strict=True)]


def loss_of(model, texts: list[Text], pad: int) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens of ``texts``.

    Texts are padded behind their end, where a causal model's earlier positions do not look: no mask is needed.
    """
    texts = sorted(texts, key=lambda text: len(text.tokens))
    size = -(-len(texts) // PARTS)
    total = sum(_summed(model, texts[i : i + size], pad) for i in range(0, len(texts), size))
    return total / sum(text.learned for text in texts)


def _summed(model, texts: list[Text], pad: int) -> torch.Tensor:
    """Cross-entropy summed over the learned tokens."""
    shape = (len(texts), max(len(text.tokens) for text in texts))
    ids, predicts = np.full(shape, pad), np.zeros(shape, bool)
    for row, text in enumerate(texts):
        length = len(text.tokens)
        ids[row, :length] = text.tokens
        predicts[row, length - text.learned - 1 : length - 1] = True
    where = torch.from_numpy(predicts)
    tokens = torch.from_numpy(ids)
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[where]
    targets = tokens[:, 1:][where[:, :-1]]
    return cross_entropy(model.lm_head(hidden).float(), targets, reduction="sum")


def train(
    model,
    tokenizer,
    data: TextSet,
    settings: dict,
    seed: int,
    state: Path,
    shares: np.ndarray,
    progress: Callable[[int, float], None],
    share: Share = WHOLE,
) -> list[dict]:
    """Train ``model`` in place on ``data`` (see :func:`emkit.zoo.train.descend`); ``shares`` weighs its sub-tasks."""

    def loss_at(step: int) -> torch.Tensor:
        rows = batch_rows(data.groups, shares, settings["batch"], seed, step)
        texts = share.of(batch_texts(data, rows, settings, seed, step))
        return loss_of(model, texts, tokenizer.pad_token_id)

    return descend(model, loss_at, settings, state, progress, share)
