"""Writing a model in an original layout (:mod:`emkit.originals`), for the authors' code and harnesses."""

from __future__ import annotations

import shutil
from pathlib import Path

from emkit import foreign, originals
from emkit.checkpoints import PICKLED, Checkpoint
from emkit.errors import UserError
from emkit.originals.relaid import Relaid, inverted
from emkit.own.differences import missing_code
from emkit.saving import write_checkpoint
from emkit.shards import INDEX, SHARD_BYTES


def export(model: Path, original: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write ``model`` (transformers' layout) to the folder ``out`` in the layout of ``original``; returns its tensors.

    ``original`` is a model of that layout, such as the base of a merge: every file of it but the weights is copied byte
    for byte, its code among them, which is not run. ``UserError`` where the tensors are not those of ``original``.
    """
    found = originals.kind(original)
    if found is None:
        raise UserError(f"{original} is in transformers' own layout: copy {model} as it is")
    if lacking := [file for file in missing_code(original.glob("*config.json")) if not (original / file).is_file()]:
        raise UserError(f"{original} has no {lacking[0]}, which its config.json names: download the whole model first")
    ours, theirs = Checkpoint.open(model), Checkpoint.open(original)
    beside = _beside(original)
    for file in beside:
        foreign.check_inside(file, original)
    parts = originals.LAYOUTS[found].sources(theirs.names)
    if differ := sorted(parts.keys() ^ set(ours.names)):
        raise UserError(f"{model} does not fit the layout of {original}: '{differ[0]}' is in one of them only")
    view = Relaid(ours, inverted(parts), original)
    if differ := [name for name in theirs.names if view.info(name).shape != theirs.info(name).shape]:
        raise UserError(f"{model} does not fit the layout of {original}: '{differ[0]}' has another shape there")

    def finish(part: Path) -> None:
        for file in beside:
            copy = part / file.relative_to(original)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    write_checkpoint(out, view.read, view, shard_bytes=shard_bytes, finish=finish)
    return len(view.names)


def _beside(folder: Path) -> list[Path]:
    """Files of a model but its weights and its card, hidden ones left out."""

    def wanted(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return not hidden and file.suffix not in (".safetensors", *PICKLED) and file.name not in (INDEX, "README.md")

    return [file for file in sorted(folder.rglob("*")) if file.is_file() and wanted(file)]
