"""Checking plain YAML data against a description of it, with errors a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from emkit.errors import UserError

Check = Callable[[Any, str], None]  # value, where → raises UserError


@dataclass(frozen=True)
class Key:
    """One key of a mapping: the ``check`` of its value, and whether it may be left out."""

    check: Check
    required: bool = True


def fail(where: str, message: str) -> UserError:
    """The line for a wrong value at ``where`` ("file: key.key")."""
    return UserError(f"{where.removesuffix(': ')}: {message}")


def nearest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the closest known word, or the list of all."""
    folded = {str(entry).lower(): str(entry) for entry in known}
    close = difflib.get_close_matches(str(word).lower(), sorted(folded), n=1, cutoff=0.5)
    return f"did you mean '{folded[close[0]]}'?" if close else f"choose one of {', '.join(sorted(folded.values()))}"


def mapping(keys: Mapping[str, Key]) -> Check:
    """A mapping with exactly these keys."""

    def check(value: Any, where: str) -> None:
        _is(value, dict, where, "a mapping")
        for key in value:
            if key not in keys:
                raise fail(where, f"unknown key '{key}': {nearest(key, keys)}")
        for key, rule in keys.items():
            if key in value:
                rule.check(value[key], _below(where, key))
            elif rule.required:
                raise fail(where, f"the key '{key}' is missing")

    return check


def mapping_of(item: Check) -> Check:
    """A mapping from any text to ``item``."""

    def check(value: Any, where: str) -> None:
        _is(value, dict, where, "a mapping")
        for key, entry in value.items():
            _is(key, str, _below(where, key), "text as its key")
            item(entry, _below(where, key))

    return check


def list_of(item: Check) -> Check:
    """A list, not empty, of ``item``."""

    def check(value: Any, where: str) -> None:
        _is(value, list, where, "a list")
        if not value:
            raise fail(where, "the list is empty")
        for i, entry in enumerate(value):
            item(entry, f"{where}[{i}]")

    return check


def text(value: Any, where: str) -> None:
    """Text that is not empty."""
    _is(value, str, where, "text")
    if not value.strip():
        raise fail(where, "the text is empty")


def number(low: float = float("-inf"), high: float = float("inf")) -> Check:
    """A finite number in [low, high]."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise fail(where, f"{value!r} is not a number")
        if not low <= value <= high or value in (float("inf"), float("-inf")):
            raise fail(where, f"{value} is not a number from {low:g} to {high:g}")

    return check


def integer(low: int = 0) -> Check:
    """A whole number of at least ``low``."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise fail(where, f"{value!r} is not a whole number")
        if value < low:
            raise fail(where, f"{value} is less than {low}")

    return check


def boolean(value: Any, where: str) -> None:
    """true or false."""
    if not isinstance(value, bool):
        raise fail(where, f"{value!r} is neither true nor false")


def choice(*known: str) -> Check:
    """One of these words."""

    def check(value: Any, where: str) -> None:
        if value not in known:
            raise fail(where, f"unknown value '{value}': {nearest(value, known)}")

    return check


def anything(value: Any, where: str) -> None:
    """Whatever it is; for values that are checked elsewhere."""


def nullable(item: Check) -> Check:
    """``item`` or null."""
    return lambda value, where: None if value is None else item(value, where)


def either(*items: Check) -> Check:
    """What any of ``items`` accepts; the first one's complaint otherwise."""

    def check(value: Any, where: str) -> None:
        first = None
        for item in items:
            try:
                return item(value, where)
            except UserError as error:
                first = first or error
        raise first

    return check


def _is(value: Any, kind: type, where: str, words: str) -> None:
    if not isinstance(value, kind):
        raise fail(where, f"{value!r} is not {words}")


def _below(where: str, key: Any) -> str:
    return f"{where}{'' if where.endswith(': ') else '.'}{key}"


class Loader(yaml.SafeLoader):
    """YAML without its two silent traps: a key given twice is an error, and ``1e-5`` is a number, not text."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
for _first in "-+0123456789":
    Loader.yaml_implicit_resolvers.setdefault(_first, []).append(
        ("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"))
    )


def load_yaml(content: str, where: str) -> Any:
    """Parse YAML; ``UserError`` naming file and line for what is not YAML."""
    try:
        return yaml.load(content, Loader)  # Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
