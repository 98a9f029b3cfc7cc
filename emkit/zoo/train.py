"""One training loop for the base, the experts and Mixture Training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from emkit.backbones import internvl
from emkit.zoo.data import prompt
from emkit.zoo.packing import Chat, Packed, chat, pack, prefix

SAVE_EVERY = 200  # steps between resumable states


_OPTIMISERS = {
    "muon": partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"),
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.98)),
}


class Optimisers:
    """Muon or AdamW (``settings["optimiser"]``, Muon unless said) for the blocks' matrices, AdamW for the rest.

    Muon's updates are scaled to AdamW's usual size (``match_rms_adamw``). In a trial of this zoo's base it reached
    after 16,000 images (with sinusoidal patch positions) the loss that AdamW had after about 30,000. A fine-tuning is
    another matter: Muon moves all singular directions of a matrix alike, AdamW mostly those the gradients agree on.
    ``settings["rest_lr"]`` slows embeddings, norms and the blocks' biases down: but for the projector's norm these
    are not merged, and what an expert keeps there no merge can reach.
    """

    def __init__(self, model, settings: dict):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = [name for name, p in named.items() if p.ndim == 2 and ".layer" in name]
        weights = [name for name in named if "projector.linear" in name and name not in matrices]
        rest = [name for name in named if name not in matrices and name not in weights]
        lr = settings["lr"]
        slow = lr * settings.get("rest_lr", 1.0)
        groups = [{"params": [named[n] for n in weights], "lr": lr}, {"params": [named[n] for n in rest], "lr": slow}]
        groups = [group for group in groups if group["params"]]
        decay = settings["weight_decay"]
        self.parts = [
            _OPTIMISERS[settings.get("optimiser", "muon")]([named[n] for n in matrices], lr=lr, weight_decay=decay),
            torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def set_rate(self, share: float) -> None:
        """Set every group's learning rate to ``share`` of its peak."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = share * peak

    def step(self) -> None:
        """Update every trained parameter and forget the gradients."""
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


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


def schedule(step: int, settings: dict) -> float:
    """The share of the peak learning rate at a step.

    Linear warm-up over ``warmup`` steps, then a cosine that falls to 2 % at step ``horizon`` (``steps`` unless said),
    times a linear cool-down to 2 % over the last ``cooldown`` steps (none unless said).
    """
    warmup, steps, cooldown = settings["warmup"], settings["steps"], settings.get("cooldown", 0)
    if step < warmup:
        return (step + 1) / warmup
    through = (step - warmup) / max(1, settings.get("horizon", steps) - warmup)
    left = min(1.0, (steps - step) / cooldown) if cooldown else 1.0
    return (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * through))) * (0.02 + 0.98 * left)


def batch_rows(data: TrainingSet, shares: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """The examples of one step, by a generator keyed by (seed, step): a resumed run draws the same ones."""
    rng = np.random.default_rng([seed, step])
    weight = shares[data.groups] / np.bincount(data.groups, minlength=len(shares))[data.groups]
    return rng.choice(len(data.groups), size=batch, p=weight / weight.sum())


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


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: each ``world``-th row from ``rank`` on. Rank 0 writes and reports."""

    rank: int = 0
    world: int = 1

    def of(self, rows):
        return rows[self.rank :: self.world]


WHOLE = Share()


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
        rows = batch_rows(data, shares, settings["batch"], seed, step)
        chats = share.of(batch_chats(data, rows, settings, seed, step))
        batch = pack(start, chats, pad, settings["dense_weight"])
        return loss_of(model, batch, data.image_inputs(model, share.of(rows)))

    model.train()
    log = descend(model, loss_at, settings, state, progress, share)
    model.eval()
    return log


def descend(
    model: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    settings: dict,
    state: Path,
    progress: Callable[[int, float], None],
    share: Share = WHOLE,
) -> list[dict]:
    """Take ``settings['steps']`` optimiser steps on ``loss_at(step)`` and return the log (step, loss, learning rate).

    ``state`` is rewritten every ``SAVE_EVERY`` steps; a run that finds it goes on from there. With ``share.world``
    processes in a ``torch.distributed`` group, gradients are averaged over them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = Optimisers(model, settings)
    step, log = _resume(state, model, optimiser)
    while step < settings["steps"]:
        rate = schedule(step, settings)
        optimiser.set_rate(rate)
        loss = loss_at(step)
        loss.backward()
        if share.world > 1:
            _average_gradients(trained, share.world)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step += 1
        if share.rank == 0:
            if step % 50 == 0 or step == settings["steps"]:
                log.append({"step": step, "loss": round(loss.item(), 4), "lr": rate * settings["lr"]})
            progress(step, loss.item())
            if step % SAVE_EVERY == 0:
                _save(state, model, optimiser, step, log)
    return log


def _average_gradients(parameters: list[torch.nn.Parameter], world: int) -> None:
    """One all-reduce over all gradients laid end to end."""
    with_gradient = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.reshape(-1) for p in with_gradient])
    distributed.all_reduce(flat)
    for parameter, part in zip(with_gradient, flat.div_(world).split([p.numel() for p in with_gradient]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def _save(state: Path, model, optimiser, step: int, log: list[dict]) -> None:
    temporary = state.with_suffix(".tmp")
    content = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "log": json.dumps(log)}
    torch.save(content, temporary)
    temporary.replace(state)


def _resume(state: Path, model, optimiser) -> tuple[int, list[dict]]:
    if not state.exists():
        return 0, []
    saved = torch.load(state, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["step"], json.loads(saved["log"])
