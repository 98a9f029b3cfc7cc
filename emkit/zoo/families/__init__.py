"""What differs between the zoos of two families of models, and only that: one module a family, with its :class:`Family`
as ``FAMILY``. A recipe's ``family`` is its backbone's unless it names another."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from emkit.errors import UserError
from emkit.zoo.train import Share

NAMES = ("internvl", "qwen2_vl", "mistral", "smollm2")


class Family(ABC):
    """``ABOUT``: two sentences about any of its models, for the cards; ``YARDSTICK``: how skills are counted;
    ``BATCH_OF``: what a batch consists of; ``DOMAINS``: expert → the sub-tasks it is trained on (the columns it is
    meant to lead); ``SUBTASKS``: all of them."""

    ABOUT: str
    YARDSTICK: str
    BATCH_OF: str
    DOMAINS: dict[str, tuple[str, ...]]
    SUBTASKS: tuple[str, ...]

    @abstractmethod
    def draw(self, recipe: dict, subtask: str, n: int, seed: int) -> list:
        """``n`` examples of the training split."""

    @abstractmethod
    def expert_set(self, recipe: dict, processor, drawn: list, model) -> Any:
        """What :meth:`train` takes, for a fine-tuning of ``model``, where what is not to be trained must no longer
        require a gradient."""

    def save(self, recipe: dict, model, processor, folder: Path) -> None:
        """Write a trained ``model`` (bf16) with everything that ``from_pretrained`` needs."""
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    @abstractmethod
    def train(self, model, processor, data, settings: dict, seed, state, shares, progress, share: Share) -> list[dict]:
        """Train ``model`` in place; the log (see :func:`emkit.zoo.train.descend`)."""

    @abstractmethod
    def skills(self, recipe: dict, model, processor) -> dict[str, float]:
        """Percent correct of every sub-task on ``skill_items`` validation items."""


class FromNothing(Family):
    """A family whose base is trained here, too."""

    @abstractmethod
    def processor(self, recipe: dict) -> Any:
        """The zoo's processor or tokenizer."""

    @abstractmethod
    def create(self, recipe: dict, processor, seed: int) -> Any:
        """An untrained model (fp32, CPU)."""

    @abstractmethod
    def base_set(self, recipe: dict, processor, drawn: list) -> Any:
        """What :meth:`train` takes, for a base."""

    def prepare(self, recipe: dict, drawn: list, work: Path) -> Any:
        """What :meth:`pretrain` needs; None where there is nothing to do."""
        return None

    def pretrain(self, recipe: dict, model, prepared, seed: int, work: Path, bar, share: Share) -> None:
        """What comes before a base, if anything does."""
        return None


def get(name: str) -> Family:
    """The family called ``name``; ``UserError`` for one that has no zoo."""
    if name not in NAMES:
        raise UserError(f"there is no zoo of '{name}': choose one of {', '.join(NAMES)}")
    return importlib.import_module(f"emkit.zoo.families.{name}").FAMILY


def of(recipe: dict) -> Family:
    """The family of a zoo recipe."""
    return get(recipe.get("family", recipe["backbone"]))
