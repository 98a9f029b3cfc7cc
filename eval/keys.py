"""What a result depends on, as hashes: two results with equal keys are the same result.

File times say nothing in a fresh clone, so every score carries hashes of the recipe's part that matters for it, of the
models, of the data and of the code; a run keeps exactly the scores whose hashes are those it would write itself.
"""

from __future__ import annotations

import ast
import importlib.metadata
from functools import cache
from pathlib import Path

from emkit.files import sha256_file, sha256_json

ROOT = Path(__file__).resolve().parent.parent
# The code that decides a number. Training a zoo decides files, whose own hashes are in the keys.
SOURCES = (
    "emkit/*.py",
    "emkit/alignment/*.py",
    "emkit/methods/*.py",
    "emkit/backbones/*.py",
    "emkit/zoo/data/*.py",  # calibration samples are drawn by it
    "emkit/zoo/text/*.py",
    "emkit/zoo/subtasks.py",
)
_SCORING = (
    "eval/asking.py",
    "eval/features.py",
    "eval/rows.py",
    "eval/scores.py",
    "eval/stats.py",
    "eval/workers/*.py",
)
# what each harness adds to it: a change of one leaves the others' scores standing
HARNESSES = {
    "vlmevalkit": ("eval/vlm/*.py", "eval/judge/*.py"),
    "lm-eval": ("eval/lm/*.py", "eval/benchmarks/lm/*.py", "eval/sandbox/*.py"),
    "alpaca_eval": ("eval/alpaca/*.py", "eval/lm/tasks.py", "eval/judge/*.py"),
}
# the code that decides a benchmark's items
DRAWING = ("emkit/zoo/data/*.py", "emkit/zoo/text/*.py", "emkit/zoo/subtasks.py", "eval/benchmarks/*.py")
NOT_IN_NUMBERS = (
    "emkit/cli.py",
    "emkit/explain.py",
    "emkit/progress.py",
    "eval/judge/cli.py",
    "eval/judge/estimate.py",
)
MODEL_FILES = {".safetensors", ".json", ".jinja", ".txt", ".model"}
LIBRARIES = ("torch", "transformers", "numpy")
HARNESS_LIBRARIES = {
    "vlmevalkit": ("ms-vlmeval",),
    "lm-eval": ("lm_eval", "datasets"),
    "alpaca_eval": ("alpaca_eval",),
}


@cache
def code_version(patterns: tuple[str, ...] = SOURCES) -> str:
    """sha256 over the syntax trees of the files without docstrings: comments and layout change nothing."""
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    trees = {}
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if name not in NOT_IN_NUMBERS:
            trees[name] = ast.dump(_without_docstrings(ast.parse(path.read_text(encoding="utf-8"))))
    return sha256_json(trees)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            body.pop(0)
    return tree


def model_identity(name: str) -> str:
    """What names a model's content: a folder's files by hash, a hub id by itself."""
    folder = Path(name)
    return _folder_identity(folder.resolve()) if folder.is_dir() else f"hub:{name}"


@cache
def _folder_identity(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
    return sha256_json({path.name: sha256_file(path) for path in files})


def file_identity(path: str | Path) -> str | None:
    """sha256 of a file's bytes; None where there is no file."""
    return sha256_file(Path(path)) if Path(path).is_file() else None


@cache
def versions(harness: str | None = None) -> dict[str, str]:
    """The libraries' versions and the code's hash: of merging and fits, and of a harness's scoring where one is named.

    Every score file states them.
    """
    names, sources = LIBRARIES, SOURCES
    if harness is not None:
        names, sources = names + HARNESS_LIBRARIES[harness], sources + _SCORING + HARNESSES[harness]
    return {name: importlib.metadata.version(name) for name in names} | {"code": code_version(sources)}
