"""YAML as it is read, and the words of an error about a value in it (:mod:`emkit.config` checks the values)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

from emkit.errors import UserError
from emkit.foreign import check_depth

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
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no single word", key_node.start_mark)
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


LARGEST = 200_000  # values that a file may stand for; the longest recipe of our own has some hundreds


def load_yaml(content: str, where: str) -> Any:
    """Parse YAML; ``UserError`` naming file and line for what is not YAML, and for what grows when it is read: a value
    that stands in itself, or, ten names deep, a billion times."""
    try:
        loader = Loader(content)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node) > LARGEST:
            raise UserError(f"{where}: its names (`*name`) stand for more than {LARGEST:,} values: write them out")
        found = loader.construct_document(node)
    except UserError:
        raise
    except Exception as error:  # a value that is not what its tag says ends its constructor in any way
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(f"{where}{line}: not valid YAML: {' '.join(said.split())}") from error
    check_depth(found, where)
    return found


def _values(root: yaml.Node) -> float:
    """How many values a document stands for once every alias is what it names; infinite where one is in itself."""
    counts: dict[int, float] = {}

    def count(node: yaml.Node) -> float:
        if id(node) not in counts:
            counts[id(node)] = math.inf  # until it is known: who comes back to it is in it
            inside = (
                [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            )
            counts[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(count, inside)))
        return counts[id(node)]

    return count(root)
