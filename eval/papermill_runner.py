"""The one way notebooks are run: typed parameters, and an output only when every cell succeeded.

papermill alone leaves a failed notebook where a finished one is expected, and shows the parameters twice.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import nbformat

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_file, sha256_json, write_json
from eval import keys
from eval.parameters import checked, declared, fill, read
from eval.threads import ONE_THREAD

WIDGET = "application/vnd.jupyter.widget-view+json"
_RANDOM = (
    ("text/html", re.compile(r"\bT_[0-9a-f]{5}(?=[_\"\s{])"), "T_{:02d}"),  # pandas' styled tables
    ("text/plain", re.compile(r" at 0x[0-9a-f]+>"), ">"),
)


def parameters(source: Path) -> dict[str, tuple[str, object]]:
    """Name → (type name, default) of a notebook's parameters; ``UserError`` where they cannot be read."""
    return declared(read(source), source.name)


def run(source: Path, output: Path, given: Mapping[str, object], key: object = None, folder: Path = Path(".")) -> None:
    """Execute ``source`` with parameters ``given`` in ``folder``; ``output`` appears only when all of it ran.

    ``key`` is whatever the result depends on beside the notebook's content; where it is given, a file beside
    ``output`` keeps it for :func:`is_current`. The notebook itself says only what it shows.
    """
    values = checked(given, parameters(source), source.name)
    with atomic_write(output) as part:
        executed = _execute(source, values, folder)
        _settle(executed, folder)
        nbformat.write(executed, part)
    if key is not None:
        held = {"key": result_key(source, values, key), "sha256": sha256_file(output)}
        write_json(_beside(output), held)


def _beside(output: Path) -> Path:
    return output.with_suffix(".key")


def _execute(source: Path, values: dict, folder: Path) -> nbformat.NotebookNode:
    import papermill  # slow to import, and nobody who only asks whether a notebook is current needs it

    notebook = read(source)
    fill(notebook, values, source.name)
    os.environ.update(ONE_THREAD)  # the kernel's: a fit in a notebook is the same whoever starts it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return papermill.execute_notebook(
                notebook,
                None,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=600,  # a busy machine takes longer than the usual minute
                cwd=str(folder),
            )
        except papermill.PapermillExecutionError as error:
            said = error.evalue if error.ename == UserError.__name__ else f"{error.ename}: {error.evalue}"
            raise UserError(f"{source}: cell {error.exec_count} failed: {said}") from error


def _settle(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Remove what differs between two equal runs: times, random ids, Python's patch level, the repository's place."""
    places = sorted({str(folder.resolve()), str(keys.ROOT)}, key=len, reverse=True)
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if not cell.metadata.get("tags", [""]):
            del cell.metadata["tags"]  # papermill's
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_a_widget_alone(output)]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
                _name_by_place(output.get("data", {}), number)
                for place in places if "text" in output else []:
                    output["text"] = output["text"].replace(f"{place}/", "")


def _name_by_place(data: nbformat.NotebookNode, number: int) -> None:
    """Name styled tables, whose ids are random, by their cell, and leave out where in memory an object was."""
    for kind, pattern, instead in _RANDOM:
        if kind in data:
            data[kind] = pattern.sub(instead.format(number), data[kind])


def _is_a_widget_alone(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a widget, which needs a kernel, and has no picture that stands in for it."""
    shown = set(output.get("data", {}))
    return WIDGET in shown and shown <= {WIDGET, "text/plain"}


def content(notebook: nbformat.NotebookNode) -> list:
    """What a notebook says and does: its cells' types, sources and tags, in order.

    Saving one in Jupyter changes counts, ids, outputs and the kernel's name, and none of this.
    """
    return [[cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))] for cell in notebook.cells]


def result_key(source: Path, values: Mapping[str, object], key: object) -> str:
    """The hash of what an executed notebook rests on: its content, its parameters and ``key``."""
    return sha256_json([content(read(source)), dict(values), key])


def is_current(source: Path, output: Path, given: Mapping[str, object], key: object) -> bool:
    """Whether ``output`` was executed from this content, these parameters and this ``key``, and not changed since."""
    try:
        held = json.loads(_beside(output).read_text(encoding="utf-8"))
        kept = held["key"], held["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    values = checked(given, parameters(source), source.name)
    return output.is_file() and kept == (result_key(source, values, key), sha256_file(output))
