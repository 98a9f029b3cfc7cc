"""``emkit explain``: what a method is, from its own docstrings and declared options, and the numbers in use."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable
from typing import Any

from pydantic.fields import FieldInfo

from emkit.backbones import NAMES
from emkit.config import Settings, about, default
from emkit.methods import AUTHORS_ONE, VALIDATION, Method, get, registry
from emkit.recipe import Recipe

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


def method(name: str, recipe: Recipe | None = None) -> str:
    """Formula, parts, options with defaults and sources, and with a ``recipe`` the values in use.

    ``UserError`` for an unknown method.
    """
    found = get(name)
    sections = [f"{name}\n{'=' * len(name)}\n{found.about}", _facts(found)]
    if found.parts:
        sections.append("Made of\n-------\n" + "\n\n".join(_part(part) for part in found.parts))
    if found.options.model_fields:
        options = "\n".join(_option(key, field) for key, field in found.options.model_fields.items())
        sections.append("Options\n-------\n" + options)
    if recipe is not None:
        sections.append(_in_use(found, recipe))
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
    said = {"": usual, **{f"for {name} ": found for name, found in others.items()}}
    return [f"{words}{_value(value)}" + (f"  ({source})" if source else "") for words, (value, source) in said.items()]


def _in_use(found: Method, recipe: Recipe) -> str:
    """The values of every row with this method, each with the recipe's source for it."""
    lines = [f"In {recipe.path}", "-" * (3 + len(str(recipe.path)))]
    rows = [row for row in recipe.rows if row["method"] == found.name]
    if not rows:
        return "\n".join([*lines, "no row has this method"])
    for row in rows:
        lines.append(f"row {row['id']} ({row['label']})")
        if "scale" in row:
            lines.append(f"  scale = {row['scale']:g}  (given in the row)")
        elif found.scale_from == VALIDATION:
            lines.append(f"  scale = one of {recipe.data['scale']['grid']}  ({recipe.data['scale']['rule']})")
        for key, value in recipe.settings(row).model_dump().items():
            lines.append(f"  {key} = {_value(value)}  ({_source(found, key, row, recipe)})")
    return "\n".join(lines)


def _source(found: Method, key: str, row: dict, recipe: Recipe) -> str:
    """Where the value comes from: the row, a ``methods`` section with its stated source, or the default."""
    if key in row.get("options", {}):
        return "given in the row"
    for name in (found.name, found.inherits):
        if name and key in recipe.data["methods"].get(name, {}):
            dotted = f"methods.{name}.{key}"
            return recipe.data.get("sources", {}).get(dotted, dotted)
    source = default(found.options.model_fields[key], recipe.backbone)[1]
    return f"default: {source}" if source else "default"


def _value(value: Any) -> str:
    value = value.model_dump(exclude_unset=True) if isinstance(value, Settings) else value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
