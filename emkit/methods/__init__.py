"""The merging methods, one file each: its formula on plain tensors, its streamed form, its options, its registration.

A file of this folder that calls :func:`method` is a method everywhere: in recipes, ``emkit merge``, ``emkit explain``
and ``emkit init``. There is no list to extend.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pydantic.fields import FieldInfo

from emkit.config import Settings, check, extra, is_group, layered, parse
from emkit.errors import UserError
from emkit.merging import Context, Merge
from emkit.schema import fail, nearest

# where a method's scale comes from
VALIDATION = "validation"  # free: the recipe's one rule chooses it on validation items
AUTHORS_ONE = "authors: 1"  # fixed by its authors; an option, never searched


@runtime_checkable
class Started(Protocol):
    """Options of a fit: ``initial``, where its coefficients start."""

    @property
    def initial(self) -> float | Mapping[str, float] | str: ...


@runtime_checkable
class Scaled(Protocol):
    """Options with a ``scale``, λ as its authors fix it."""

    @property
    def scale(self) -> float: ...


@dataclass(frozen=True)
class Method:
    """A merging method.

    ``needs``: ``scale`` (λ, free, or where the fit starts), ``calibration`` (unlabeled samples), ``seed`` (it draws at
    random), and for rows that merge nothing ``model`` or ``expert``, the one that they are. ``options`` is the class of
    its settings, ``scale`` the option that λ is where a recipe or a person gives none. ``inherits`` names the method
    whose settings hold where its own say nothing. ``parts`` are the functions that it is made of, whose docstrings
    state the formulas. ``squares``: how many matrices of a tensor's columns squared it holds at once.
    """

    name: str
    run: Callable[[Context], Merge]
    needs: frozenset[str]
    options: type[Settings]
    scale: FieldInfo | None
    inherits: str | None
    parts: tuple[Callable, ...]
    squares: int = 0

    @property
    def about(self) -> str:
        """Its name, formula and source: the docstring of its file."""
        return inspect.getdoc(sys.modules[self.run.__module__]) or ""

    @property
    def random(self) -> bool:
        """Whether another seed gives another result."""
        return bool(self.needs & {"seed", "calibration"})

    @property
    def learned(self) -> bool:
        """Whether it fits coefficients on calibration samples."""
        return "calibration" in self.needs

    @property
    def merges(self) -> bool:
        """Whether it merges anything: not so the rows of a table that are one model."""
        return not self.needs & {"model", "expert"}

    @property
    def scale_from(self) -> str | None:
        """:data:`VALIDATION`, :data:`AUTHORS_ONE`, or None for a method without a scale of its own."""
        if "scale" in self.options.model_fields:
            return AUTHORS_ONE
        return VALIDATION if "scale" in self.needs and not self.learned else None


_REGISTRY: dict[str, Method] = {}


def method(
    name: str,
    *needs: str,
    options: type[Settings] = Settings,
    scale: FieldInfo | None = None,
    inherits: str | None = None,
    parts: tuple[Callable, ...] = (),
    squares: int = 0,
) -> Callable:
    """Register a function from a :class:`Context` to a :class:`Merge` as the method ``name``; see :class:`Method`."""

    def register(run: Callable[[Context], Merge]) -> Callable[[Context], Merge]:
        if name in _REGISTRY:
            raise ValueError(f"two files register a method '{name}'")
        needed = frozenset(needs) | ({"scale"} if scale is not None else frozenset())
        _REGISTRY[name] = Method(name, run, needed, options, scale, inherits, parts, squares)
        return run

    return register


@functools.cache
def registry() -> Mapping[str, Method]:
    """Every method of this folder by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def get(name: str) -> Method:
    """The method called ``name``; ``UserError`` for an unknown one."""
    if name not in registry():
        raise UserError(f"unknown method '{name}': {nearest(name, registry())}")
    return registry()[name]


def resolved(method: Method, *layers: Mapping[str, Any], backbone: str = "", where: str = "options") -> Settings:
    """Every option of a method: what ``layers`` give, the last one winning, over the defaults for the ``backbone``.

    ``UserError``, beginning with ``where``, for a value that is not one, and for an option without a default that no
    layer gives. A group of options, as ``optimiser``, is merged key by key.
    """
    return parse(method.options, layered(method.options, *layers, backbone=backbone), where)


def check_options(method: Method, given: Any, where: str, experts: Collection[str]) -> None:
    """``UserError`` unless ``given`` are options of the method, of the right type, and where they name experts, these;
    others may be missing."""
    if not method.options.model_fields:
        raise fail(where, f"the method {method.name} has no options")
    check(method.options, layered(method.options, given) if isinstance(given, Mapping) else given, where)
    for key, value in given.items():
        field = method.options.model_fields[key]
        if not isinstance(value, Mapping) or is_group(field):
            continue
        for name in value:
            if name not in experts:
                raise fail(f"{where}.{key}", f"unknown expert '{name}': {nearest(name, experts)}")
        missing = sorted(set(experts) - set(value)) if extra(field, "every_expert", True) else []
        if missing:
            raise fail(f"{where}.{key}", f"the expert '{missing[0]}' has no value")
