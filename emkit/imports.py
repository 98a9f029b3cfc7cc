"""What code a module reaches by its imports: of such code, and no other, is a result of that module made.

A result that is kept carries a hash of the code that it was made by (:func:`code_sha256`). Were it of all code, a new
method would make every old score stale; so it is of the modules that the result's own modules import, directly or not,
also within functions and with the packages above them. Imports for type checkers alone do not count, and what is found
by name while running (``importlib.import_module``: methods, backbones, harnesses) has to be named as a root.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from emkit.files import sha256_json

HOME = Path(__file__).resolve().parent.parent  # the folder of the packages
# What talks to people, and what only says how a thing is set: its outcome is in a key as values.
SILENT = (
    *("emkit.api", "emkit.cli", "emkit.command_line", "emkit.config", "emkit.errors", "emkit.explain"),
    *("emkit.pictures", "emkit.progress", "emkit.schema"),
)


@cache
def code_sha256(roots: tuple[str, ...], aside: tuple[str, ...] = SILENT, home: Path = HOME) -> str:
    """Hash of the code that ``roots`` reach: of syntax trees, in which comments, docstrings and layout do not show."""
    files = reached(roots, aside, home)
    return sha256_json({name: _content(path.read_text(encoding="utf-8")) for name, path in files.items()})


def reached(roots: Iterable[str], aside: Iterable[str] = (), home: Path = HOME) -> dict[str, Path]:
    """The modules that ``roots`` reach within emkit and their own top packages, by name, with their files; ``roots``
    included.

    ``aside`` are modules, or packages with all that is in them, that are neither taken nor followed.
    ``ModuleNotFoundError`` for a root that there is not.
    """
    aside, roots = tuple(aside), list(roots)
    packages = {"emkit", *(root.partition(".")[0] for root in roots)}
    for root in roots:
        if _file(root, home) is None:
            raise ModuleNotFoundError(f"there is no module {root}", name=root)
    found: dict[str, Path] = {}
    waiting = roots
    while waiting:
        name = waiting.pop()
        path = _file(name, home)
        left_out = any(name == other or name.startswith(f"{other}.") for other in aside)
        if name in found or path is None or left_out or name.partition(".")[0] not in packages:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imported(name, path)]
    return dict(sorted(found.items()))


def _file(name: str, home: Path) -> Path | None:
    """The file of a module or package; None where there is none."""
    path = home.joinpath(*name.split(".")) if name else home / ".none"
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def _imported(name: str, path: Path) -> Iterator[str]:
    """What a module imports: for ``from a import b`` both ``a`` and, where it is a module, ``a.b``."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _run(_tree(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree without those that only type checkers read."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


@cache
def _tree(code: str) -> ast.Module:
    return ast.parse(code)


@cache
def _content(code: str) -> str:
    """A module's syntax tree without docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        defines = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, defines) and ast.get_docstring(node, clean=False) is not None:
            node.body.pop(0)
    return ast.dump(tree)
