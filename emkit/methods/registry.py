"""What a method is: a named function with what it needs, its options, where its scale comes from, and a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emkit.alignment.learner import Learned
from emkit.alignment.options import EngineOptions
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.schema import Check, nearest
from emkit.task_vectors import TaskVectors

if TYPE_CHECKING:  # the recipe's schema is made of the methods' options
    from emkit.recipe import Recipe

Tensors = Callable[[str], torch.Tensor]  # makes the tensor of a name when it is asked for

# where a method's scale comes from
VALIDATION = "validation"  # free: the recipe's one rule chooses it on validation items
AUTHORS_ONE = "authors: 1"  # fixed by its authors; an option, never searched


class _Required:
    def __repr__(self) -> str:
        return "given by the recipe"


REQUIRED = _Required()  # the default of an option that every recipe has to give, with its source


@dataclass(frozen=True)
class Option:
    """An option of a method: the ``check`` of its value, its ``default`` (or ``REQUIRED``), and ``about``: what it
    does, who says so, and why the default is what it is."""

    check: Check
    default: Any
    about: str


@dataclass(frozen=True)
class Context:
    """What a method may use: the row's options, recipe, seed and free scale, and the checkpoints, opened and compared.

    ``options`` is complete: every option of the method has its value. ``recipe`` and ``backbone`` are for methods that
    need calibration; ``engine`` says what a fit may use of the machine.
    """

    recipe: Recipe
    row: Mapping
    seed: int
    cache: Path
    scale: float | None
    progress: bool
    backbone: Backbone
    base: Checkpoint
    task_vectors: TaskVectors
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    engine: EngineOptions = field(default_factory=EngineOptions)

    def needed_scale(self) -> float:
        """The free scale: the row's own, else the one that the recipe's rule chose; ``UserError`` if there is none."""
        scale = self.row.get("scale", self.scale)
        if scale is None:
            raise UserError(f"row '{self.row['id']}' needs a scale: choose it on the validation items first")
        return float(scale)


@dataclass(frozen=True)
class Merge:
    """A method's result: a function that makes the merged tensor of a name, the checkpoint whose names, shapes, dtypes
    and side files the result has, and, for linear methods, the coefficients; ``learned`` holds what a fit left behind.
    """

    tensors: Tensors
    like: Checkpoint
    coefficients: Coefficients | None = None
    scale: float | None = None
    learned: Learned | None = None


@dataclass(frozen=True)
class Method:
    """A merging method.

    ``needs``: ``scale`` (a scale that the recipe's rule chooses, its own or the one it starts from), ``calibration``
    (unlabeled samples) and ``seed`` (it draws at random). ``scale`` says where a fixed or free factor comes from
    (:data:`VALIDATION`, :data:`AUTHORS_ONE`, or None for a method without one). ``inherits`` names the method whose
    settings hold where its own say nothing. ``parts`` are the functions that it is made of, whose docstrings state
    the formulas.
    """

    name: str
    needs: frozenset[str]
    run: Callable[[Context], Merge]
    options: Mapping[str, Option] = field(default_factory=dict)
    scale: str | None = None
    inherits: str | None = None
    parts: tuple[Callable, ...] = ()

    @property
    def random(self) -> bool:
        """Whether another seed gives another result."""
        return bool(self.needs & {"seed", "calibration"})

    @property
    def learned(self) -> bool:
        """Whether it fits coefficients on calibration samples."""
        return "calibration" in self.needs


REGISTRY: dict[str, Method] = {}


def method(
    *needs: str,
    options: Mapping[str, Option] | None = None,
    scale: str | None = None,
    inherits: str | None = None,
    parts: tuple[Callable, ...] = (),
) -> Callable:
    """Register the function under its own name; the arguments are :class:`Method`'s."""

    def register(run: Callable[[Context], Merge]) -> Callable:
        REGISTRY[run.__name__] = Method(
            run.__name__, frozenset(needs), run, dict(options or {}), scale, inherits, parts
        )
        return run

    return register


def get(name: str) -> Method:
    """The method called ``name``; ``UserError`` for an unknown one."""
    if name not in REGISTRY:
        raise UserError(f"unknown method '{name}': {nearest(name, REGISTRY)}")
    return REGISTRY[name]
