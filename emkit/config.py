"""Typed settings, by pydantic: what a method, a fit or a recipe may be told.

A setting stands once, in the class of whoever uses it, with its type, bounds, default, one line about it and the source
of its default; recipes, the command line, ``emkit explain``, ``emkit init`` and the code that runs all read that class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from emkit.errors import UserError
from emkit.schema import NAME, fail, nearest

S = TypeVar("S", bound="Settings")
Text = Annotated[str, Field(pattern=r"\S")]  # not empty
Name = Annotated[str, Field(pattern=NAME)]  # what may become a file's name or an argument


class Settings(BaseModel):
    """A group of settings. Unknown keys are errors, nothing is converted but a whole number to a real one, and a
    group never changes (``model_copy(update=…)`` makes another)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


def option(
    default: Any,
    about: str,
    source: str = "",
    by_backbone: Mapping[str, tuple[Any, str]] | None = None,
    every_expert: bool = True,
    own: tuple[Any, str] | None = None,
    **bounds: Any,
) -> Any:
    """A field of :class:`Settings`: its ``default`` (``...``: none, it has to be given), what it is ``about``, and the
    ``source`` of the default (who says so, or why it is ours). ``by_backbone``: where a backbone has another default,
    that and its source. ``every_expert``: whether a mapping from experts must name all of them. ``own``: the default,
    and its source, in a merge of one's own models, where it is another than in a table. ``bounds`` are pydantic's:
    ``ge``, ``gt``, ``le``, …"""
    extra: Any = {"source": source, "by_backbone": dict(by_backbone or {}), "every_expert": every_expert, "own": own}
    return Field(default, description=about, json_schema_extra=extra, **bounds)


def about(field: FieldInfo) -> str:
    """What an :func:`option` is about."""
    return field.description or ""


def default(field: FieldInfo, backbone: str = "") -> tuple[Any, str]:
    """An :func:`option`'s default for a backbone, and its source; ``...`` where it has to be given."""
    usual = ... if field.is_required() else field.get_default(call_default_factory=True)
    return extra(field, "by_backbone", {}).get(backbone, (usual, extra(field, "source", "")))


def own_default(field: FieldInfo, backbone: str = "") -> tuple[Any, str]:
    """An :func:`option`'s default in a merge of one's own models, and its source."""
    return extra(field, "own", None) or default(field, backbone)


def own_defaults(model: type[Settings]) -> dict[str, Any]:
    """The defaults of a group that are others in a merge of one's own models."""
    return {key: found[0] for key, field in model.model_fields.items() if (found := extra(field, "own", None))}


def is_group(field: FieldInfo) -> bool:
    """Whether an :func:`option` is a group of settings itself."""
    return any(_groups(field.annotation))


def extra(field: FieldInfo, key: str, otherwise: Any) -> Any:
    """What an :func:`option` was declared with besides pydantic's."""
    found: Any = field.json_schema_extra or {}
    return found.get(key, otherwise)


def layered(model: type[Settings], *layers: Mapping[str, Any], backbone: str = "") -> dict[str, Any]:
    """The values of ``layers`` over each other, the last one winning, and a backbone's own defaults under them all.

    A group within the group is merged key by key, starting from its default (part of an optimiser may be given).
    """
    fields = model.model_fields
    other = {key: extra(field, "by_backbone", {}) for key, field in fields.items()}
    values = {key: found[backbone][0] for key, found in other.items() if backbone in found}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and key in fields and is_group(fields[key]):
                under = values.get(key, default(fields[key], backbone)[0])
                under = under.model_dump() if isinstance(under, Settings) else under
                value = {**under, **value} if isinstance(under, Mapping) else value
            values[key] = value
    return values


def parse(model: type[S], data: Any, where: str) -> S:
    """``data`` as a ``model``; ``UserError`` of one line for the first mistake, beginning with ``where``.

    ``where`` ends in ": " at a file's top ("r.yaml: "), and without it below ("r.yaml: methods.ties").
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _told(error.errors(include_url=False), model, data, where) from None


def check(model: type[Settings], data: Any, where: str) -> None:
    """``UserError``, as :func:`parse`'s, unless ``data`` are settings of a ``model``, perhaps not all."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        wrong = [each for each in mistakes if each["type"] != "missing" or len(each["loc"]) > 1]
        if wrong:
            raise _told(wrong, model, data, where) from None


