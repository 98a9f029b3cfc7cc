"""Training on images with questions: the examples in memory, a batch, and the loss on its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from emkit import backbones
from emkit.backbones.base import Backbone
from emkit.backbones.images import ImageBackbone
from emkit.zoo.images import Patches, Squares
from emkit.zoo.packing import Chat, Packed, Prefix, pack
from emkit.zoo.train import WHOLE, Share, batch_rows, descend


@dataclass(frozen=True)
class Text:
    """All that is said about one image: the ``start`` that holds the image, and the chats of which some follow."""

    start: Prefix
    chats: list[Chat]


@dataclass
class TrainingSet:
    """Examples ready to train on, ``dialogues`` one an image; ``groups`` int [N]: which of the sub-tasks ``names`` it
    is of. ``documents`` is None where dialogues alone are learned; ``features`` are there once the tower is frozen."""

    backbone: str
    images: Squares | Patches
    dialogues: list[Text]
    groups: np.ndarray
    names: list[str]
    documents: list[Text] | None = None
    features: torch.Tensor | None = None

    def image_inputs(self, model, rows: np.ndarray) -> torch.Tensor:
        """The vision side of a batch: cached features where there are, else through the tower with gradients."""
        if self.features is not None:
            return self.images.pick(self.features, rows).float()
        backbone = backbones.get(self.backbone)
        assert isinstance(backbone, ImageBackbone)
        return backbone.trainable_image_features(model, *self.images.inputs(rows))


def grouped(examples: list) -> tuple[np.ndarray, list[str]]:
    """``groups`` and ``names`` of a training set of these examples."""
    names = sorted({example.subtask for example in examples})
    return np.array([names.index(example.subtask) for example in examples]), names


def cache_features(model, data: TrainingSet, batch: int = 128) -> None:
    """Run the frozen vision tower once over every image; kept in bf16."""
    see, rows = backbones.get(data.backbone), np.arange(len(data.images))
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    parts = [see.image_features(model, *data.images.inputs(part)).to(torch.bfloat16) for part in batches]
    data.features = torch.cat(parts)


def batch_texts(data: TrainingSet, rows: np.ndarray, settings: dict, seed: int, step: int) -> list[Text]:
    """The texts of one step: dialogues, or documents of which a share (``dialogues``, by sub-task) are dialogues.

    Of each, up to ``questions`` plain and ``dense_questions`` dense chats, drawn anew at every step.
    """
    rng = np.random.default_rng([seed, step, 1])
    wanted = settings.get("dialogues", {})
    coins = np.random.default_rng([seed, step, 3]).random(len(rows))
    texts = []
    for row, coin in zip(rows, coins, strict=True):
        dialogue = data.documents is None or coin < wanted.get(data.names[data.groups[row]], 0.0)
        text = data.dialogues[row] if data.documents is None or dialogue else data.documents[row]
        plain = [c for c in text.chats if not c.dense]
        dense = [c for c in text.chats if c.dense]
        picks = [plain[i] for i in rng.permutation(len(plain))[: settings["questions"]]]
        picks += [dense[i] for i in rng.permutation(len(dense))[: settings["dense_questions"]]]
        texts.append(Text(text.start, picks))
    return texts


def loss_of(backbone: Backbone, model, batch: Packed, features: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy over the answer tokens of a packed batch."""
    logits = backbone.forward(model, batch.inputs, features=features, positions=batch.predicts).logits
    losses = cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def train(
    model,
    processor,
    data: TrainingSet,
    settings: dict,
    seed: int,
    state: Path,
    shares: np.ndarray,
    progress: Callable[[int, float], None],
    share: Share = WHOLE,
) -> list[dict]:
    """Train ``model`` in place on ``data`` (see :func:`descend`); ``shares`` weighs its sub-tasks.

    The parameters that do not require a gradient stay as they are.
    """
    pad = processor.tokenizer.pad_token_id

    def loss_at(step: int) -> torch.Tensor:
        rows = batch_rows(data.groups, shares, settings["batch"], seed, step)
        texts = share.of(batch_texts(data, rows, settings, seed, step))
        batch = pack([t.start for t in texts], [t.chats for t in texts], pad, settings["dense_weight"])
        return loss_of(backbones.get(data.backbone), model, batch, data.image_inputs(model, share.of(rows)))

    return descend(model, loss_at, settings, state, progress, share)
