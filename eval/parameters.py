"""A notebook's parameters: one cell of typed lines ``name: type = default``, checked however they are given.

papermill alone passes ``-p smoke false`` as the true string "false" and only warns of unknown names.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import nbformat

from emkit.errors import UserError
from emkit.schema import nearest

TYPES = {"str": str, "int": int, "float": float, "bool": bool}
TAG = "parameters"


def read(source: Path) -> nbformat.NotebookNode:
    """The notebook in a file; ``UserError`` where there is none or it cannot be read."""
    try:
        return nbformat.read(source, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise UserError(f"{source} cannot be read as a notebook") from error


def cell_of(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The one cell tagged ``parameters``; ``UserError`` where there is none or more than one."""
    cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UserError(f"{name} has {len(cells)} cells tagged '{TAG}'; it needs exactly one")
    return cells[0]


def declared(notebook: nbformat.NotebookNode, name: str) -> dict[str, tuple[str, object]]:
    """Name → (type name, default) of the parameters cell; ``UserError`` for a line that is anything else."""
    found = {}
    for line in ast.parse(cell_of(notebook, name).source).body:
        typed = isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None
        if not typed or ast.unparse(line.annotation) not in TYPES:
            raise UserError(f"{name}: '{ast.unparse(line)}' in its parameters cell is not 'name: type = default'")
        found[line.target.id] = (ast.unparse(line.annotation), ast.literal_eval(line.value))
    return found


def checked(given: Mapping[str, object], known: Mapping[str, tuple[str, object]], name: str) -> dict[str, object]:
    """``given`` with text converted to the declared types; unknown names and other types raise ``UserError``."""
    values = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{name} has no parameter '{key}': {nearest(key, known)}")
        values[key] = _checked(key, value, known[key][0], name)
    return values


def _checked(key: str, value: object, kind: str, name: str) -> object:
    try:
        return typed(value, kind) if isinstance(value, str) else _same_type(value, kind)
    except (ValueError, KeyError) as error:
        raise UserError(f"{name}: parameter '{key}' is {value!r}, not of type {kind}") from error


def typed(text: str, kind: str) -> object:
    """A value given as text, as ``kind`` (str, int, float or bool); ``ValueError`` or ``KeyError`` when it is none."""
    return {"true": True, "false": False}[text.lower()] if kind == "bool" else TYPES[kind](text)


def _same_type(value: object, kind: str) -> object:
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value) is not TYPES[kind]:
        raise ValueError(value)
    return value


def recheck(namespace: MutableMapping[str, object]) -> None:
    """Convert and check, in a notebook that runs, the variables that its parameters cell declared a type for.

    papermill and its like put values of their own behind that cell, of whatever type they took them for.
    """
    kinds = {kind: name for name, kind in TYPES.items()} | {name: name for name in TYPES}
    for key, kind in dict(namespace.get("__annotations__", {})).items():  # type: ignore[call-overload]
        if kind in kinds and key in namespace:
            namespace[key] = _checked(key, namespace[key], kinds[kind], "this notebook")


def fill(notebook: nbformat.NotebookNode, values: Mapping[str, object], name: str) -> None:
    """Write ``values`` (of the declared types) into the parameters cell in place of its defaults; comments stay."""
    cell = cell_of(notebook, name)
    lines = cell.source.encode().splitlines(keepends=True)  # bytes: what ast counts columns in
    for node in reversed(ast.parse(cell.source).body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
            continue
        key, at = node.target.id, node.value
        if key in values and values[key] != ast.literal_eval(at):
            new = json.dumps(values[key], ensure_ascii=False) if isinstance(values[key], str) else repr(values[key])
            first, last = at.lineno - 1, (at.end_lineno or at.lineno) - 1
            line = lines[first][: at.col_offset] + new.encode() + lines[last][at.end_col_offset :]
            lines[first : last + 1] = [line]
    cell.source = b"".join(lines).decode()
