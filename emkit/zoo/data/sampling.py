"""Specifications: what an image shows, drawn at random before it is rendered.

A *spec* is plain JSON. Its SHA-256 decides the split it belongs to, so the splits are disjoint by construction: no spec
can be in two of them, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Spec = dict[str, Any]

SPLITS = ("train", "validation", "evaluation")
_SPLIT_OF_TENTH = ("train",) * 8 + ("validation", "evaluation")


class Draw:
    """Random choices from one numpy Generator, by `random()` alone (fast, and the same on every platform)."""

    def __init__(self, *entropy: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).random

    def integer(self, low: int, high: int) -> int:
        """A uniform integer in [low, high], both ends included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items, in random order (partial Fisher-Yates)."""
        pool = list(items)
        for i in range(count):
            j = self.integer(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.sample(items, len(items))


def key_of(spec: Spec) -> str:
    """SHA-256 (hex) of the spec's canonical JSON."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def split_of(key: str) -> str:
    """The split a spec belongs to: 8 tenths train, 1 validation, 1 evaluation."""
    return _SPLIT_OF_TENTH[int(key[:8], 16) % 10]


def sample_spec(sample: Callable[[Draw], Spec], draw: Draw, split: str) -> tuple[Spec, str]:
    """The first spec that `sample` proposes for this split, and its key."""
    while True:
        spec = sample(draw)
        key = key_of(spec)
        if split_of(key) == split:
            return spec, key
