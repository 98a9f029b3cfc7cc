"""What a result depends on, as hashes: two results with equal keys are the same result.

File times say nothing in a fresh clone, so every score carries hashes of the values that matter for it, of the models,
of the data and of the code; a run keeps exactly the scores whose hashes are those it would write itself, and nothing
else decides what stands. "The code" is what the score reaches by imports (:mod:`emkit.imports`), in two parts:

* the merge: the method's own module, the backbone's, the merge job; of what draws calibration samples only where
  a row is fitted on drawn ones, and of fits only where it is fitted;
* the scoring: who asks, the column's harness, and the judge where it is asked.

So a new method, backbone, harness or column makes no other score stale. What only decides *which* things are computed
(tables, profiles, columns, plans) is not code of a score: the values that it leads to are in the key themselves.
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from pathlib import Path

from emkit.files import sha256_file, sha256_json
from emkit.imports import SILENT, code_sha256
from eval.columns.kinds import Column

ROOT = Path(__file__).resolve().parent.parent
_JOB = "eval.merging"  # which calls the merge job
_CONTEXT = "emkit.merging"  # what a method is handed, be it learned or not: the job reaches it, too
_FITS, _DRAWING = "emkit.alignment", "emkit.zoo"
_SCORING = ("eval.rows", "eval.asking", "eval.scores")
# what decides which things are computed and what people are shown
_ASIDE = (
    *SILENT,
    "eval.columns",
    "eval.configured",
    "eval.devices",
    "eval.judge.cli",
    "eval.judge.estimate",
    "eval.keys",
    "eval.memory",
    "eval.places",
    "eval.plan",
    "eval.profile",
    "eval.signs",
    "eval.table",
    "eval.times",
)
MODEL_FILES = {".safetensors", ".json", ".jinja", ".txt", ".model"}
LIBRARIES = ("torch", "transformers", "numpy")


def merging(method: str, backbone: str, learned: bool, drawn: bool) -> str:
    """Hash of the code behind a merge by the method in the module ``method``; ``drawn``: on drawn samples."""
    aside = SILENT if drawn else (*SILENT, _DRAWING)
    own = code_sha256((method, f"emkit.backbones.{backbone}"), aside if learned else (*aside, _CONTEXT))
    return sha256_json([own, code_sha256((_JOB,), (*_ASIDE, *aside, *(() if learned else (_FITS,))))])


def scoring(column: Column) -> str:
    """Hash of the code that asks a merged model a column's questions and scores its answers."""
    aside = (*_ASIDE, _JOB, _FITS, _DRAWING, *(() if column.judge else ("eval.judge",)))
    return code_sha256((*_SCORING, *column.code), aside)


def drawing(published: bool = False) -> str:
    """Hash of the code that decides the columns' items, ``published`` ones among them."""
    return code_sha256(("eval.items.writer", *(("eval.items.fetching",) if published else ())), _ASIDE)


def prompting(modules: tuple[str, ...]) -> str:
    """Hash of the code that makes calibration files of columns' questions, ``modules`` and what they reach."""
    return code_sha256(modules, (*_ASIDE, _JOB, _FITS, _DRAWING, "eval.judge"))


def features(backbone: str) -> dict[str, str]:
    """What kept image features depend on besides tower and items."""
    return versions() | {"code": code_sha256(("eval.features", f"emkit.backbones.{backbone}"), _ASIDE)}


def fits(backbone: str) -> dict[str, str]:
    """What calibration sets and fits of a backbone depend on besides models and settings."""
    return versions() | {"code": code_sha256((_FITS, f"emkit.backbones.{backbone}"))}


@cache
def versions(libraries: tuple[str, ...] = ()) -> dict[str, str]:
    """The versions of the libraries that every number depends on, and of ``libraries``."""
    return {name: importlib.metadata.version(name) for name in (*LIBRARIES, *libraries)}


def model_identity(name: str, fetched: str | None = None) -> str:
    """What names a model's content: a folder's files by hash, a hub id by itself and the revision that was
    ``fetched``."""
    folder = Path(name)
    return _folder_identity(folder.resolve()) if folder.is_dir() else fetched or f"hub:{name}"


@cache
def _folder_identity(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
    return sha256_json({path.name: sha256_file(path) for path in files})


def file_identity(path: str | Path) -> str | None:
    """sha256 of a file's bytes; None where there is no file."""
    return sha256_file(Path(path)) if Path(path).is_file() else None
