"""Merging in Python: ``emkit.ties(base, experts, density=0.2)``, and a merge that can be changed and asked again.

Models are folders, hub ids or state dicts. Every method of :mod:`emkit.methods` is a function here, whose keyword
arguments are the method's options; :func:`merge` takes the method by name. Nothing is computed before it is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emkit import methods
from emkit.config import own_default
from emkit.errors import UserError
from emkit.experts import Experts, Model
from emkit.live import Live
from emkit.merged import Merged

__all__ = ["Experts", "Live", "Merged", "merge"]


def merge(
    base: Model | Experts,
    experts: Mapping[str, Model] | Sequence[Model] | None = None,
    method: str = "ties",
    *,
    out: str | Path | None = None,
    **options: Any,
) -> Merged:
    """Merge ``experts`` of one ``base`` by a method; with ``out`` the result is written there at once.

    Models are folders, hub ids or state dicts; ``base`` may be :class:`Experts`, which are opened already. ``options``
    are the method's own (``emkit explain METHOD``), ``scale`` (λ, of a method with a free one), ``seed``, ``device``,
    and for learned methods ``prompts`` (of each expert, without answers: a JSONL file or a list), ``samples``,
    ``max_new_tokens``, ``cache`` (where calibration sets and fits are kept) and ``progress``. How models are opened:
    ``backbone``, ``tensors`` and ``allow`` of :class:`Experts`.
    """
    opening = {key: options.pop(key) for key in ("backbone", "tensors", "allow") if key in options}
    if not isinstance(base, Experts):
        if experts is None:
            raise UserError("there are no experts: emkit.merge(base, experts, method)")
        base = Experts(base, experts, **opening)
    merged = Merged(base, method, options)
    if out is not None:
        merged.save(out)
    return merged


def function(name: str) -> Callable[..., Merged]:
    """The method ``name`` as a function of a base and its experts, with its options as keyword arguments."""
    found = methods.get(name)

    def merge_by(base, experts=None, **options):
        return merge(base, experts, name, **options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("base", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("experts", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
    ]
    if "scale" in found.needs and "scale" not in found.options.model_fields:
        parameters.append(
            inspect.Parameter("scale", keyword, default=None if found.scale is None else found.scale.default)
        )
    if found.learned:
        parameters.append(inspect.Parameter("prompts", keyword))
    for key, field in found.options.model_fields.items():
        parameters.append(inspect.Parameter(key, keyword, default=own_default(field)[0], annotation=field.annotation))
    parameters.append(inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD))
    merge_by.__name__ = merge_by.__qualname__ = name
    merge_by.__doc__ = f"{found.about}\n\nFurther keyword arguments are those of :func:`emkit.merge`."
    merge_by.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return merge_by


def methods_that_merge() -> list[str]:
    """The methods that are functions here."""
    return [name for name, found in methods.registry().items() if found.merges]


def named(name: str) -> Any:
    """What ``emkit.<name>`` is; ``AttributeError`` for nothing of this module and no method."""
    if name in __all__:
        return globals()[name]
    if name in methods_that_merge():
        return function(name)
    raise AttributeError(f"module 'emkit' has no attribute '{name}'")
