"""Which samples a step takes, and with which weights: ours, and that of the authors' code (``--like authors``).

Ours: a step takes ``batch`` samples of every task, or a part of one that is a pack of many short questions, and its
loss is the *sum* over tasks of the mean over samples.
The authors': one sample of one task at a time, eight of which make an optimiser step whose loss is their *mean*; the
last step of an epoch holds what is left, still divided by eight. In their trainers' base class tasks take turns, each
giving its last sample first (``authors``); their InternVL trainer shuffles turns in which a task with fewer samples
begins again (``authors_shuffled``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from emkit.alignment.calibration import Calibration, TaskSamples

AUTHORS = ("authors", "authors_shuffled")
ORDERS = ("tasks", *AUTHORS)
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
    """The sequences of a step; one whose sample has several turns in it is there as many times."""
    if order in AUTHORS:
        turns = authors_turns(calibration, order, seed)
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


def authors_order(backbone: str) -> str:
    """Which of the authors' orders a backbone has: that of their InternVL trainer, else that of its base class."""
    return "authors_shuffled" if backbone == "internvl" else "authors"


def authors_turns(calibration: Calibration, order: str = "authors", seed: int = 0) -> list[tuple[str, int]]:
    """(task, sample) of each micro-step of the authors' one epoch.

    ``authors``: tasks in turn, the last sample of each first, until all have had their turn. ``authors_shuffled``: as
    many rounds of all tasks as the largest has samples, a smaller one beginning again, and of this list a permutation
    drawn from ``seed``. Which permutation a process of theirs draws cannot be known: it comes from global generators
    that everything before it has drawn from, one of which shuffled the samples themselves.
    """
    if order == "authors_shuffled":
        sizes = {name: task.samples for name, task in calibration.tasks.items()}
        rounds = [(name, i % size) for i in range(max(sizes.values())) for name, size in sizes.items()]
        drawn = torch.randperm(len(rounds), generator=torch.Generator().manual_seed(seed))
        return [rounds[i] for i in drawn.tolist()]
    left = {name: list(range(task.samples)) for name, task in calibration.tasks.items()}
    turns: list[tuple[str, int]] = []
    while any(left.values()):
        turns += [(name, samples.pop()) for name, samples in left.items() if samples]
    return turns


def authors_steps(samples: Sequence[int], order: str = "authors") -> int:
    """Optimiser steps of one epoch of the authors' loop over so many samples of each task."""
    turns = max(samples) * len(samples) if order == "authors_shuffled" else sum(samples)
    return -(-turns // ACCUMULATED)


def tasks_in(calibration: Calibration, order: str, step: int) -> float:
    """How many tasks' losses a step adds up; the authors' step is the mean over eight micro-steps of one task each."""
    if order not in AUTHORS:
        return len(calibration.tasks)
    return len(authors_turns(calibration, order)[step * ACCUMULATED : (step + 1) * ACCUMULATED]) / ACCUMULATED


def chosen_samples(samples: int, batch: float | str, step: int, seed: int, task: int) -> list[int]:
    """Which of a task's samples a step takes: each once an epoch, in an order drawn anew every epoch."""
    if isinstance(batch, str) or batch >= samples:  # "all"
        return list(range(samples))
    batch = int(batch)
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