def _told(mistakes: Iterable[Any], model: type[BaseModel], data: Any, where: str) -> UserError:
    """The mistake to name: a misspelt key before one that is missing for it; of a union's branches the one that the
    value went furthest into."""
    found = [(*_reached(data, each["loc"]), each) for each in mistakes]
    found.sort(key=lambda mistake: mistake[2]["type"] != "extra_forbidden")
    first = found[0]
    alike = [mistake for mistake in found if mistake[0][:1] == first[0][:1]]
    path, value, told = max(alike, key=lambda mistake: (mistake[2]["type"] == "extra_forbidden", len(mistake[0])))
    if told["type"] == "dict_type" and isinstance(value, str):  # a word in place of a mapping: one of some words
        told = next((other for _, _, other in alike if other["type"] == "literal_error"), told)
    if told["loc"][-1:] == ("[key]",):
        return fail(_place(where, path[:-1]), f"the key {told['input']!r} is not text: quote it")
    if told["type"] in ("extra_forbidden", "missing"):
        key, parent = told["loc"][-1], path[:-1] if told["type"] == "extra_forbidden" else path
        if told["type"] == "missing":
            return fail(_place(where, parent), f"the key '{key}' is missing")
        return fail(_place(where, parent), f"unknown key '{key}': {nearest(str(key), _keys(model, parent))}")
    return fail(_place(where, path), _words(told, value))


def _reached(data: Any, loc: tuple) -> tuple[tuple, Any]:
    """The part of pydantic's path that is a path in ``data`` (a union's branch names are not), and the value there."""
    path: list = []
    for part in loc:
        there = part in data if isinstance(data, Mapping) else isinstance(data, list) and part in range(len(data))
        if there:
            path.append(part)
            data = data[part]
    return tuple(path), data


def _place(where: str, path: tuple) -> str:
    for part in path:
        if isinstance(part, int):
            where += f"[{part}]"
        else:
            where += part if where.endswith(": ") or not where else f".{part}"
    return where


def _keys(model: type[BaseModel], path: tuple) -> list[str]:
    """The keys that the group at ``path`` below ``model`` has."""
    for part in path:
        field = model.model_fields.get(part) if not isinstance(part, int) else None
        groups = list(_groups(field.annotation)) if field is not None else [model]
        if not groups:
            return []
        model = groups[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _groups(annotation: Any) -> Iterator[type[BaseModel]]:
    """The groups of settings within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, list, dict, tuple):
        for part in get_args(annotation):
            yield from _groups(part)


def _words(told: Mapping[str, Any], value: Any) -> str:
    kind, context = told["type"], told.get("ctx", {})
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"unknown value '{value}': {nearest(str(value), known)}"
    if kind == "string_pattern_mismatch" and not value.strip():
        return "the text is empty"
    if kind == "value_error":
        return str(context["error"])
    limits = {"greater_than_equal": ("ge", "less than"), "less_than_equal": ("le", "more than")}
    limits |= {"greater_than": ("gt", "not more than"), "less_than": ("lt", "not less than")}
    if kind in limits:
        key, words = limits[kind]
        return f"{value} is {words} {context[key]:g}"
    kinds = {
        "float_type": "is not a number",
        "finite_number": "is not a finite number",
        "int_type": "is not a whole number",
        "int_from_float": "is not a whole number",
        "bool_type": "is neither true nor false",
        "string_unicode": "is not UTF-8: give it another name",
        "string_type": "is not text",
        "string_too_short": "is empty",
        "dict_type": "is not a mapping",
        "model_type": "is not a mapping",
        "model_attributes_type": "is not a mapping",
        "list_type": "is not a list",
        "too_short": "is empty",
    }
    return f"{value!r} {kinds[kind]}" if kind in kinds else f"{value!r}: {told['msg']}"
