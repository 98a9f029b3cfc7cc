"""Layouts that only a checkpoint's own code opens, read as transformers' own class has them, and written back.

No such code is ever run. A folder in an original layout is converted once, into the user's cache; whatever reads models
is then given that folder. :func:`export` writes a merged model in the layout of the model that it was made from.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emkit.checkpoints import PICKLED, Checkpoint
from emkit.errors import UserError
from emkit.files import atomic_dir, lock, sha256_file, sha256_json
from emkit.imports import code_sha256
from emkit.originals import internvl_chat, relaid
from emkit.originals.relaid import Relaid
from emkit.saving import write_checkpoint
from emkit.shards import INDEX, SHARD_BYTES

LAYOUTS = {internvl_chat.KIND: internvl_chat}
RECORD = "emkit_converted.json"  # in a folder that was converted: what it was made from
Say = Callable[[str], None]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cache() -> Path:
    """Where converted folders are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emkit" / "layouts"


def kind(folder: Path) -> str | None:
    """The original layout that a model's folder has; None for one of transformers' own, or no model at all."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and found in LAYOUTS else None


def code() -> str:
    """Hash of the code that converts."""
    return code_sha256(tuple(module.__name__ for module in (internvl_chat, relaid)))


def readable(folder: Path, weights: bool = True, say: Say = _say) -> Path:
    """The folder that transformers opens: ``folder`` itself, or for one in an original layout what it is converted to.

    Without ``weights``, configuration, tokenizer and processor are enough, which takes no time. A conversion is found
    again by the hashes of the code and of the small files, and by path, size and time of change of those with weights.
    ``UserError`` for a variant that transformers' class cannot hold, and where there is no room.
    """
    found = kind(folder)
    if found is None:
        return folder
    layout, small = LAYOUTS[found], {file.name: sha256_file(file) for file in _small(folder)}
    stored = Checkpoint.open(folder) if weights else None
    key = sha256_json([found, code(), small, stored.identity() if stored is not None else None])
    out = cache() / f"{_name(folder)}-{key[:16]}"
    if (out / RECORD).is_file():
        return out
    with lock(out.with_name(f".{out.name}.lock"), remove=True, waiting=lambda: say(f"waiting for {out}")):
        if not (out / RECORD).is_file():
            _convert(layout, folder, stored, out, say)
    return out


def _convert(layout: Any, folder: Path, stored: Checkpoint | None, out: Path, say: Say) -> None:
    record: dict[str, Any] = {"layout": layout.KIND, "folder": str(folder.resolve())}
    with tempfile.TemporaryDirectory() as name:
        side = Path(name)
        layout.write_side_files(folder, side)
        if stored is None:
            with atomic_dir(out) as part:
                shutil.copytree(side, part, dirs_exist_ok=True)
                _record(part, record)
            return
        view = Relaid(stored, layout.sources(stored.names), side)
        needed, free = sum(view.info(name).nbytes for name in view.names), shutil.disk_usage(_existing(out)).free
        if needed > free:
            raise UserError(
                f"no room to convert {folder} to transformers' layout: {needed / 1e9:.1f} GB in {cache()}, where "
                f"{free / 1e9:.1f} GB are free; free some, or set XDG_CACHE_HOME to another disk"
            )
        say(f"{folder} is in the layout {layout.KIND}: it is converted to transformers', in {out}")
        record |= {"original_sha256": stored.sha256(), "tensors": len(view.names)}
        write_checkpoint(out, view.read, view, finish=lambda part: _record(part, record))


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _record(folder: Path, record: Mapping[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def export(model: Path, original: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write ``model`` (transformers' layout) to the folder ``out`` in the layout of ``original``; returns its tensors.

    ``original`` is a model of that layout, such as the base of a merge: every file of it but the weights is copied byte
    for byte, its code among them, which is not run. ``UserError`` where the tensors are not those of ``original``.
    """
    found = kind(original)
    if found is None:
        raise UserError(f"{original} is in transformers' own layout: copy {model} as it is")
    _check_code(original)
    ours, theirs = Checkpoint.open(model), Checkpoint.open(original)
    view = Relaid(ours, LAYOUTS[found].originals(ours.names), original)
    if view.names != theirs.names or any(view.info(n).shape != theirs.info(n).shape for n in theirs.names):
        lacking = sorted({*view.names} ^ {*theirs.names})
        what = f"'{lacking[0]}' is in one of them only" if lacking else "tensors differ in shape"
        raise UserError(f"{model} does not fit the layout of {original}: {what}")

    def finish(part: Path) -> None:
        for file in _beside(original):
            copy = part / file.relative_to(original)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    write_checkpoint(out, view.read, view, shard_bytes=shard_bytes, finish=finish)
    return len(view.names)


def _beside(folder: Path) -> list[Path]:
    """Files of a model but its weights, hidden ones left out."""

    def wanted(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return not hidden and file.suffix not in (".safetensors", *PICKLED) and file.name not in (INDEX, "README.md")

    return [file for file in sorted(folder.rglob("*")) if file.is_file() and wanted(file)]


def _check_code(original: Path) -> None:
    """``UserError`` where a code file is missing that the configuration names, without which nobody could open it."""
    named = json.loads((original / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    for entry in named.values():
        file = f"{str(entry).rpartition('--')[2].partition('.')[0]}.py"
        if not (original / file).is_file():
            raise UserError(f"{original} has no {file}, which its config.json names: download the whole model first")


def _small(folder: Path) -> list[Path]:
    """The files that a conversion reads besides weights."""
    names = ("*.json", "*.txt", "*.jinja", "*.model")
    return sorted({file for name in names for file in folder.glob(name) if file.is_file() and file.name != INDEX})


def _name(folder: Path) -> str:
    """A folder's name, of a hub download its repository's (``…/models--owner--name/snapshots/<revision>``)."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--")
    return folder.resolve().name
