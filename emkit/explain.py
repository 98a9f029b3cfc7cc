"""``emkit explain``: what a method is, from its own docstrings and declared options."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import Any

from emkit.methods import FAMILIES, REGISTRY, REQUIRED, Method, get
from emkit.methods.registry import AUTHORS_ONE, VALIDATION
from emkit.own import defaults
from emkit.own.recipe import METHODS

WIDTH = 100
_SCALE = {
    VALIDATION: "free: chosen by the recipe's one rule on validation items, unless its row gives one",
    AUTHORS_ONE: "fixed at 1 by its authors; an option, never searched",
    None: "none",
}


def methods() -> str:
    """One line a method: its name and the first sentence of its docstring; those that only tables have come last."""
    width = max(map(len, REGISTRY)) + 2
    families = [family.__name__ for family in FAMILIES]
    ordered = sorted(REGISTRY.values(), key=lambda found: families.index(found.run.__module__))
    lines = {found.name: f"{found.name:<{width}}{inspect.getdoc(found.run).splitlines()[0]}" for found in ordered}
    merging = [line for name, line in lines.items() if name in METHODS]
    rows = [line for name, line in lines.items() if name not in METHODS]
    return "\n".join(
        [*merging, "", "Rows of a table that merge nothing:", *rows, "", "emkit explain METHOD says more."]
    )


def method(name: str) -> str:
    """Formula, parts, options with defaults and sources; ``UserError`` for an unknown method."""
    found = get(name)
    sections = [f"{name}\n{'=' * len(name)}\n{inspect.getdoc(found.run)}", _facts(found)]
    if found.parts:
        sections.append("Made of\n-------\n" + "\n\n".join(_part(part) for part in found.parts))
    if found.options:
        sections.append("Options\n-------\n" + "\n".join(_option(key, found) for key in found.options))
    return "\n\n".join(sections)


def _facts(found: Method) -> str:
    random = "another seed, another result" if found.random else "the same for every seed"
    needs = "unlabeled calibration samples of every expert" if found.learned else "the checkpoints alone"
    scale = _SCALE[found.scale]
    if found.scale is None and "scale" in found.needs:
        scale = "none of its own; a recipe may let it start from Task Arithmetic's"
    own = defaults.scale(found.name, "auto")
    if own is not None:
        scale += f"\n             `emkit merge` takes {own.value:g} unless told otherwise ({own.source})"
    return f"scale:       {scale}\nneeds:       {needs}\nrandomness:  {random}"


def _part(part: Any) -> str:
    return f"{part.__name__} ({part.__module__})\n{textwrap.indent(inspect.getdoc(part), '  ')}"


def _option(key: str, found: Method) -> str:
    option = found.options[key]
    default = repr(option.default) if option.default is REQUIRED else f"default {_value(option.default)}"
    own = defaults.options(found.name, "auto").get(key)
    if own is not None:
        default += f"; `emkit merge` takes {_value(own.value)} unless told otherwise ({own.source})"
    about = textwrap.fill(option.about, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"  {key}: {default}\n{about}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
