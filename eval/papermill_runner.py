"""The one way notebooks are run: typed parameters, and an output only when every cell succeeded.

papermill alone passes ``-p smoke false`` as the true string "false", only warns of unknown names, and leaves a failed
notebook where a finished one is expected.
"""

from __future__ import annotations

import ast
import json
import warnings
from pathlib import Path

import nbformat

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_json
from eval import keys

TYPES = {"str": str, "int": int, "float": float, "bool": bool}
TAG = "parameters"
KEY = "emkit"


def parameters(source: Path) -> dict[str, tuple[str, object]]:
    """:func:`declared` of a notebook's file; ``UserError`` where it cannot be read."""
    try:
        return declared(nbformat.read(source, as_version=4), source.name)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise UserError(f"{source} cannot be read as a notebook") from error


def declared(notebook: nbformat.NotebookNode, name: str) -> dict[str, tuple[str, object]]:
    """Name → (type name, default) of the one typed parameters cell; raises ``UserError`` where there is none."""
    cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UserError(f"{name} has {len(cells)} cells tagged '{TAG}'; it needs exactly one")
    found = {}
    for line in ast.parse(cells[0].source).body:
        typed = isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None
        if not typed or ast.unparse(line.annotation) not in TYPES:
            raise UserError(f"{name}: '{ast.unparse(line)}' in its parameters cell is not 'name: type = default'")
        found[line.target.id] = (ast.unparse(line.annotation), ast.literal_eval(line.value))
    return found


def typed(text: str, kind: str) -> object:
    """A value given as text, as ``kind`` (str, int, float or bool); raises ``ValueError`` when it is none."""
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _no(text)
    return TYPES[kind](text)


def _no(text: str) -> bool:
    raise ValueError(text)


def checked(given: dict[str, object], known: dict[str, tuple[str, object]], name: str) -> dict[str, object]:
    """``given`` with text converted to the declared types; unknown names and other types raise ``UserError``."""
    values = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{name} has no parameter '{key}': it has {', '.join(known)}")
        kind = known[key][0]
        try:
            values[key] = typed(value, kind) if isinstance(value, str) else _same_type(value, kind)
        except ValueError as error:
            raise UserError(f"{name}: parameter '{key}' is {value!r}, not of type {kind}") from error
    return values


def _same_type(value: object, kind: str) -> object:
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value) is not TYPES[kind]:
        raise ValueError(value)
    return value


def run(source: Path, output: Path, given: dict[str, object], key: object = None, folder: Path = Path(".")) -> None:
    """Execute ``source`` with parameters ``given`` in ``folder``; ``output`` appears only when all of it ran.

    ``key`` is whatever the result depends on beside the source; :func:`is_current` compares it.
    """
    values = checked(given, parameters(source), source.name)
    with atomic_write(output) as part:
        executed = _execute(source, values, folder)
        _settle(executed, folder)
        executed.metadata[KEY] = {"key": result_key(source, values, key)}
        nbformat.write(executed, part)


def _execute(source: Path, values: dict, folder: Path) -> nbformat.NotebookNode:
    import papermill  # slow to import, and nobody who only asks whether a notebook is current needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return papermill.execute_notebook(
                str(source),
                None,
                values,
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
    """Remove what differs between two equal runs: times, random cell ids, where the repository lies."""
    places = sorted({str(folder.resolve()), str(keys.ROOT)}, key=len, reverse=True)
    notebook.metadata.pop("papermill", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        for output in cell.get("outputs", []):
            for place in places if "text" in output else []:
                output["text"] = output["text"].replace(f"{place}/", "")


def result_key(source: Path, values: dict, key: object) -> str:
    """The hash that an executed notebook carries: its source, its parameters and ``key``."""
    return sha256_json([source.read_text(encoding="utf-8"), values, key])


def is_current(source: Path, output: Path, given: dict[str, object], key: object) -> bool:
    """Whether ``output`` was executed from exactly this source, these parameters and this ``key``."""
    if not output.is_file():
        return False
    try:
        held = json.loads(output.read_text(encoding="utf-8"))["metadata"][KEY]["key"]
    except (ValueError, KeyError):
        return False
    values = checked(given, parameters(source), source.name)
    return held == result_key(source, values, key)
