"""Reading a teaching notebook for its tests: its code cells, and the solutions of its exercises."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import nbformat

from eval import papermill_runner

FOLDER = Path(__file__).parents[1] / "notebooks"
_SOLUTION = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name: str) -> list[str]:
    """Sources of the code cells, the parameters among them."""
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


def solutions(name: str) -> list[str]:
    """The code of every ``<details>`` block, in order."""
    text = "\n\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    return _SOLUTION.findall(text)


def check(name: str, lines: int = 6) -> None:
    """The rules of the house: typed parameters, no ``def`` or class, short cells, no outputs, as much prose as code."""
    notebook = read(name)
    papermill_runner.declared(notebook, name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
    assert not any(isinstance(node, kinds) for cell in cells for node in ast.walk(ast.parse(cell.source)))
    assert statistics.median(len(cell.source.splitlines()) for cell in cells) <= lines
    prose = sum(len(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    assert prose >= sum(len(cell.source) for cell in cells)
