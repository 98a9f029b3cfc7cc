"""YAML as it is read, and the words of an error about a value in it (:mod:`emkit.config` checks the values)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import yaml

from emkit.errors import UserError

# of whatever becomes a file's name or an argument: letters, digits, _ . + -, and neither hidden nor taken for an option
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$"


def check_name(name: str, where: str, what: str) -> str:
    """The name; ``UserError`` for one that could be a path of its own, an option, or a shell's words."""
    if not re.fullmatch(NAME.strip("^$"), name):
        raise fail(
            where,
            f"{what} '{name}' is not a name: letters, digits, '_', '.', '+' and '-', and the last three not first",
        )
    return name


def fail(where: str, message: str) -> UserError:
    """The line for a wrong value at ``where`` ("file: key.key")."""
    return UserError(f"{where.removesuffix(': ')}: {message}")


def nearest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'x'?" for the closest known word, or the list of all."""
    folded = {str(entry).lower(): str(entry) for entry in known}
    close = difflib.get_close_matches(str(word).lower(), sorted(folded), n=1, cutoff=0.5)
    return f"did you mean '{folded[close[0]]}'?" if close else f"choose one of {', '.join(sorted(folded.values()))}"


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
