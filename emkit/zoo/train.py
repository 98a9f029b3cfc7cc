"""One training loop for every family's base, experts and Mixture Training."""

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

SAVE_EVERY = 200  # steps between resumable states, unless a recipe says otherwise


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
        matrices = [name for name, p in named.items() if p.ndim == 2 and (".layer" in name or ".blocks." in name)]
        weights = [name for name in named if "projector.linear" in name and name not in matrices]
        rest = [name for name in named if name not in matrices and name not in weights]
        lr = settings["lr"]
        slow = lr * settings.get("rest_lr", 1.0)
        groups = [{"params": [named[n] for n in weights], "lr": lr}, {"params": [named[n] for n in rest], "lr": slow}]
        groups = [group for group in groups if group["params"]]
        decay = settings["weight_decay"]
        optimiser = _OPTIMISERS[settings.get("optimiser", "muon")]
        self.parts = [optimiser([named[n] for n in matrices], lr=lr, weight_decay=decay)]
        if groups:
            self.parts.append(torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0))
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


def batch_rows(groups: np.ndarray, shares: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """The examples of one step, by a generator keyed by (seed, step): a resumed run draws the same ones.

    ``groups`` int [N] says which sub-task each example belongs to, ``shares`` how often a sub-task is wanted.
    """
    rng = np.random.default_rng([seed, step])
    weight = shares[groups] / np.bincount(groups, minlength=len(shares))[groups]
    return rng.choice(len(groups), size=batch, p=weight / weight.sum())


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: each ``world``-th row from ``rank`` on. Rank 0 writes and reports."""

    rank: int = 0
    world: int = 1

    def of(self, rows):
        return rows[self.rank :: self.world]


WHOLE = Share()


def descend(
    model: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    settings: dict,
    state: Path,
    progress: Callable[[int, float], None],
    share: Share = WHOLE,
) -> list[dict]:
    """Take ``settings['steps']`` optimiser steps on ``loss_at(step)`` and return the log (step, loss, learning rate).

    The model is in training mode meanwhile, and in evaluation mode afterwards.

    ``state`` is rewritten every ``SAVE_EVERY`` steps (or ``settings["save_every"]``); a run that finds it goes on from
    there. With ``share.world`` processes in a ``torch.distributed`` group, gradients are averaged over them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = Optimisers(model, settings)
    step, log = _resume(state, model, optimiser)
    model.train()
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
            if step % settings.get("save_every", SAVE_EVERY) == 0:
                _save(state, model, optimiser, step, log)
    model.eval()
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
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}  # what is frozen is as it was
    content = {"model": trained, "optimiser": optimiser.state_dict(), "step": step, "log": json.dumps(log)}
    torch.save(content, temporary)
    temporary.replace(state)


def _resume(state: Path, model, optimiser) -> tuple[int, list[dict]]:
    if not state.exists():
        return 0, []
    saved = torch.load(state, weights_only=True)
    model.load_state_dict(saved["model"], strict=False)
    optimiser.load_state_dict(saved["optimiser"])
    return saved["step"], json.loads(saved["log"])
