"""Functions of Python's own standard library, as tasks: signature and docstring are given, the body is written.

Only functions that stand on their own are taken: their body uses nothing but their arguments, Python's built-ins and
what it makes or imports itself. Which there are depends on the version of Python, so a model's card names it.
"""

from __future__ import annotations

import ast
import builtins
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import NamedTuple

from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.text.composed import REQUEST
from emkit.zoo.text.item import Item

LINES, CHARACTERS = 10, 420  # of a body, at most; of a signature with its docstring as many characters
_ASIDE = {"antigravity", "this", "idlelib", "turtledemo", "test", "__phello__"}


class _Function(NamedTuple):
    """A function's place (``module.name``), its signature with docstring, and its body, as they are written."""

    place: str
    header: str
    body: str


@cache
def functions() -> tuple[_Function, ...]:
    """All functions that are short enough, documented and stand on their own, by their places."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, _Function] = {}
    for module in sorted(set(sys.stdlib_module_names) - _ASIDE):
        for path in [root / f"{module}.py", *sorted((root / module).glob("*.py"))]:
            if path.is_file():
                found |= {f"{module}.{f.place}": f._replace(place=f"{module}.{f.place}") for f in _of_file(path)}
    return tuple(found[place] for place in sorted(found))


def _of_file(path: Path) -> list[_Function]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):  # files that the library's own tests are to stumble over
        return []
    lines, found = source.split("\n"), []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and _is_task(node):
            body = node.body[1:]
            header = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])
            text = "\n".join(lines[body[0].lineno - 1 : node.end_lineno])
            if len(header) <= CHARACTERS and len(text) <= CHARACTERS and text.count("\n") < LINES:
                found.append(_Function(node.name, header, text))
    return found


def _is_task(node: ast.FunctionDef) -> bool:
    public = not node.name.startswith("_") and not node.decorator_list
    return public and bool(ast.get_docstring(node)) and len(node.body) > 1 and _stands_alone(node)


def _stands_alone(node: ast.FunctionDef) -> bool:
    """Whether every name that the function reads is an argument, a built-in, or made in it."""
    made = (
        {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        | set(dir(builtins))
        | {node.name}
    )
    read: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            (read if isinstance(part.ctx, ast.Load) else made).add(part.id)
        elif isinstance(part, ast.Import | ast.ImportFrom):
            made |= {(alias.asname or alias.name).partition(".")[0] for alias in part.names}
        elif isinstance(part, ast.ExceptHandler) and part.name:
            made.add(part.name)
    return read <= made


def sample(draw: Draw) -> Spec:
    """One of them, by its place."""
    return {"kind": "standard library", "place": draw.pick(functions()).place}


def item(spec: Spec, draw: Draw) -> Item:
    """The task; there are no tests, for it is for training alone."""
    found = next(function for function in functions() if function.place == spec["place"])
    return Item("standard library", f"{REQUEST}\n{found.header}", found.body, f"{found.header}\n{found.body}")
