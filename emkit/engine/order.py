"""Which samples a step takes, and with which weights: ours, and that of the authors' code (``--like authors``).

Ours: a step takes ``batch`` samples of every task, or a part of one that is a pack of many short questions, and its
loss is the *sum* over tasks of the mean over samples.
The authors': one sample of one task at a time, eight of which make an optimiser step whose loss is their *mean*; tasks
take turns, each giving its last sample first; the last step of an epoch holds what is left, still divided by eight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emkit.calibration import Calibration, TaskSamples
from emkit.engine.variable import Optimiser

ORDERS = ("tasks", "authors")
ACCUMULATED = 8  # the authors' gradient accumulation


@dataclass(frozen=True)
class Piece:
    """Sequence ``index`` of a task in a step, with the weight of each of its n positions (β not among them)."""

    task: TaskSamples
    index: int
    weights: np.ndarray

    @property
    def length(self) -> int:
        return len(self.task.sequences[self.index].ids)


def pieces(calibration: Calibration, order: str, batch: int | float | str, step: int, seed: int) -> list[Piece]:
    """The sequences of a step."""
    if order == "authors":
        turns = authors_turns(calibration)
        return [
            Piece(task, i, weights / ACCUMULATED)
            for name, sample in turns[step * ACCUMULATED : (step + 1) * ACCUMULATED]
            for task, i, weights in _weighted(calibration.tasks[name], [_sequences(calibration.tasks[name], sample)])
        ]
    return [
        Piece(*found)
        for number, task in enumerate(calibration.tasks.values())
        for found in _weighted(task, _chosen(task, batch, step, seed, number))
    ]


def _chosen(task: TaskSamples, batch: int | float | str, step: int, seed: int, number: int) -> list[list[int]]:
    """The sequences of a step, a list for each sample or part of one."""
    units = [_sequences(task, sample) for sample in range(task.samples)]
    if isinstance(batch, float) and batch < 1:
        parts = round(1 / batch)
        units = [unit[part::parts] for unit in units for part in range(min(parts, len(unit)))]
        batch = 1
    return [units[i] for i in chosen_samples(len(units), batch, step, seed, number)]


def authors_turns(calibration: Calibration) -> list[tuple[str, int]]:
    """(task, sample) of each micro-step of the authors' one epoch: tasks in turn, the last sample of each first."""
    left = {name: list(range(task.samples)) for name, task in calibration.tasks.items()}
    turns: list[tuple[str, int]] = []
    while any(left.values()):
        turns += [(name, samples.pop()) for name, samples in left.items() if samples]
    return turns


def authors_steps(samples: int) -> int:
    """Optimiser steps of one epoch of the authors' loop over ``samples`` samples of all tasks together."""
    return -(-samples // ACCUMULATED)


def pull(order: str, kind: str, n: int, experts: int, count: float, calibration: Calibration, step: int) -> float:
    """The weight of Σ |α − ᾱ| in a step's loss, before γ: R(α) is that sum times it (Eq. 3).

    n coefficients in all, ``count`` of each expert in the paper's count (L or B). See
    :func:`emkit.objectives.regulariser`; in the authors' order each micro-step has 1/(n/K) of it, and a step an eighth
    of the sum of its micro-steps'.
    """
    if order == "authors":
        present = len(authors_turns(calibration)[step * ACCUMULATED : (step + 1) * ACCUMULATED])
        return present / ACCUMULATED / (n / experts)
    return 1 / (experts * count) if kind == "paper" else experts / (n / experts)


def authors_settings(settings: dict, samples: int, experts: int) -> dict:
    """A recipe's settings with those of the authors' default run in their place (facts of their code, October 2025).

    ``samples`` of each task make the one epoch. γ, β and ᾱ stay the recipe's (γ then in the authors' units); the
    hidden term is off unless ``hidden_weight`` is given, as theirs is unless a layer is named. Not reproduced: fp16,
    and ``torch.chunk``'s sizes, which may leave coefficients without an effect.
    """
    optimiser = Optimiser(
        "adamw", 0.5, 1e-5, authors_steps(samples * experts), "cosine_restarts", batch=1, clip=1.0, period=50
    )
    changes = {
        "parameterisation": "sigmoid",
        "temperature": 1.0,
        "regulariser": "authors",
        "hidden_loss": "mean_squared",
        "tokens": "all",
        "optimiser": vars(optimiser),
    }
    chunked = {"fixed": "initial", "start": "initial"} if "fixed" in settings else {}
    return {"hidden_weight": 0.0} | settings | changes | chunked


def chosen_samples(samples: int, batch: int | str, step: int, seed: int, task: int) -> list[int]:
    """Which of a task's samples a step takes: each once an epoch, in an order drawn anew every epoch."""
    if batch == "all" or batch >= samples:
        return list(range(samples))
    per_epoch = -(-samples // batch)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, task, epoch]).permutation(samples)
    return sorted(order[place * batch : (place + 1) * batch].tolist())


def _sequences(task: TaskSamples, sample: int) -> list[int]:
    """Indices of the sequences that a sample is made of."""
    return [i for i, s in enumerate(task.sample_of) if s == sample]


def _weighted(task: TaskSamples, units: list[list[int]]) -> Iterator[tuple[TaskSamples, int, np.ndarray]]:
    """Each sequence of the chosen units with the weight of its positions: every unit's mean counts alike, and a task's
    weights sum to 1."""
    for indices in units:
        total = sum(task.sequences[i].count.sum() for i in indices)
        for i in indices:
            count = task.sequences[i].count
            yield task, i, count[count > 0] / (total * len(units))
