"""β_k of Eq. 3 by a rule instead of by hand: ``auto`` and ``balanced``. Not in the paper, which tunes β on validation.

Losses of tasks are not of one size: the base may be a whole nat from a chat expert's answers and a fifth from a code
expert's, and with β = 1 a fit serves the task with the most nats. Both rules measure each task's loss in units of the
loss that the base has on it, L_k(base).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emkit.alignment.samples import TaskSamples

Rule = Literal["auto", "balanced"]
SHARPNESS = 15.0  # of the softmax that stands for a maximum
KEPT = 0.9  # of the running mean of a task's relative losses at a step
LEAST = 1e-3  # of the largest L_k(base): what a task that the base has nothing to learn of counts with


def subtasks(samples: TaskSamples) -> int:
    """n_k: how many kinds of questions a task's samples are of; 1 for prompts in a file."""
    return len({row["subtask"] for rows in samples.rows for row in rows})


def auto(base: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """β_k = n_k / L_k(base): every kind of question counts alike, each task in units of the base's loss on it."""
    floor = LEAST * max(base.values())
    if floor == 0:
        return {task: float(counts[task]) for task in base}
    return {task: counts[task] / max(loss, floor) for task, loss in base.items()}


def balanced(base: Mapping[str, float], relative: Mapping[str, float]) -> dict[str, float]:
    """β_k = K · softmax_k(15 r_k) / L_k(base) with r_k = L_k / L_k(base): a step down max_k r_k, smoothed.

    It is K times the gradient of log Σ_k exp(15 r_k) / 15, of which the maximum is the limit.
    """
    top = max(relative.values())
    shares = {task: math.exp(SHARPNESS * (value - top)) for task, value in relative.items()}
    total = math.fsum(shares.values())
    units = auto(base, dict.fromkeys(base, 1))
    return {task: len(base) * shares[task] / total * units[task] for task in base}


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """The β of every step by ``rule``: ``counts`` n_k, and the losses L_k of all samples at the ``base`` and where the
    fit starts (``start``), hidden and logit terms together."""

    rule: Rule
    counts: Mapping[str, int]
    base: Mapping[str, float]
    start: Mapping[str, float]

    def beta(self, history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """β of the step after ``history``. ``balanced`` looks at a running mean of each task's losses, which begins
        with the relative loss at the start."""
        if self.rule == "auto":
            return auto(self.base, self.counts)
        units = auto(self.base, dict.fromkeys(self.base, 1))
        mean = {task: loss * units[task] for task, loss in self.start.items()}
        for entry in history:
            for task, terms in entry["tasks"].items():
                mean[task] = KEPT * mean[task] + (1 - KEPT) * sum(terms.values()) * units[task]
        return balanced(self.base, mean)
