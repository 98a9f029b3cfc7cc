"""Training on images with questions: the examples in memory, a batch, and the loss on its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from emkit.backbones import internvl
from emkit.zoo.data import prompt
from emkit.zoo.packing import Chat, Packed, chat, pack, prefix
from emkit.zoo.train import WHOLE, Share, batch_rows, descend


@dataclass
class TrainingSet:
    """Examples ready to train on: ``pixels`` uint8 [N, 3, H, W] or ``features`` [N, tokens, D]; chats per example."""

    chats: list[list[Chat]]
    groups: np.ndarray  # int [N]: which sub-task an example belongs to
    pixels: torch.Tensor
    features: torch.Tensor | None = None

    def image_inputs(self, model, rows: np.ndarray) -> torch.Tensor:
        """The vision side of a batch: cached features where there are, else through the tower with gradients."""
        if self.features is not None:
            return self.features[rows].float()
        return internvl.trainable_image_features(model, normalised(self.pixels[rows]))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as the processor normalises them (mean and deviation 0.5): fp32 in [−1, 1]."""
    return pixels.float() / 127.5 - 1.0


def training_set(processor, examples: list, dense: bool) -> TrainingSet:
    """Tokenise ``examples`` (``emkit.zoo.data.Example``); dense questions are left out unless ``dense``."""
    names = sorted({example.subtask for example in examples})
    chats = [
        [
            chat(processor, prompt(example.subtask, qa), qa.answer, qa.kind.startswith("dense/"))
            for qa in example.qas
            if dense or not qa.kind.startswith("dense/")
        ]
        for example in examples
    ]
    groups = np.array([names.index(example.subtask) for example in examples])
    return TrainingSet(chats, groups, stacked_pixels([example.image for example in examples]))


def stacked_pixels(images: list) -> torch.Tensor:
    """N RGB images of one size as uint8 [N, 3, H, W]."""
    pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def cache_features(model, data: TrainingSet, batch: int = 128) -> None:
    """Run the frozen vision tower once over every image; kept in bf16."""
    parts = [internvl.image_features(model, normalised(part)) for part in data.pixels.split(batch)]
    data.features = torch.cat(parts).to(torch.bfloat16)


def batch_chats(data: TrainingSet, rows: np.ndarray, settings: dict, seed: int, step: int) -> list[list[Chat]]:
    """Up to ``questions`` plain and ``dense_questions`` dense chats of each example, drawn anew at every step."""
    rng = np.random.default_rng([seed, step, 1])
    chosen = []
    for row in rows:
        plain = [c for c in data.chats[row] if not c.dense]
        dense = [c for c in data.chats[row] if c.dense]
        picks = [plain[i] for i in rng.permutation(len(plain))[: settings["questions"]]]
        picks += [dense[i] for i in rng.permutation(len(dense))[: settings["dense_questions"]]]
        chosen.append(picks)
    return chosen


def loss_of(model, batch: Packed, features: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy over the answer tokens of a packed batch."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": batch.attention_mask}
    logits = internvl.forward(model, inputs, features=features, positions=batch.predicts).logits
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

    The vision tower is trained only when ``data`` has no cached features.
    """
    frozen = data.features is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and "vision_tower" in name))
    start, pad = prefix(processor), processor.tokenizer.pad_token_id

    def loss_at(step: int) -> torch.Tensor:
        rows = batch_rows(data.groups, shares, settings["batch"], seed, step)
        chats = share.of(batch_chats(data, rows, settings, seed, step))
        batch = pack(start, chats, pad, settings["dense_weight"])
        return loss_of(model, batch, data.image_inputs(model, share.of(rows)))

    model.train()
    log = descend(model, loss_at, settings, state, progress, share)
    model.eval()
    return log
