"""``emkit explain``: what a method is, from its own docstrings and declared options."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable
from typing import Any

from pydantic.fields import FieldInfo

from emkit.backbones import NAMES
from emkit.config import Settings, about, default, own_default
from emkit.methods import AUTHORS_ONE, VALIDATION, Method, get, registry

WIDTH = 100
_SCALE = {
    VALIDATION: "free: chosen by the recipe's one rule on validation items, unless its row gives one",
    AUTHORS_ONE: "fixed at 1 by its authors; an option, never searched",
    None: "none",
}


def methods() -> str:
    """One line a method: its name and the first sentence about it; those that only tables have come last."""
    width = max(map(len, registry())) + 2
    lines = {found: f"{found.name:<{width}}{found.about.splitlines()[0]}" for found in registry().values()}
    merging = [line for found, line in lines.items() if found.merges]
    rows = [line for found, line in lines.items() if not found.merges]
    return "\n".join(
        [*merging, "", "Rows of a table that merge nothing:", *rows, "", "emkit explain METHOD says more."]
    )


def method(name: str) -> str:
    """Formula, parts, options with defaults and sources; ``UserError`` for an unknown method."""
    found = get(name)
    sections = [f"{name}\n{'=' * len(name)}\n{found.about}", _facts(found)]
    if found.parts:
        sections.append("Made of\n-------\n" + "\n\n".join(_part(part) for part in found.parts))
    if found.options.model_fields:
        options = "\n".join(_option(key, field) for key, field in found.options.model_fields.items())
        sections.append("Options\n-------\n" + options)
    return "\n\n".join(sections)


def _facts(found: Method) -> str:
    random = "another seed, another result" if found.random else "the same for every seed"
    needs = "unlabeled calibration samples of every expert" if found.learned else "the checkpoints alone"
    scale = _SCALE[found.scale_from]
    if found.scale_from is None and found.scale is not None:
        scale = "none of its own; a recipe may let it start from Task Arithmetic's"
    if found.scale is not None:
        scale += "\n             `emkit merge` takes " + f"\n{' ' * 13}".join(_defaults(found.scale))
    return f"scale:       {scale}\nneeds:       {needs}\nrandomness:  {random}"


def _part(part: Callable) -> str:
    return f"{part.__name__} ({part.__module__})\n{textwrap.indent(inspect.getdoc(part) or '', '  ')}"


def _option(key: str, field: FieldInfo) -> str:
    words = textwrap.fill(about(field), WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"  {key}: " + f"\n  {' ' * len(key)}  ".join(_defaults(field)) + f"\n{words}"


def _defaults(field: FieldInfo) -> list[str]:
    """The default and its source; those of backbones that have others."""
    usual = default(field)
    if usual[0] is ...:
        return ["has to be given"]
    others = {name: found for name in NAMES if (found := default(field, name)) != usual}
    own = own_default(field)
    said = {"": usual, **{f"for {name} ": found for name, found in others.items()}}
    said |= {} if own == usual else {"of one's own models ": own}
    return [f"{words}{_value(value)}" + (f"  ({source})" if source else "") for words, (value, source) in said.items()]


def _value(value: Any) -> str:
    value = value.model_dump(exclude_unset=True) if isinstance(value, Settings) else value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
