"""A model without its weights, for a dry run: its small files, and files of weights that are headers over nothing.

Names, dtypes and shapes are in a safetensors file's first bytes, which the hub gives by themselves; the rest of a file
here is a hole of the right length, that takes no room. Whatever looks at values has to leave such a model out.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emkit import originals
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError, reason
from emkit.originals.relaid import Relaid
from emkit.own import hub
from emkit.shards import DTYPES, SINGLE, Shard, TensorInfo


@dataclass(frozen=True)
class Seen:
    """A model's ``folder``; ``fetch``: bytes that a merge would download of it first; ``hollow``: whether its weights
    are holes."""

    folder: Path
    fetch: int = 0
    hollow: bool = False


def see(name: str, label: str, into: Path) -> Seen:
    """A model by folder or hub id without downloading or converting its weights; ``into`` is a folder to put files in.

    ``UserError`` as :func:`emkit.own.hub.stored` has it, and for headers that cannot be read.
    """
    missing = hub.missing(name, label)
    stored = hub.stored(name, label, hub.SMALL) if missing else hub.stored(name, label)
    fetch = sum(file.file_size or 0 for file in missing)
    if missing:
        stored = hollow(stored, into / "stored", _of_hub(name, label))
    kind = originals.kind(stored)
    if kind is None:
        return Seen(stored, fetch, bool(missing))
    side = originals.readable(stored, weights=False)
    held = Checkpoint.open(stored)
    view = Relaid(held, originals.LAYOUTS[kind].sources(held.names), side)
    made = hollow(side, into / "read", {SINGLE: {tensor: view.info(tensor) for tensor in view.names}})
    return Seen(made, fetch, True)


def _of_hub(name: str, label: str) -> dict[str, dict[str, TensorInfo]]:
    """File → tensors of a hub id's weights, by their headers alone."""
    from huggingface_hub import HfApi

    repository = name.partition("@")[0]
    found: dict[str, dict[str, TensorInfo]] = {}
    for file in hub.files(name, label, hub.WEIGHTS):
        try:
            header = HfApi().parse_safetensors_file_metadata(repository, file.filename, revision=file.commit_hash)
            entries = {tensor: TensorInfo(DTYPES[e.dtype], tuple(e.shape)) for tensor, e in header.tensors.items()}
        except Exception as error:  # whatever the connection or a header that is none raises
            raise UserError(
                f"{label}: the header of {name}/{file.filename} cannot be read ({reason(error)})"
            ) from error
        found[file.filename] = entries
    return found


def hollow(small: Path, folder: Path, files: Mapping[str, Mapping[str, TensorInfo]]) -> Path:
    """Write ``folder``: copies of the files in ``small``, and headers over holes in place of weights."""
    folder.mkdir(parents=True)
    for file in sorted({file for pattern in hub.SMALL for file in small.glob(pattern)}):
        copy = folder / file.relative_to(small)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    for name, tensors in files.items():
        shard = Shard(name, tensors)
        with open(folder / name, "wb") as out:
            out.write(shard.header)
            out.truncate(shard.nbytes)
    return folder
